"""What the method costs in accuracy, measured on the engine that users run."""
