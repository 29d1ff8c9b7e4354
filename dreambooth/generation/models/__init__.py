"""A MODEL as it is typed: where it lies, what is laid over it, and how it is loaded."""
