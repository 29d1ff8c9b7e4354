"""Checks of a run before it starts: findings, memory and disk."""
