"""voco: self-supervised pre-training of 3D medical image networks."""

__version__ = "0.1.0"
