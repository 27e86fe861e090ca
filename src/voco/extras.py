"""Packages that only some users need: imported where they are used, asked for by name."""

import importlib
from typing import Any

from voco.errors import UsageError


def needed(module: str, extra: str, what: str) -> Any:  # noqa: ANN401 (any module)
    """An optional package.

    Args:
        module: Its import name.
        extra: The extra of voco that brings it.
        what: What it is needed for, to begin a sentence with.

    Raises:
        UsageError: If it is not installed, or broken; with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{what} needs the package {module.partition('.')[0]}, which cannot be imported "
            f"({error}). Install it with: pip install 'voco[{extra}]'"
        ) from None
