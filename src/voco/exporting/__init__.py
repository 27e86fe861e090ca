"""Trained networks in the formats of other programs, one file per format.

Each takes a :class:`~voco.exporting.network.HandedOn` and gives files. What a format cannot hold is
refused, with the format that can; what it holds but was not trained is said.
"""
