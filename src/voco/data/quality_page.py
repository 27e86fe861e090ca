"""The page that a person reads after preparing: counts, distributions, pictures, refusals."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from voco.data.charts import bars, ranges
from voco.data.quality import Line
from voco.data.store import Case, Store, write_atomically
from voco.data.thumbnail import thumbnail
from voco.errors import StoreError

_PICTURES = 120
"""Cases with a picture: more would make the page heavy."""

_COLUMNS = 400
"""Cases in the chart of intensities."""


class Group(NamedTuple):
    """Sources about which the same is said."""

    text: str
    members: tuple[str, ...]
    details: tuple[str, ...]
    """What is said of each, where it differs; else empty."""


def write_page(store: Store, lines: Sequence[Line]) -> None:
    """Write ``quality.html``.

    Args:
        store: The store.
        lines: What became of each source.
    """
    write_atomically(store.path / "quality.html", render(store, lines).encode())


def render(store: Store, lines: Sequence[Line]) -> str:
    """The page.

    Args:
        store: The store.
        lines: What became of each source.
    """
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    cases = list(store.cases.values())
    refused = [line for line in lines if line.status == "refused"]
    return environment.get_template("quality.html.jinja").render(
        name=store.path.resolve().name,
        facts=_facts(store, cases, refused),
        preprocessing=store.preprocessing,
        charts=_charts(cases),
        modalities=_modalities(cases),
        classes=_classes(cases),
        refusals=_group((line.source, line.reason or "") for line in refused),
        passed_over=_group(
            (line.source, line.reason or "") for line in lines if line.status == "passed over"
        ),
        warnings=_group((line.case, text) for line in lines if line.case for text in line.warnings),
        pictures=_pictures(store, cases),
        count=len(cases),
    )


def _facts(store: Store, cases: Sequence[Case], refused: Sequence[Line]) -> list[tuple[str, str]]:
    files = [store.image_file(case.id) for case in cases]
    size = sum(file.stat().st_size for file in files if file.exists())
    voxels = sum(int(np.prod(case.shape)) * len(case.channels) for case in cases)
    return [
        ("cases", f"{len(cases):,}"),
        ("with a label", f"{sum(case.has_label for case in cases):,}"),
        ("refused", f"{len(refused):,}"),
        ("voxels", _short(voxels)),
        ("on disk", f"{_short(size)}B"),
        ("bytes per voxel", f"{size / voxels:.2f}" if voxels else "–"),
    ]


def _charts(cases: Sequence[Case]) -> list[tuple[str, Markup]]:
    if not cases:
        return []
    spacing = np.array([case.source_grid.spacing_mm for case in cases])
    extent = np.array([case.spacing_mm for case in cases]) * [case.shape for case in cases]
    charts = [
        ("Finest spacing of the sources", bars(spacing.min(axis=1), "mm")),
        ("Coarsest spacing of the sources", bars(spacing.max(axis=1), "mm")),
        ("Extent, left to right", bars(extent[:, 0], "mm")),
        ("Extent, back to front", bars(extent[:, 1], "mm")),
        ("Extent, feet to head", bars(extent[:, 2], "mm")),
        ("Voxels in the store", bars([np.prod(case.shape) / 1e6 for case in cases], "million")),
    ]
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.modality].append(case)
    for modality, members in sorted(groups.items()):
        shown = _spread(members, _COLUMNS)
        title = f"Intensities of {modality if modality != 'unknown' else 'unknown modality'}"
        charts.append((title, ranges([(case.id, case.statistics[0]) for case in shown])))
    return charts


def _modalities(cases: Sequence[Case]) -> list[tuple[str, int, str]]:
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.modality].append(case)
    return [
        (name, len(members), ", ".join(sorted({c for case in members for c in case.channels})))
        for name, members in sorted(groups.items())
    ]


def _classes(cases: Sequence[Case]) -> list[tuple[int, str, int, str]]:
    """Value, names, cases in which it occurs, its median volume there."""
    volumes: dict[int, list[float]] = defaultdict(list)
    names: dict[int, set[str]] = defaultdict(set)
    for case in cases:
        for value, name in case.classes.items():
            names[value].add(name)
        for value, count in case.class_voxels.items():
            volumes[value].append(count * float(np.prod(case.spacing_mm)) / 1000)
    return [
        (
            value,
            " / ".join(sorted(names[value])) or "(not named)",
            len(volumes[value]),
            f"{np.median(volumes[value]):,.3g}" if volumes[value] else "–",
        )
        for value in sorted({*names, *volumes} - {0})
    ]


def _group(said: Iterable[tuple[str, str]]) -> list[Group]:
    """Put together what differs in paths and numbers only; the most frequent first."""
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for member, text in said:
        path = member.split("#", maxsplit=1)[0]
        brief = text.replace(f"{path}: ", "").replace(path, "").replace(f"{Path(path).name}: ", "")
        groups[re.sub(r"[-+]?\d[\d.,e+]*", "…", brief)].append((member, brief))
    result = []
    for members in sorted(groups.values(), key=len, reverse=True):
        texts = tuple(text for _, text in members)
        alike = len(set(texts)) == 1
        result.append(Group(texts[0], tuple(name for name, _ in members), () if alike else texts))
    return result


def _pictures(store: Store, cases: Sequence[Case]) -> list[tuple[Case, str | None]]:
    return [(case, _picture(store, case)) for case in _spread(cases, _PICTURES)]


def _picture(store: Store, case: Case) -> str | None:
    try:
        return thumbnail(store, case)
    except StoreError:
        return None


def _spread(cases: Sequence[Case], most: int) -> Sequence[Case]:
    """At most so many of the cases, evenly chosen."""
    every = max(1, -(-len(cases) // most))
    return cases[::every]


def _short(number: float | int) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} P"
