"""The command line: parse, call one workflow, print what came out.

A command is a function: its signature gives the options, its docstring gives ``--help``, its
return value is the exit status. Heavy imports happen inside, so ``voco --help`` answers at once.
"""

import contextlib
import difflib
import functools
import inspect
import io
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from voco import __version__
from voco.errors import ConfigError, DataError, Interrupted, StoreError, UsageError, VocoError
from voco.shipped import shipped, shipped_or_own

if TYPE_CHECKING:
    from voco.config import Config

DONE, INCOMPLETE, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses: all done; some inputs failed and were reported; wrong usage; Ctrl-C."""

Words = Sequence[str]
Several = Annotated[tuple[Path, ...], tyro.conf.arg(help_behavior_hint="(required)")]
"""One file or folder, or more; the parser itself would let none pass."""


def main(arguments: Words | None = None) -> int:
    """Run a command and return its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return _dispatch(words)
    except Interrupted as stop:
        return _complain(str(stop), debug, stop.status)
    except KeyboardInterrupt:
        return _complain("interrupted; what was finished is whole.", debug, INTERRUPTED)
    except (UsageError, ConfigError) as error:
        return _complain(str(error), debug, USAGE)
    except (DataError, StoreError) as error:
        # Each process reads scans of its own, so each speaks for itself.
        return _complain(str(error), debug, INCOMPLETE, everywhere=True)
    except VocoError as error:
        return _complain(str(error), debug, INCOMPLETE)
    except OSError as error:
        return _system(error, debug)
    except Exception as error:  # noqa: BLE001 (the edge of the program: nobody gets a traceback)
        return _complain(_unforeseen(error), debug, INCOMPLETE)


def _system(error: OSError, debug: bool) -> int:  # noqa: FBT001
    if isinstance(error, BrokenPipeError):  # who read our output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INCOMPLETE
    return _complain(f"{error}.", debug, INCOMPLETE)


def _unforeseen(error: Exception) -> str:
    # By its name, since torch's own class would have to be imported.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            f"memory does not suffice ({str(error).split('. GPU')[0] or 'of this machine'}). Set a "
            "smaller batch_size, a larger optimizer.accumulate, or precision bf16-mixed."
        )
    return f"internal error, please report it: {type(error).__name__}: {error}"


def _complain(message: str, debug: bool, status: int, *, everywhere: bool = False) -> int:  # noqa: FBT001
    if debug:
        traceback.print_exc()
    # Several processes of one run would say the same thing.
    if everywhere or os.environ.get("RANK", "0") == "0":
        hint = "" if debug or status != INCOMPLETE else "\n(--debug shows where)"
        print(f"voco: {message}{hint}", file=sys.stderr)
    return status


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in {"-h", "--help"}:
        print(_overview())
        return DONE if words else USAGE
    if words[0] == "--version":
        print(f"voco {__version__}")
        return DONE
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise UsageError(
            f"unknown command '{words[0]}'.{hint} The commands are: {', '.join(COMMANDS)}."
        )
    return COMMANDS[words[0]][1](words[1:])


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (summary, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: voco COMMAND ... [--debug]",
            "",
            "Self-supervised pre-training of 3D medical image networks.",
            "",
            *lines,
            "",
            "voco COMMAND --help tells more. Exit status: 0 all done, 1 some inputs failed and",
            "were reported, 2 wrong usage, 130 or 143 stopped by Ctrl-C or SIGTERM (a training",
            "finishes its step and writes a checkpoint before).",
        ]
    )


def _call(command: Callable[..., int], words: Words, name: str) -> int:
    """Parse the words by the command's signature and call it."""
    from pydantic import ValidationError

    from voco.config import explain

    marks = (tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff)
    command.__doc__ = _joined(command.__doc__ or "")
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = tyro.cli(
                _bound(command),
                args=list(words),
                prog=f"voco {name}",
                config=marks,
                use_underscores=True,
            )
    except ValidationError as error:
        raise ConfigError("\n".join(f"--{line}" for line in explain(error))) from None
    except SystemExit as stop:  # tyro has printed help, or says what is wrong with the words
        if stop.code in (None, 0):
            return DONE
        raise UsageError(_unframed(complaint.getvalue())) from None
    return parsed()


