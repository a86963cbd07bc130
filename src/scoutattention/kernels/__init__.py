"""Pure functions on tensors: no state, no settings. `reference` in plain PyTorch; `cpu` native, with its queue."""
