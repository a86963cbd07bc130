"""Requests: what they hold, how they are read, and what they become for the engine."""
