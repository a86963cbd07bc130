"""A prompt: exact attention, the first resident blocks, and the trial of scouts whose true queries are known."""
