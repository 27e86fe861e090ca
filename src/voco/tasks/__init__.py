"""What networks are fine-tuned for, one file each."""
