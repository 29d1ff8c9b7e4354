"""Images that steer a sampling: one to start from, controls, a style."""
