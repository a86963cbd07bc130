"""Whether facts hidden in a long prompt are still found."""
