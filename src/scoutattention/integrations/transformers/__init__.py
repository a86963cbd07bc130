"""ScoutAttention inside Hugging Face transformers: `with scout(model): model.generate(...)`."""
