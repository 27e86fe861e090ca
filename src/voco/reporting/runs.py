"""Sections about runs of training: what ran, how losses and health developed, what it saw."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from voco.figures import Curve, draw_curves
from voco.reporting import words
from voco.reporting.page import Picture, Section, Table, chart, photograph
from voco.reporting.tables import Line, RunTables

_TITLES = {
    "position_accuracy": "Right position named first",
    "similarity_inside": "Mean predicted similarity",
    "dead_share": "Overlapping pairs predicted as 0",
    "effective_rank": "Effective rank of the embeddings",
    "teacher_distance": "Distance of the teacher from the student",
    "dice_score": "Dice on training crops",
}
"""Headings of health figures; others have their own names."""

_CAPTIONS = {
    "position_accuracy": "Share of random crops whose most similar base is the one they overlap "
    "most. Dashed: the best that can be had without looking at the crop.",
    "similarity_inside": "Bases that a crop overlaps should be similar to it, the others not.",
    "dead_share": "There the clamped similarity gives no gradient; it should not stay near 1.",
    "effective_rank": "In how many directions the embeddings spread; near 1 they have collapsed.",
}

_TOGETHER = {"similarity_outside": "similarity_inside"}
"""Health figures that are drawn with another one."""

_ENDS = 0.1
"""Share of the log that stands for the end of a run."""


def pretraining_section(run: RunTables, *, named: bool = False) -> Section:
    """One run of pre-training, with its folder's name in the title if there are several."""
    where = f": {run.folder.name}" if named else ""
    section = Section(f"Pre-training with {_method(run)}{where}")
    section.lead += _pretraining_lead(run)
    probes = [line["probe"] for line in run.log if line.get("probe")]
    section.lead += words.probed(probes[-1]) if probes else []
    section.warnings += _unfinished(run)
    section.pictures += _seen(run, "method.png")
    section.pictures += [*_loss_charts(run.log), *_health_charts(run.log), *_probe_charts(run.log)]
    section.pictures += _seen(run, "views.png")
    section.facts += _facts(run).items()
    return section


def finetuning_section(runs: Sequence[RunTables]) -> Section:
    """All runs of fine-tuning, side by side; those that start from weights come first."""
    runs = sorted(runs, key=lambda run: run.notes["weights"].get("weights") is None)
    section = Section("Fine-tuning")
    section.lead.append(" ".join(_finetuning_lead(run, named=len(runs) > 1) for run in runs))
    for run in runs:
        section.warnings += _unfinished(run)
        section.warnings += [
            f"{run.folder.name}: {text}" for text in run.notes["weights"].get("warnings", [])
        ]
    logs = {run.folder.name: run.log for run in runs}
    section.pictures += _validation_charts(logs)
    section.pictures += _side_by_side(logs)
    if len(runs) == 1:
        section.facts += _facts(runs[0]).items()
    else:
        section.tables.append(_facts_table(runs, "What ran"))
    return section


# --- sentences ------------------------------------------------------------------------------------


def _pretraining_lead(run: RunTables) -> list[str]:
    held_out = [line["holdout"] for line in run.log if line.get("holdout")]
    if held_out:
        found = words.accuracy_against_chance(held_out[-1], "the held-out crops")
        if found:
            return found
    ends = _end(run.log, "health")
    return words.accuracy_against_chance(ends, "the training crops") or [_counts(run)]


def _finetuning_lead(run: RunTables, *, named: bool) -> str:
    start = f"{run.folder.name}: " if named else ""
    looks = [line for line in run.log if line.get("validation")]
    if not looks:
        return start + _counts(run)
    last = looks[-1]
    figures = ", ".join(
        f"{words.METRICS.get(name, words.plain(name))} {words.value(number)}"
        for name, number in last["validation"].items()
    )
    held_out = len(run.notes["cases"].get("validation", []))
    on = f"{words.count(held_out, 'validation case')}" if held_out else "the validation cases"
    return f"{start}{figures} on {on} after {words.count(last['step'], 'step')}."


def _counts(run: RunTables) -> str:
    done, steps = run.steps
    return f"{done} of {words.count(steps, 'step')} done."


def _unfinished(run: RunTables) -> list[str]:
    done, steps = run.steps
    if run.notes["handover"] or not steps:
        return []
    return [
        f"{run.folder.name} is not finished: its log ends at step {done} of {steps}, and no "
        "weights are handed over. The same command with --resume goes on with it."
    ]


# --- pictures -------------------------------------------------------------------------------------


