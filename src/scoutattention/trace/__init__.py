"""Timelines of decode steps: spans of lanes, their files, and their pictures. No PyTorch is needed."""
