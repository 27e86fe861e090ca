"""Settings of the documentation (Sphinx)."""

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
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": True}
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "voco"


def write_help(app) -> None:  # noqa: ANN001 (Sphinx's application)
    """Put what ``--help`` prints beside the pages, so that the reference is never stale."""
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    for name in COMMANDS:
        recipe = {"pretrain": ["voco-swin-b"], "finetune": ["segment-swin-b"]}.get(name, [])
        with (folder / f"{name}.txt").open("w") as file, redirect_stdout(file):
            main([name, *recipe, "--help"])


def setup(app) -> None:  # noqa: ANN001 (Sphinx's application)
    """Hook up."""
    app.connect("builder-inited", write_help)
