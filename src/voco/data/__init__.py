"""Scans: reading them, preparing them, keeping them, and serving parts of them."""
