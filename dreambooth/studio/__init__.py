"""The studio: a page and a REST API on this machine, over the same commands and folders that a terminal uses."""
