"""A run from outside: its folder and lock, the rules of resuming, the session record, failures turned into advice."""
