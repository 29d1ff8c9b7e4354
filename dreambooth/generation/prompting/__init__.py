"""Prompts before they are encoded: weights, wildcards, files of many."""
