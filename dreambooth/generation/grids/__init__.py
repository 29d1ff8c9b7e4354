"""Grids of images: their axes, their cells, and how they are shown."""
