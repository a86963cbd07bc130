"""Threads, streams, pinned and packed memory, captured graphs, processes: everything that holds state of its own."""
