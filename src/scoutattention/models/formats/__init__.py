"""Where weights, configurations and tokenizers are read from."""