def _seen(run: RunTables, name: str) -> list[Picture]:
    """A picture that the run drew of what the method sees, if it did."""
    captions = {
        "method.png": "What the method sees and predicts on cases that it does not learn from, "
        "after the last step.",
        "views.png": "The first batch as the method sees it, before anything is learnt.",
    }
    file = run.folder / name
    return [photograph(file, captions[name], captions[name])] if file.is_file() else []


def _loss_charts(log: Sequence[Line]) -> list[Picture]:
    held_out = _columns(log, "holdout")
    chance = _columns(log, "health").get("loss_chance")
    total = _curves("Loss", _scalar(log, "loss", "training"), held_out.get("loss"), chance)
    terms = _columns(log, "losses")
    pictures = [total]
    if len(terms) > 1:
        pictures += [
            _curves(
                f"Loss: {words.plain(name)}", curve._replace(name="training"), held_out.get(name)
            )
            for name, curve in terms.items()
        ]
    return [picture for picture in pictures if picture is not None]


def _health_charts(log: Sequence[Line]) -> list[Picture]:
    health, held_out = _columns(log, "health"), _columns(log, "holdout")
    pictures = []
    for name, curve in health.items():
        if name.endswith("_chance") or _TOGETHER.get(name) in health:
            continue
        partners = [other for other, main in _TOGETHER.items() if main == name and other in health]
        if partners:
            curves = [health[n]._replace(name=n.rpartition("_")[2]) for n in (name, *partners)]
            pictures.append(_drawn(_title(name), curves, _CAPTIONS.get(name, "")))
            continue
        chance = health.get(f"{name.removesuffix('_accuracy')}_chance")
        first = curve._replace(name="training")
        pictures.append(
            _curves(_title(name), first, held_out.get(name), chance, _CAPTIONS.get(name))
        )
    return [picture for picture in pictures if picture is not None]


def _probe_charts(log: Sequence[Line]) -> list[Picture]:
    figures = _columns(log, "probe")
    pictures = []
    for probe, called in words.PROBES.items():
        name = f"{probe}_balanced_accuracy"
        if name not in figures:
            continue
        named = {
            "this network": figures[name],
            "untrained": figures.get(f"untrained_{name}"),
            "chance": figures.get("balanced_accuracy_chance"),
        }
        curves = [
            curve._replace(name=text, level=text == "chance")
            for text, curve in named.items()
            if curve is not None
        ]
        title = f"{called[:1].upper()}{called[1:]}: balanced accuracy"
        caption = "Of frozen features, on labelled cases that the probe does not learn from."
        pictures.append(_drawn(title, curves, caption))
    return pictures


def _validation_charts(logs: Mapping[str, Sequence[Line]]) -> list[Picture]:
    columns = {run: _columns(log, "validation") for run, log in logs.items()}
    metrics = dict.fromkeys(name for found in columns.values() for name in found)
    pictures = []
    for metric in metrics:
        curves = [f[metric]._replace(name=run) for run, f in columns.items() if metric in f]
        # One look at the end is a number, said above, and no development.
        if max(len(curve.steps) for curve in curves) > 1:
            title = f"Validation: {words.METRICS.get(metric, words.plain(metric))}"
            pictures.append(_drawn(title, curves, "On cases that are not learnt from."))
    return pictures


def _side_by_side(logs: Mapping[str, Sequence[Line]]) -> list[Picture]:
    pictures = []
    losses = [c for run, log in logs.items() if (c := _scalar(log, "loss", run)) is not None]
    if losses:
        pictures.append(_drawn("Training loss", losses))
    columns = {run: _columns(log, "health") for run, log in logs.items()}
    for name in dict.fromkeys(name for found in columns.values() for name in found):
        curves = [f[name]._replace(name=run) for run, f in columns.items() if name in f]
        pictures.append(_drawn(_title(name), curves))
    return pictures


def _curves(
    title: str,
    training: Curve | None,
    held_out: Curve | None,
    chance: Curve | None = None,
    caption: str | None = None,
) -> Picture | None:
    curves = [training] if training else []
    if held_out:
        curves.append(held_out._replace(name="held out"))
    if chance and curves:
        curves.append(chance._replace(name="chance", level=True))
    return _drawn(title, curves, caption or "") if curves else None


def _drawn(title: str, curves: Sequence[Curve], caption: str = "") -> Picture:
    # One order of magnitude reads well on a linear axis; two do not.
    values = [value for curve in curves if not curve.level for value in curve.values]
    log = min(values) > 0 and max(values) > 50 * min(values)
    return chart(draw_curves(curves, title, log=log), caption)


def _title(name: str) -> str:
    return _TITLES.get(name, words.plain(name)[:1].upper() + words.plain(name)[1:])


def _scalar(log: Iterable[Line], key: str, name: str) -> Curve | None:
    points = [(line["step"], line[key]) for line in log if line.get(key) is not None]
    steps, values = [step for step, _ in points], [number for _, number in points]
    return Curve(name, steps, values) if points else None


