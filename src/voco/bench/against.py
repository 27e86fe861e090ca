"""One measurement beside an older one: ratios of ratios, since seconds are the machine's mood."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from voco.errors import UsageError


def read_results(file: Path) -> dict[str, Any]:
    """What an earlier ``voco bench`` wrote.

    Raises:
        UsageError: If it is not such a file.
    """
    try:
        results = json.loads(file.read_text())
        list(named_ratios(results))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{file} is not a performance.json that voco bench wrote ({error}). Give --against "
            "the file from the --out folder of an earlier run."
        ) from None
    return results


def named_ratios(results: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Every ratio of plain over ours, with a name that stays the same from run to run."""
    for row in results.get("timings", []):
        yield row["name"], row["ratio"]
        if row.get("ours_bytes"):
            yield f"{row['name']}: peak_bytes", row["plain_bytes"] / row["ours_bytes"]
    for row in results.get("step", {}).get("rows", []):
        kind = f"{row['device']}, {row['precision']}" + (", compiled" if row["compiled"] else "")
        for part in ("forward", "backward", "step", "peak_bytes"):
            yield f"{row['name']} ({kind}): {part}", row[part]["ratio"]


def against(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """A table of what both have: the two ratios, and the newer over the older."""
    old = dict(named_ratios(then))
    pairs = [(name, old[name], ratio) for name, ratio in named_ratios(now) if name in old]
    if not pairs:
        return ["Nothing that was measured here is in the older file."]
    return [
        "| plain / voco | then | now | now / then |",
        "|---|---|---|---|",
        *(f"| {name} | {a:.2f} | {b:.2f} | {b / a:.2f} |" for name, a, b in pairs),
    ]
