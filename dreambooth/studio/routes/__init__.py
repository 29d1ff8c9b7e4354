"""The routes of the API, a file a thing that requests are about."""
