"""Choices of blocks on the device: the best of them, and what follows from a choice."""
