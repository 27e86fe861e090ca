"""Walking through a folder of scans."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

_HIDDEN = (".", "__MACOSX")


def walk(
    root: Path, closed: Callable[[Path], bool] = lambda _: False
) -> Iterator[tuple[Path, list[Path]]]:
    """Folders below one and their files, in order; what is hidden is left out.

    Links are followed, but no folder is entered twice.

    Args:
        root: Where to begin.
        closed: Folders that are given, but not entered.
    """
    seen: set[Path] = set()
    for place, folders, names in os.walk(root, followlinks=True):
        folder = Path(place)
        if folder.resolve() in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(folder.resolve())
        yield folder, [folder / name for name in sorted(names) if not name.startswith(".")]
        inner = sorted(name for name in folders if not name.startswith(_HIDDEN))
        folders[:] = [] if closed(folder) else inner
