"""Will it help on this computer? Plans and a simulator of decode steps, from arithmetic alone. No PyTorch."""
