"""The CPU decode benchmark: this engine and others, each in a process of its own."""