def _columns(log: Iterable[Line], key: str) -> dict[str, Curve]:
    """The named figures under a key, each as a curve."""
    points: dict[str, tuple[list[float], list[float]]] = {}
    for line in log:
        for name, number in (line.get(key) or {}).items():
            steps, values = points.setdefault(name, ([], []))
            steps.append(line["step"])
            values.append(number)
    return {name: Curve(name, steps, values) for name, (steps, values) in points.items()}


def _end(log: Sequence[Line], key: str) -> dict[str, float]:
    """Means over the last tenth of the log."""
    last = log[-max(1, round(_ENDS * len(log))) :]
    return {name: statistics.fmean(c.values) for name, c in _columns(last, key).items()}


# --- facts ----------------------------------------------------------------------------------------


def _facts_table(runs: Sequence[RunTables], caption: str) -> Table:
    facts = [_facts(run) for run in runs]
    names = dict.fromkeys(name for each in facts for name in each)
    rows = [[name, *(each.get(name, "–") for each in facts)] for name in names]
    return Table(caption, ["", *(run.folder.name for run in runs)], rows)


def _facts(run: RunTables) -> dict[str, str]:
    recipe, environment = run.recipe, run.environment
    versions = environment.get("versions", {})
    done, steps = run.steps
    optimizer = recipe.get("optimizer", {})
    facts: dict[str, Any] = {
        "method" if run.pretrains else "task": _method(run),
        "network": recipe.get("backbone", {}).get("name"),
        "starts from": _start(run),
        "trained on": _cases(run),
        "left out": _left_out(run),
        "steps": f"{done} of {steps}" if done != steps else str(steps),
        "batch": _batch(run),
        "learning rate": optimizer.get("lr"),
        "precision": recipe.get("precision"),
        "seed": recipe.get("seed"),
        "time": words.duration(run.log[-1]["seconds"]) if run.log else None,
        "throughput": _throughput(run.log),
        "waiting for data": _waiting(run.log),
        "most memory": words.size(run.log[-1]["memory_bytes"]) if run.log else None,
        "machine": _machine(environment),
        "versions": ", ".join(
            f"{name} {versions[name]}" for name in ("voco", "torch", "monai") if name in versions
        ),
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def _method(run: RunTables) -> str:
    chosen = run.recipe.get("method" if run.pretrains else "task", {})
    names = {"voco": "VoCo"}
    name = names.get(chosen.get("name", ""), str(chosen.get("name", "?")))
    return f"{name} (variant {chosen['variant']})" if chosen.get("variant") else name


def _start(run: RunTables) -> str | None:
    weights = run.notes["weights"]
    if weights:
        source = weights.get("weights")
        # What follows names every new tensor.
        filled = str(weights.get("summary")).partition(";")[0]
        return f"{Path(source).name}: {filled}" if source else "scratch"
    return "random weights" if run.environment.get("weights") is None else "given weights"


def _cases(run: RunTables) -> str | None:
    split = run.notes["cases"]
    if split:
        held_out = words.count(len(split.get("validation", [])), "case")
        return f"{words.count(len(split.get('train', [])), 'case')}, {held_out} held out"
    data = run.notes["handover"].get("data", [])
    return words.count(sum(part["cases"] for part in data), "case") if data else None


def _left_out(run: RunTables) -> str | None:
    """Cases that were not learnt from since they are to be tested on."""
    guarded = run.notes["handover"].get("guarded", [])
    if not guarded:
        return None
    copies = words.count(run.notes["handover"].get("left_out", 0), "case")
    tested = words.count(sum(part["cases"] for part in guarded), "excluded case")
    return f"{copies} for the sake of {tested}"


def _batch(run: RunTables) -> str | None:
    size = run.recipe.get("batch_size")
    processes = run.environment.get("processes", 1)
    if size is None:
        return None
    each = words.count(size, "volume")
    return each if processes == 1 else f"{each} in each of {processes} processes"


def _throughput(log: Sequence[Line]) -> str | None:
    rates = [line["volumes_per_second"] for line in log[1:] if "volumes_per_second" in line]
    return f"{statistics.median(rates):.2f} volumes/s (median)" if rates else None


def _waiting(log: Sequence[Line]) -> str | None:
    shares = [line["data_share"] for line in log[1:] if "data_share" in line]
    return f"{statistics.median(shares):.1%} of the time (median)" if shares else None


def _machine(environment: Mapping[str, Any]) -> str:
    cores = environment.get("cores")
    threads = f", {words.count(cores, 'core')}" if cores else ""
    return f"{environment.get('device', '')}{threads}"
