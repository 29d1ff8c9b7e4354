"""What can be known of a run before it starts: findings, memory and disk."""
