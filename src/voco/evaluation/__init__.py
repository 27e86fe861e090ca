"""How good predictions are: overlap, surfaces, statistics, tables."""
