"""Pure functions on tensors, without state or settings: in plain PyTorch, native for CPUs, in Triton for GPUs."""
