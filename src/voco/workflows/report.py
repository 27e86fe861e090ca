"""Tables in a folder to one page that a person reads."""

from pathlib import Path

from voco import __version__
from voco.data.store import write_atomically
from voco.evaluation.comparisons import COSTS_FILE, VALUES_FILE
from voco.reporting.tables import Found, find_tables


def report(folder: Path) -> Path:
    """Make ``report.html`` of a run, an evaluation, a probe, several of them, or a comparison.

    Reads tables and pictures only (``log.jsonl``, ``recipe.yaml``, ``environment.json``,
    ``metrics.csv``, ``summary.json``, ``comparison.json``, ``probe.csv``, ``probe.json``,
    ``*.png``; of a comparison ``table.csv``, ``runs.csv`` and ``comparison.yaml``): it can be made
    anew years later, without data and without a GPU. The page is one file that needs no other.

    Args:
        folder: Where the tables are, or the folders that hold them; the page is written here.

    Returns:
        The page.

    Raises:
        UsageError: If there is nothing to report on.
        DataError: If a table is damaged.
    """
    # Drawing needs matplotlib, which takes a second to import.
    from voco.reporting.evaluations import apart, evaluation_section  # noqa: PLC0415
    from voco.reporting.page import render  # noqa: PLC0415
    from voco.reporting.probes import probe_section  # noqa: PLC0415
    from voco.reporting.runs import finetuning_section, pretraining_section  # noqa: PLC0415

    folder = Path(folder)
    if (folder / VALUES_FILE).is_file() and (folder / COSTS_FILE).is_file():
        return _report_comparison(folder)
    found = find_tables(folder)
    sections = [evaluation_section(tables) for tables in found.evaluations]
    for section in sections:
        section.warnings += apart(found.evaluations)
    if found.finetuning:
        sections.append(finetuning_section(found.finetuning))
    sections += [probe_section(tables) for tables in found.probes]
    several = len(found.pretraining) > 1
    sections += [pretraining_section(run, named=several) for run in found.pretraining]
    page = render(folder.resolve().name, _made_by(found), sections)
    file = folder / "report.html"
    write_atomically(file, page.encode("utf-8"))
    return file


def _report_comparison(folder: Path) -> Path:
    from voco.reporting.compared import read_comparison  # noqa: PLC0415
    from voco.reporting.costs import conditions_section, cost_section  # noqa: PLC0415
    from voco.reporting.findings import backbone_sections, outcome_section  # noqa: PLC0415
    from voco.reporting.page import render  # noqa: PLC0415

    tables = read_comparison(folder)
    sections = [
        outcome_section(tables),
        *backbone_sections(tables),
        cost_section(tables),
        conditions_section(tables),
    ]
    done = sum(cost.status == "done" for cost in tables.costs)
    made_by = f"Comparison of {done} finished jobs. Made from tables by voco {__version__}."
    page = render(folder.resolve().name, made_by, sections)
    file = folder / "report.html"
    write_atomically(file, page.encode("utf-8"))
    return file


def _made_by(found: Found) -> str:
    counts = {
        "pre-training": len(found.pretraining),
        "fine-tuning": len(found.finetuning),
        "evaluation": len(found.evaluations),
        "probe": len(found.probes),
    }
    parts = [f"{thing} × {count}" for thing, count in counts.items() if count]
    return f"{', '.join(parts)}. Made from tables by voco {__version__}."
