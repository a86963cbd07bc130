"""Checkpoints in few bits, as the `quantization_config` of their config.json says."""
