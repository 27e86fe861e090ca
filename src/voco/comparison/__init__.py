"""Several methods under one protocol: what is run, by whom, and what came out as tables.

A comparison is a folder that any number of processes, on any number of machines, fill together:

- :mod:`~voco.comparison.settings`: the recipe, complete and checked;
- :mod:`~voco.comparison.plan`: which jobs it means;
- :mod:`~voco.comparison.claims`: who does which of them;
- :mod:`~voco.comparison.jobs` and :mod:`~voco.comparison.worker`: doing one;
- :mod:`~voco.comparison.tables`: the tidy tables, from which the report is made;
- :mod:`~voco.comparison.run`: all of it.
"""
