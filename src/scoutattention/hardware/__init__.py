"""What this computer offers: cores, memory, GPUs, and the report of `scout doctor`."""
