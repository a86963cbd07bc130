"""Timelines, their files and pictures."""
