"""Answers on their way to a client."""
