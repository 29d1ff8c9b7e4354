"""Errors of a request, each with the HTTP status that answers it."""

from dreambooth.errors import UserError


class RequestError(UserError):
    """Report a request that cannot be carried out as it was made."""

    status = 422


class MissingError(RequestError):
    """Report a name that nothing in the workspace has."""

    status = 404


class ConflictError(RequestError):
    """Report a request that does not fit what is going on now: a run that trains, a name that is taken."""

    status = 409


class TooLargeError(RequestError):
    """Report an upload beyond a limit."""

    status = 413
