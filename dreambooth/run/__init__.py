"""The folder of a run: its lock, the rules of resuming, and what failures are translated to."""
