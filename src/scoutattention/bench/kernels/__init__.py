"""The native kernels, checked and timed."""
