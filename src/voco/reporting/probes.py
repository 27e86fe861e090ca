"""Sections about probes: what frozen features tell, beside those of an untrained network."""

from collections.abc import Iterator

from voco.reporting import words
from voco.reporting.page import Section, Table
from voco.reporting.tables import ProbeTables

_NETWORKS = {"trained": "the trained network", "untrained": "the untrained one"}


def probe_section(tables: ProbeTables) -> Section:
    """How the two networks compare, and what they tell of each structure."""
    summary = tables.summary
    section = Section(f"Probe of frozen features: {tables.folder.name}")
    section.lead += _lead(tables)
    section.warnings += [f"{text[:1].upper()}{text[1:]}." for text in summary["warnings"]]
    section.tables += [_figures(tables), *_structures(tables)]
    cases = summary["cases"]
    section.facts += {
        "weights": summary["weights"],
        "asked about": summary["settings"]["of"],
        "learnt from": words.listed(cases["train"]),
        "asked": words.listed(cases["test"]),
        "time": words.duration(summary["seconds"]),
    }.items()
    return section


def _lead(tables: ProbeTables) -> Iterator[str]:
    for probe, entry in tables.summary["comparison"].items():
        pair = {"names": list(_NETWORKS.values()), "mean": {"balanced_accuracy": entry}}
        called = words.PROBES[probe]
        for sentence in words.outcome(pair):
            yield f"{called[:1].upper()}{called[1:]}: {sentence}"


def _figures(tables: ProbeTables) -> Table:
    """Every probe and metric; the mean of the lead is over cases, these are over all rows."""
    networks, chance = tables.summary["networks"], tables.summary["chance"]
    rows = [
        [
            f"{words.PROBES[probe]}, {words.METRICS[metric]}",
            words.value(value),
            words.value(networks["untrained"][probe][metric]),
            words.value(chance[metric]),
        ]
        for probe, metrics in networks["trained"].items()
        for metric, value in metrics.items()
    ]
    note = f"Over all {tables.summary['settings']['of']} that were asked about."
    return Table("What features tell", ["", "trained", "untrained", "chance"], rows, note)


def _structures(tables: ProbeTables) -> list[Table]:
    found = {
        (row["network"], row["probe"], row["structure"]): float(row["value"])
        for row in tables.rows
        if row["metric"] == "found"
    }
    columns = [(network, probe) for probe in words.PROBES for network in _NETWORKS]
    rows = [
        [
            words.plain(structure),
            *(words.value(found.get((network, probe, structure))) for network, probe in columns),
        ]
        for structure in dict.fromkeys(structure for _, _, structure in found)
    ]
    headings = [f"{words.PROBES[probe]}, {network}" for network, probe in columns]
    return [Table("Share that is found, by class", ["", *headings], rows, folded=True)]
