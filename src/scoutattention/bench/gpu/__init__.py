"""Decoding on a GPU beside full attention and other designs, in one engine."""
