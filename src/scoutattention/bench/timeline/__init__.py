"""Timelines of this engine: its methods and its worker threads, watched while they work."""
