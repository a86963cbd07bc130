"""Weights in stored blocks on a GPU: their numbers, and products with them."""
