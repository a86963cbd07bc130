"""What the commands do. These modules load PyTorch; `command.load` imports one when a command's flags are right."""
