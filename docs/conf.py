"""Settings of the documentation (Sphinx)."""

import importlib
import os
import re
from contextlib import redirect_stdout
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

from voco import __version__
from voco.cli import COMMANDS, main
from voco.config import Config
from voco.methods import available

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
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes are documented once, in the list of their class
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_default_options = {
    "members": True,
    "undoc-members": False,
    "show-inheritance": True,
    "exclude-members": "model_config",
}
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "voco"
html_show_copyright = False

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


def write_methods(app) -> None:  # noqa: ANN001
    """A page for every method: what its file says of it, and how it learns."""
    folder = Path(app.srcdir) / "methods"
    for name in available():
        module = f"voco.methods.{name}"
        first = (importlib.import_module(module).__doc__ or "").split("\n", 1)[0]
        curves = ""
        if (folder / f"{name}.svg").exists():
            curves = f"## How it learns\n\n![losses and health figures]({name}.svg)\n\n"
        (folder / f"{name}.md").write_text(
            f"# {first.split(':')[0]}\n\n{curves}```{{eval-rst}}\n.. automodule:: {module}\n```\n"
        )


def hide_settings_in_signature(app, what, name, obj, *rest):  # noqa: ANN001, ANN201, ANN002, ARG001
    """Settings are listed one by one below their class, so its signature need not repeat them."""
    return ("", None) if isinstance(obj, type) and issubclass(obj, Config) else None


def keep_colons(app, what, name, obj, options, lines) -> None:  # noqa: ANN001, ARG001
    """Napoleon takes what stands before a colon in an attribute's docstring for its type."""
    if what in {"attribute", "data", "property"} and lines and ":" in lines[0]:
        lines[0] = f": {lines[0]}"


def shorten_types(app, doctree) -> None:  # noqa: ANN001, ARG001
    """Show ``Annotated[int, Gt(gt=0)]`` as ``int``."""
    for node in list(doctree.findall(addnodes.desc_annotation)):
        text = node.astext()
        if "Annotated[" in text:
            short = re.sub(r"Annotated\[(.*?), \w+\([^)]*\)\]", r"\1", text)
            node.children = [nodes.Text(short)]


def setup(app) -> None:  # noqa: ANN001 (Sphinx's application)
    """Hook up."""
    app.connect("builder-inited", write_help)
    app.connect("builder-inited", write_methods)
    app.connect("autodoc-process-signature", hide_settings_in_signature)
    app.connect("autodoc-process-docstring", keep_colons, priority=400)
    app.connect("doctree-read", shorten_types)
