"""Files that come with the package, by name: recipes, and descriptions of data sets."""

import difflib
from pathlib import Path
from typing import Literal

from voco.errors import UsageError

Kind = Literal["recipe", "data set"]

_FOLDERS: dict[Kind, tuple[str, str]] = {
    "recipe": ("shipped_recipes", "recipes"),
    "data set": ("shipped_datasets", "datasets"),
}
"""In an installed package, and in its sources."""

OTHER_NAMES = {"voco": "voco-swin-b", "smoke-voco": "smoke"}
"""Recipes of VoCo by the pattern that those of all other methods follow."""


def shipped(kind: Kind) -> dict[str, Path]:
    """All files of a kind that come along, by name."""
    package = Path(__file__).parent
    installed, source = _FOLDERS[kind]
    for folder in (package / installed, package.parents[1] / source):
        if folder.is_dir():
            return {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    return {}


def shipped_or_own(kind: Kind, name: str) -> Path:
    """A YAML file: the user's own by its path, or one that comes along by its name.

    Raises:
        UsageError: If there is none; names the nearest.
    """
    known = shipped(kind)
    # A data set's name may be that of its folder: a file of one's own is known by its ending.
    if Path(name).is_file() and (kind == "recipe" or Path(name).suffix in {".yaml", ".yml"}):
        return Path(name)
    if kind == "recipe":
        name = OTHER_NAMES.get(name, name)
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise UsageError(
        f"{kind} '{name}': no such file, and none of that name comes along.{hint} "
        f"Known are: {', '.join(known)}."
    )
