"""Digests of blocks on the device: written, and scored."""
