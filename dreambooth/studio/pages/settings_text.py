"""Settings as people type them into a form, one a line, as in a config file."""

import yaml

from dreambooth.errors import UserError


def read_settings(text: str) -> dict[str, object]:
    """Return settings that were typed one a line, as section.key=value. Raises UserError for a line that is none."""
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        key, equals, value = line.partition("=")
        if not equals:
            raise UserError(f"{line}: is no setting; write section.key=value, one a line")
        found[key.strip()] = read_value(value)
    return found


def read_value(text: str) -> object:
    """Return a value as a config file would have it; 2e-5 is a number. Raises UserError for what YAML cannot read."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{text}: cannot be read as a value; write it as in a config file") from error
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
