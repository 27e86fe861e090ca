"""Settings of the documentation (Sphinx)."""

import os
from contextlib import redirect_stdout
from pathlib import Path

from voco import __version__
from voco.cli import COMMANDS, main

project = "voco"
author = "the voco authors"
release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
napoleon_use_ivar = True  # attributes are documented once, in the list of their class
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": True}
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "voco"

RECIPES = {"pretrain": ["voco-swin-b"], "finetune": ["segment-swin-b"]}
"""Whose settings the pages of commands show."""


def write_help(app) -> None:  # noqa: ANN001 (Sphinx's application)
    """Put what ``--help`` prints beside the pages, so that the reference is never stale."""
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    os.environ["COLUMNS"] = "92"  # as wide as a page, whatever the terminal
    for name in COMMANDS:
        recipe = RECIPES.get(name, [])
        with (folder / f"{name}.txt").open("w") as file, redirect_stdout(file):
            status = main([name, *recipe, "--help"])
        if status:
            raise RuntimeError(f"voco {name} --help ended with {status}")


def setup(app) -> None:  # noqa: ANN001 (Sphinx's application)
    """Hook up."""
    app.connect("builder-inited", write_help)
