"""Measurements: they check the answer, then time it, and print the share of what the machine can do."""
