"""The pages: HTML over the same queue, folders and functions that the REST API uses."""
