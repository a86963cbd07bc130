"""Pages in 8 and 4 bits on a GPU: packed, read in place, and unpacked."""
