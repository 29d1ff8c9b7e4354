"""The training loop: the Lightning module, its callbacks, the optimizer, checkpoints and validations."""
