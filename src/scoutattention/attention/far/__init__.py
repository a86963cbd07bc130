"""The CPU's share: attention to absent blocks, started ahead and taken when its layer needs it."""
