"""Golden curves: how each method learns, recorded."""
