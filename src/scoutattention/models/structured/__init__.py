"""Answers in a form that programs read."""
