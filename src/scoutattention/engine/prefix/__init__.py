"""Prompts that were read, for those that begin alike: in the engine's pages, and in a directory."""
