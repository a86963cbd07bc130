"""The sizes of models without their weights. No PyTorch."""