def _bound(command: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """A function of the same signature that calls the command later: parsing ends before it."""

    @functools.wraps(command)
    def bind(*values: Any, **named: Any) -> Callable[[], int]:  # noqa: ANN401
        return functools.partial(command, *values, **named)

    return bind


def _joined(docstring: str) -> str:
    """A docstring whose arguments take one line each: help wraps lines anew."""
    lines = inspect.cleandoc(docstring).splitlines()
    joined: list[str] = []
    for line in lines:
        if line.startswith(" " * 8) and joined:
            joined[-1] += f" {line.strip()}"
        else:
            joined.append(line)
    return "\n".join(joined)


def _unframed(complaint: str) -> str:
    """What is wrong with the words, without the frame around it."""
    body = complaint.strip().splitlines()[1:]  # the first line is the frame, with a title in it
    text = " ".join(line.strip("│|╰╯+ ") for line in body)
    # A rule across the frame parts what is wrong from what may help.
    parts = [part.strip() for part in re.split(r"[─-]{3,}", text)]
    return "\n".join(re.sub(r"\[/?bold\]| (?= )", "", part) for part in parts if part)


# --- data -----------------------------------------------------------------------------------------


def _phantom(words: Words) -> int:
    def phantom(
        out: Positional[Path], *, cases: int = 24, seed: int = 0, overwrite: bool = False
    ) -> int:
        """Generate labelled synthetic torso CTs: NIfTI in the layout of the Medical Decathlon.

        Args:
            out: Folder to write.
            cases: How many scans.
            seed: Same seed, same scans.
            overwrite: Replace what is there.
        """
        from voco.workflows.phantom import phantom as generate

        folder = generate(out, cases, seed, overwrite=overwrite)
        print(f"{cases} scans in {folder}")
        return DONE

    return _call(phantom, words, "phantom")


def _prepare(words: Words) -> int:
    def prepare(  # noqa: PLR0913 (one argument per option)
        sources: Positional[Several],
        *,
        out: Path,
        spacing_mm: tuple[float, ...] | None = None,
        foreground: bool = False,
        modality: str | None = None,
        workers: int | None = None,
        shard: str | None = None,
        overwrite: bool = False,
        dataset: str | None = None,
        partial: bool = False,
        split_files: Annotated[
            tuple[str, ...], tyro.conf.arg(help_behavior_hint="(default: those that come along)")
        ] = (),
    ) -> int:
        """Bring scans on disk into a store: RAS, one spacing, int16, chunked, checked.

        Args:
            sources: Files, folders (walked), dataset.json, nnU-Net raw or BIDS folders, lists.
            out: The store. What it holds already is kept.
            spacing_mm: Millimetres per voxel: one number, or three for x, y, z; each scan's own
                if not given.
            foreground: Cut volumes to the box that holds the body.
            modality: CT, MR, PT, ... for files that do not say (NIfTI, NRRD).
            workers: Processes; as many as there are cores if not given.
            shard: i/n (from 1): only every n-th case, for job arrays.
            overwrite: Make the store anew.
            dataset: The source is this data set as its owners distribute it: checks counts, label
                values and splits, and sets its spacing. A name, or the path of a description;
                '--dataset list' lists the names.
            partial: A data set may have fewer or more cases than its owners distribute.
            split_files: Splits of a data set: FILE with the columns case and split, or
                train=FILE validation=FILE, or 0=FILE of a JSON list whose fold 0 is held out.
        """
        from voco.workflows.prepare import prepare as run

        done = run(
            _some(sources, "source"),
            out,
            spacing_mm=_spacing(spacing_mm),
            foreground=foreground,
            modality=modality,
            workers=workers,
            shard=_shard(shard),
            overwrite=overwrite,
            dataset=dataset,
            partial=partial,
            split_files=split_files,
        )
        print(done)
        return DONE if done.complete else INCOMPLETE

    if [*words] in (["--dataset", "list"], ["--dataset=list"]):
        from voco.data.datasets import catalogue

        print(catalogue())
        return DONE
    return _call(prepare, words, "prepare")


def _some(paths: tuple[Path, ...], what: str) -> tuple[Path, ...]:
    if not paths:
        raise UsageError(f"no {what} is given; name at least one file or folder.")
    return paths


def _spacing(numbers: tuple[float, ...] | None) -> tuple[float, float, float] | None:
    if numbers is None:
        return None
    if len(numbers) not in {1, 3} or min(numbers) <= 0:
        raise UsageError(f"--spacing_mm takes one positive number or three, got {numbers}.")
    x, y, z = numbers * (3 // len(numbers))
    return (x, y, z)


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise UsageError(f"--shard takes i/n with 1 <= i <= n, such as 1/8; got '{text}'.")
    return (int(number), int(count))


def _verify(words: Words) -> int:
    def verify(path: Positional[Path], *, repair: bool = False) -> int:
        """Check every array of a store against its checksum.

        Args:
            path: The store.
            repair: Make damaged cases anew from their sources.
        """
        from voco.workflows.verify import verify as run

        found = run(path, repair=repair)
        print(found)
        return DONE if found.sound else INCOMPLETE

    return _call(verify, words, "verify")


def _leaks(words: Words) -> int:
    def leaks(
        seen: Positional[Several],
        *,
        against: tuple[Path, ...],
        out: Path | None = None,
        likeness: float | None = None,
        overwrite: bool = False,
    ) -> int:
        """Find scans that are both in what was learnt from and in what is tested on.

        Copies are found under any name, with another header, resampled, cut to the body, or with
        another window of intensities. The exit status is 1 if there are any.

        Of a store that keeps cases for testing (split test), those are tested on and the others
        learnt from.

        Args:
            seen: Stores, runs, or folders of scans that a network has learnt from.
            against: Stores, runs, or folders of scans that it is tested on.
            out: Folder for leaks.csv.
            likeness: How alike two scans must look, from 0.5 to 1; 0.9 if not given. Less shows
                doubtful pairs as well.
            overwrite: Replace what is there.
        """
        from voco.workflows.leaks import leaks as run

        seen = _some(seen, "store or run")
        found = run(seen, against, out, likeness=likeness, overwrite=overwrite)
        print(found)
        return DONE if found.clean else INCOMPLETE

    return _call(leaks, words, "leaks")


# --- training -------------------------------------------------------------------------------------


def _pretrain(words: Words) -> int:
    from voco.recipes import PretrainConfig

    path, config, rest = _recipe(PretrainConfig, words, "pretrain")

    def pretrain(
        *,
        data: tuple[Path, ...],
        out: Path,
        weights: Path | None = None,
        probe_data: Annotated[
            tuple[Path, ...], tyro.conf.arg(help_behavior_hint="(default: none)")
        ] = (),
        exclude: Annotated[
            tuple[Path, ...], tyro.conf.arg(help_behavior_hint="(default: none)")
        ] = (),
        resume: bool = False,
        overwrite: bool = False,
        recipe: Annotated[PretrainConfig, tyro.conf.arg(name="")] = config,
    ) -> int:
        """Pre-train a network on unlabelled scans.

        Args:
            data: One store, or several.
            out: The run folder.
            weights: Start from these instead of from random weights: a run folder or a weight
                file of anybody (the backbone), or one of a run's checkpoints/step-NNNNNNNN (the
                whole method, heads and teacher).
            probe_data: Labelled stores that the features are asked about every probe_every
                steps; the network never learns from them.
            exclude: Stores that will be tested on: copies of their test cases (of all their
                cases, if none has the split test) are not learnt from.
            resume: Go on from the last checkpoint in the run folder.
            overwrite: Replace what is there.
            recipe: Settings.
        """
        from voco.workflows.pretrain import pretrain as run
        from voco.workflows.report import report

        folder = run(
            recipe,
            data,
            out,
            resume=resume,
            overwrite=overwrite,
            weights=weights,
            probe_data=probe_data,
            exclude=exclude,
        )
        if _first_process():
            print(f"weights: {folder / 'weights.safetensors'}\nreport:  {report(folder)}")
        return DONE

    return _call(pretrain, rest, f"pretrain {path}")


def _probe(words: Words) -> int:
    from voco.recipes import ProbeConfig

    def probe(
        weights: Positional[Path],
        *,
        data: tuple[Path, ...],
        out: Path,
        device: str | None = None,
        overwrite: bool = False,
        settings: Annotated[ProbeConfig, tyro.conf.arg(name="")] = ProbeConfig(),  # noqa: B008
    ) -> int:
        """Ask frozen features which labels they tell apart: a linear probe and nearest neighbours.

        The untrained network with the random weights of the same seed is asked the same.

        Args:
            weights: A run folder, or its weight file.
            data: One store with labelled cases, or several.
            out: Folder to write.
            device: Such as cuda:1; the GPU if there is one, else the CPU.
            overwrite: Replace what is there.
            settings: Settings.
        """
        from voco.workflows.probe import probe as run

        print(run(weights, data, out, settings, device=device, overwrite=overwrite))
        return DONE

    return _call(probe, words, "probe")


def _finetune(words: Words) -> int:
    from voco.recipes import FinetuneConfig

    path, config, rest = _recipe(FinetuneConfig, words, "finetune")

    def finetune(
        *,
        data: tuple[Path, ...],
        weights: str,
        out: Path,
        resume: bool = False,
        overwrite: bool = False,
        recipe: Annotated[FinetuneConfig, tyro.conf.arg(name="")] = config,
    ) -> int:
        """Fine-tune a network on labelled scans, or train its twin from scratch.

        Args:
            data: One store, or several.
            weights: A run folder, a checkpoint, or a weight file of anybody ('voco inspect' tells
                what it is); none trains from scratch.
            out: The run folder.
            resume: Go on from the last checkpoint in the run folder.
            overwrite: Replace what is there.
            recipe: Settings.
        """
        from voco.workflows.finetune import finetune as run
        from voco.workflows.report import report

        start = None if weights == "none" else Path(weights)
        folder = run(recipe, data, start, out, resume=resume, overwrite=overwrite)
        if _first_process():
            print(f"weights: {folder / 'weights.safetensors'}\nreport:  {report(folder)}")
        return DONE

    return _call(finetune, rest, f"finetune {path}")


def _compare(words: Words) -> int:
    from voco.comparison.settings import RAW_KEYS

    path, given = _named_recipe(words, "compare")
    changes, rest = _changes(given, RAW_KEYS)

    def compare(
        *, out: Path, resume: bool = False, overwrite: bool = False, dry_run: bool = False
    ) -> int:
        """Run several methods under one protocol, and say which was better beyond chance.

        Any number of processes may work in one folder at the same time, also on several
        machines: each started with --resume. Keys of the recipe are options as well, with values
        as in YAML: --labels "[5, 10]", --pretraining.steps 600, --data STORE.

        Args:
            out: The comparison's folder.
            resume: Go on with what lies there; failed jobs are tried once more.
            overwrite: Remove what lies there.
            dry_run: Only say what would be run, and what is done already.
        """
        from voco.comparison.run import compare as run
        from voco.comparison.run import preview

        config = _comparison(path, changes)
        if dry_run:
            print(preview(config, out))
            return DONE
        done = run(config, out, resume=resume, overwrite=overwrite)
        print(f"{done}\nreport: {out / 'report.html'}")
        return DONE if done.complete else INCOMPLETE

    status = _call(compare, rest, f"compare {path}")
    if {"-h", "--help"} & {*rest}:
        print(_keys_in_words())
    return status


def _keys_in_words() -> str:
    """The keys of a comparison's recipe, and what they are for."""
    import textwrap

    from voco.comparison.settings import ComparisonConfig

    common = {"pretraining": "Settings of pre-training for all methods, over their own recipes."}
    fields = ComparisonConfig.model_fields.items()
    known = common | {name: field.description or "" for name, field in fields}
    wrap = textwrap.TextWrapper(
        shutil.get_terminal_size().columns, initial_indent=" " * 4, subsequent_indent=" " * 4
    )
    blocks = [f"--{name}\n{wrap.fill(text)}" for name, text in known.items()]
    return "\n".join(["keys of the recipe, as options with values as YAML has them:", "", *blocks])


def _comparison(path: str, changes: dict[str, Any]) -> Any:  # noqa: ANN401 (imported late)
    """The recipe of a comparison, with what the command line changes in it."""
    from voco.comparison.settings import merged, read_comparison
    from voco.config import read_yaml

    file = shipped_or_own("recipe", path)

    def find(name: str) -> Path:
        beside = file.parent / name
        return beside if beside.is_file() else shipped_or_own("recipe", name)

    return read_comparison(merged(read_yaml(file), changes), find, str(file))


def _changes(words: Words, keys: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Nested settings from ``--key.sub value`` where the key is one of the recipe's; the rest."""
    import yaml

    changes: dict[str, Any] = {}
    rest: list[str] = []
    values: list[str] | None = None
    found: list[tuple[str, list[str]]] = []
    for word in words:
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if word.startswith("--"):
            ours = name.partition(".")[0] in keys
            values = [word.partition("=")[2]] if ours and "=" in word else []
            values = values if ours else None
            if values is not None:
                found.append((name, values))
        if values is None:
            rest.append(word)
        elif not word.startswith("--"):
            values.append(word)
    for name, texts in found:
        try:
            read = [yaml.safe_load(text) for text in texts]
        except yaml.YAMLError as error:
            raise UsageError(f"--{name}: not a value as YAML has it ({error}).") from None
        if not read:
            raise UsageError(f"--{name}: a value is missing.")
        *outer, last = name.split(".")
        place = changes
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = read[0] if len(read) == 1 else read
    return changes, rest


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _recipe(kind: "type[Config]", words: Words, command: str) -> "tuple[str, Any, list[str]]":
    """The recipe that the first word names, and the words after it."""
    from voco.config import parse, read_yaml

    name, rest = _named_recipe(words, command)
    path = shipped_or_own("recipe", name)
    values = read_yaml(path)
    for section in ("method", "backbone", "intensity", "task"):
        _switch(values, section, rest)
    return name, parse(kind, values, str(path)), rest


def _named_recipe(words: Words, command: str) -> tuple[str, list[str]]:
    """The word that names a recipe, and those after it."""
    if not words or words[0].startswith("-"):
        names = ", ".join(shipped("recipe"))
        text = (
            f"usage: voco {command} RECIPE [OPTIONS]\n\nRECIPE is a YAML file, or one of those "
            f"that come along: {names}.\n'voco {command} RECIPE --help' shows its settings."
        )
        if words and words[0] in {"-h", "--help"}:
            print(text)
            raise SystemExit(DONE)
        raise UsageError(f"a recipe is missing.\n{text}")
    return words[0], list(words[1:])


def _switch(values: dict[str, Any], section: str, words: list[str]) -> None:
    """``--backbone.name unetr`` takes that backbone's own defaults, and says so."""
    flag = f"--{section}.name"
    if flag in words[:-1]:
        name = words[words.index(flag) + 1]
        if values.get(section, {}).get("name") != name:
            values[section] = {"name": name}
            print(f"voco: {section} is now {name}, with its own defaults.", file=sys.stderr)


# --- using ----------------------------------------------------------------------------------------


def _inspect(words: Words) -> int:
    def inspect(
        file: Positional[Path],
        *,
        against: Annotated[
            tuple[str, ...], tyro.conf.arg(help_behavior_hint="(default: the one it is of)")
        ] = (),
        json: bool = False,
    ) -> int:
        """Say what weights are, where they came from, and what of them fits.

        None of their code is run.

        Args:
            file: A run folder, a checkpoint of a run, or a weight file of anybody.
            against: Backbones to compare it with, by name.
            json: Print it for programs.
        """
        from dataclasses import asdict
        from json import dumps

        from voco.workflows.inspect import inspect as run

        found = run(file, against)
        print(dumps(asdict(found), indent=2) if json else found)
        wanted = [fit.fits for fit in found.fits] if against else [True]
        return DONE if any(wanted) else INCOMPLETE

    return _call(inspect, words, "inspect")


def _predict(words: Words) -> int:
    def predict(  # noqa: PLR0913 (one argument per option)
        run: Positional[Path],
        scans: Positional[Several],
        *,
        out: Path,
        flips: bool = False,
        probabilities: bool = False,
        mask_format: Annotated[
            Literal["nifti", "dicomseg", "both"], tyro.conf.arg(name="format")
        ] = "nifti",
        modality: str | None = None,
        device: str | None = None,
        overwrite: bool = False,
        dataset: str | None = None,
        only: Literal["train", "validation", "unused"] | None = None,
    ) -> int:
        """Predict masks, or scores, on the original grid of each scan.

        Args:
            run: A run folder of fine-tuning.
            scans: Files, DICOM folders, or folders of scans.
            out: Folder to write.
            flips: Average over mirrored copies (only where left and right may be exchanged).
            probabilities: Write a probability map per class beside each mask.
            mask_format: dicomseg writes DICOM segmentations of scans that are DICOM (pip install
                'voco[dicomseg]'); both writes NIfTI of all scans as well.
            modality: CT, MR, PT, ... for files that do not say (NIfTI, NRRD).
            device: Such as cuda:1; the GPU if there is one, else the CPU.
            overwrite: Replace what is there.
            dataset: The scans are in the folder of this data set; references.csv is written too.
            only: Only the scans that the run learnt from, held out, or left alone.
        """
        from voco.workflows.predict import predict as go

        done = go(
            run,
            _some(scans, "scan"),
            out,
            flips=flips,
            probabilities=probabilities,
            mask_format=mask_format,
            modality=modality,
            device=device,
            overwrite=overwrite,
            dataset=dataset,
            only=only,
        )
        print(done)
        return DONE if done.complete else INCOMPLETE

    return _call(predict, words, "predict")


def _embed(words: Words) -> int:
    from voco.recipes import EmbedConfig

    def embed(
        weights: Positional[Path],
        scans: Positional[Several],
        *,
        out: Path,
        modality: str | None = None,
        device: str | None = None,
        overwrite: bool = False,
        settings: Annotated[EmbedConfig, tyro.conf.arg(name="")] = EmbedConfig(),  # noqa: B008
    ) -> int:
        """Write feature vectors of scans, or of a grid of crops, from a frozen encoder.

        Args:
            weights: A run folder, or its weight file.
            scans: Files, DICOM folders, folders of scans, or lists.
            out: File to write: .npz, or .parquet (pip install 'voco[parquet]').
            modality: CT, MR, PT, ... for files that do not say (NIfTI, NRRD).
            device: Such as cuda:1; the GPU if there is one, else the CPU.
            overwrite: Replace what is there.
            settings: Settings.
        """
        from voco.workflows.embed import embed as run

        done = run(
            weights,
            _some(scans, "scan"),
            out,
            settings,
            modality=modality,
            device=device,
            overwrite=overwrite,
        )
        print(done)
        return DONE if done.complete else INCOMPLETE

    return _call(embed, words, "embed")


def _evaluate(words: Words) -> int:
    def evaluate(  # noqa: PLR0913 (one argument per option)
        predictions: Positional[Path],
        references: Positional[Path],
        *,
        out: Path,
        against: Path | None = None,
        images: Path | None = None,
        tolerance_mm: float = 2.0,
        seed: int = 0,
        overwrite: bool = False,
        regions: tuple[str, ...] | None = None,
        background: bool = False,
        spacing_mm: tuple[float, ...] | None = None,
    ) -> int:
        """Measure predictions against references: Dice, NSD, HD95, or accuracy, AUROC, F1.

        Args:
            predictions: Folder of masks, or scores.csv.
            references: Folder of masks, a CSV that names them (case, label), or one of targets.
            out: Folder to write.
            against: A second folder of predictions, compared case by case with the first.
            images: Folder of the scans, for pictures of the best, the median and the worst case.
            tolerance_mm: Distance within which two surfaces agree (NSD).
            seed: Of the bootstrap.
            overwrite: Replace what is there.
            regions: Unions of labels to measure instead of labels: TC=1,4 WT=1,2,4 ET=4. Not given:
                what labels.json beside the predictions says; 'none': single labels.
            background: Count label 0 as a structure. Another convention than without.
            spacing_mm: Bring both masks to this spacing first. Another convention than without.
        """
        from voco.workflows.evaluate import evaluate as run

        done = run(
            predictions,
            references,
            out,
            against=against,
            images=images,
            tolerance_mm=tolerance_mm,
            seed=seed,
            overwrite=overwrite,
            regions=_regions(regions),
            background=background,
            spacing_mm=_spacing(spacing_mm),
        )
        print(done)
        return DONE if done.complete else INCOMPLETE

    return _call(evaluate, words, "evaluate")


def _regions(texts: tuple[str, ...] | None) -> dict[str, tuple[int, ...]] | None:
    if texts is None:
        return None
    found: dict[str, tuple[int, ...]] = {}
    for text in () if texts == ("none",) else texts:
        name, _, values = text.partition("=")
        numbers = values.split(",")
        if not name or not all(number.isdigit() for number in numbers):
            raise UsageError(f"--regions takes NAME=1,4 (label values), or none; got '{text}'.")
        found[name] = tuple(map(int, numbers))
    return found


def _export(words: Words) -> int:
    def export(
        weights: Positional[Path],
        *,
        to: Literal["monai", "nnunet", "onnx", "huggingface"],
        out: Path,
        size: tuple[int, int, int] | None = None,
        opset: int | None = None,
        licence: str | None = None,
        overwrite: bool = False,
    ) -> int:
        """Write a trained network for MONAI, nnU-Net, ONNX or the Hugging Face Hub.

        Args:
            weights: A run folder, or its weight file.
            to: A MONAI bundle, nnU-Net's checkpoint, an ONNX file, or a folder for the Hub.
            out: Folder (monai, huggingface) or file (nnunet, onnx) to write.
            size: Voxels along x, y, z: of nnU-Net's patches, or of what an ONNX graph takes; the
                network's or the task's own if not given, else 96 96 96.
            opset: Version of ONNX's operators; 18 if not given.
            licence: Of the weights, for the model card, as the Hub names it: cc-by-4.0, ...
            overwrite: Replace what is there.
        """
        from voco.workflows.export import export as run

        print(run(weights, to, out, size=size, opset=opset, licence=licence, overwrite=overwrite))
        return DONE

    return _call(export, words, "export")


def _report(words: Words) -> int:
    def report(folder: Positional[Path]) -> int:
        """Make report.html anew from the tables in a folder; needs no data and no GPU.

        Args:
            folder: A run, an evaluation, a probe, a folder of several, or a comparison.
        """
        from voco.workflows.report import report as run

        print(run(folder))
        return DONE

    return _call(report, words, "report")


def _demo(words: Words) -> int:
    def demo(*, out: Path, seed: int = 0, overwrite: bool = False) -> int:
        """Run the main job on generated torsos, from scans to a report, in five minutes.

        Args:
            out: Folder to write.
            seed: Of the scans and of the training.
            overwrite: Replace what is there.
        """
        from voco.demo import demo as run

        print(run(out, shipped("recipe"), seed, overwrite=overwrite))
        return DONE

    return _call(demo, words, "demo")


def _bench(words: Words) -> int:
    def bench(
        names: Positional[tuple[str, ...]] = (),
        *,
        out: Path,
        repeats: int = 5,
        against: Path | None = None,
        small: bool = False,
        device: Literal["cpu", "cuda"] = "cpu",
        compiled: bool = False,
    ) -> int:
        """Measure speed and memory as ratios against plain reference paths.

        Args:
            names: Subjects; all if none is named.
            out: Folder for the tables.
            repeats: Alternations of the two paths.
            against: The performance.json of an earlier run; its ratios are set beside these.
            small: Take training steps of small networks, which need seconds.
            device: Where training steps are taken.
            compiled: Whether our training steps go through torch.compile.
        """
        from voco.bench.run import bench as run

        print(
            run(
                names,
                out,
                repeats=repeats,
                against=against,
                small=small,
                device=device,
                compiled=compiled,
            )
        )
        return DONE

    return _call(bench, words, "bench")


COMMANDS: dict[str, tuple[str, Callable[[Words], int]]] = {
    "phantom": ("generate labelled synthetic torso CTs", _phantom),
    "prepare": ("bring scans on disk into a store", _prepare),
    "verify": ("check a store, and repair it", _verify),
    "leaks": ("scans that are both learnt from and tested on", _leaks),
    "pretrain": ("pre-train a network on unlabelled scans", _pretrain),
    "probe": ("what frozen features tell, beside an untrained network's", _probe),
    "finetune": ("fine-tune it on labelled scans, or train from scratch", _finetune),
    "compare": ("several methods under one protocol, with intervals and tests", _compare),
    "inspect": ("what a weight file is, and what of it fits", _inspect),
    "predict": ("masks or scores, on the original grid of each scan", _predict),
    "embed": ("feature vectors of scans, or of a grid of crops", _embed),
    "evaluate": ("metrics of predictions, with intervals", _evaluate),
    "export": ("weights for MONAI, nnU-Net, ONNX or the Hugging Face Hub", _export),
    "report": ("(re)build report.html from the tables in a folder", _report),
    "demo": ("all of it on generated torsos, in five minutes", _demo),
    "bench": ("speed and memory as ratios against plain paths", _bench),
}
"""What can be called: its summary, and the function."""
