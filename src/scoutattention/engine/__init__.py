"""Requests in, tokens out: sequences, their memory, the scheduler, the runner, and the public `LLM`."""
