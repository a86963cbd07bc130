"""Chat templates, which are programs that come with a model."""
