"""Training: losses, checkpoints, and one folder for each model that is trained here."""
