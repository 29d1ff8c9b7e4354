"""Images once they are made: drawn larger, and their subject redrawn."""
