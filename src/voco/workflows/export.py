"""Trained networks in the formats of other programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from voco.errors import UsageError
from voco.exporting.network import HandedOn, read_network
from voco.shapes import Shape3
from voco.tasks.segmentation import Segmentation

Format = Literal["monai", "nnunet", "onnx", "huggingface"]
"""Of other programs."""

_FOLDERS: tuple[Format, ...] = ("monai", "huggingface")
"""Formats of several files."""

_OPTIONS: dict[str, tuple[Format, ...]] = {
    "size": ("nnunet", "onnx"),
    "opset": ("onnx",),
    "licence": ("huggingface",),
}
"""What may be said about which formats."""


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        files: All files.
        notes: What whoever takes them should know.
    """

    files: tuple[Path, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([*map(str, self.files), *(f"note: {note}" for note in self.notes)])


def export(
    weights: Path | str,
    to: Format,
    out: Path | str,
    *,
    size: Shape3 | None = None,
    opset: int | None = None,
    licence: str | None = None,
    overwrite: bool = False,
) -> Export:
    """Write a network for another program.

    Args:
        weights: A run folder, or its weight file.
        to: ``monai`` (a bundle), ``nnunet`` (a checkpoint), ``onnx`` (a file) or ``huggingface``
            (a folder for the Hub).
        out: Folder (``monai``, ``huggingface``) or file to write.
        size: Voxels of a volume along x, y and z: those that nnU-Net is to train on, or that an
            ONNX graph takes. Else what the network or its task prescribes, or 96 x 96 x 96.
        opset: Version of ONNX's operators.
        licence: Of the weights, as the Hugging Face Hub names it.
        overwrite: Replace what is there.

    Raises:
        WeightsError: If the weights are damaged, or the other program has no such network.
        UsageError: If an option is of another format, files are in the way, or a package is
            missing.
        ConfigError: If the network cannot take ``size``.
    """
    weights, out = Path(weights), Path(out)
    _check(to, {"size": size, "opset": opset, "licence": licence})
    _check_free(out, folder=to in _FOLDERS, overwrite=overwrite)
    if to == "onnx":
        from voco.exporting import onnx  # noqa: PLC0415 (needs an extra)

        onnx.require()
    network = read_network(weights)
    notes = [*_untrained(network)]
    if to == "monai":
        from voco.exporting.monai import (  # noqa: PLC0415 (one format of several)
            MERGING,
            merges_as_once,
            write_bundle,
        )

        files = write_bundle(network, out)
        notes += _without_masks(network)
        if merges_as_once(network):
            notes.append(
                f"patches are merged as in MONAI up to 1.4: build the network from {MERGING}.py in "
                "the bundle, as its configuration does; MONAI's class of today computes otherwise"
            )
    elif to == "nnunet":
        from voco.exporting.nnunet import write_checkpoint  # noqa: PLC0415

        files = write_checkpoint(network, out, size)
        notes += _standardised(network)
    elif to == "onnx":
        from voco.exporting.onnx import write_onnx  # noqa: PLC0415

        made = write_onnx(network, out, size, opset)
        files = made.files
        notes.append(str(made))
    else:
        from voco.exporting.huggingface import write_folder  # noqa: PLC0415

        files = write_folder(network, weights, out, licence)
        if licence is None:
            notes.append("the model card names no licence; --licence does")
    return Export(tuple(files), tuple(notes))


def _check(to: str, given: dict[str, object]) -> None:
    if to not in get_args(Format):
        raise UsageError(f"--to {to}: no such format. They are {', '.join(get_args(Format))}.")
    for name, value in given.items():
        if value is not None and to not in _OPTIONS[name]:
            raise UsageError(
                f"--{name} says nothing about {to}; it is for {' and '.join(_OPTIONS[name])}."
            )


def _check_free(out: Path, *, folder: bool, overwrite: bool) -> None:
    if folder and out.is_file():
        raise UsageError(f"{out}: is a file; this format is a folder.")
    if not folder and out.is_dir():
        raise UsageError(f"{out}: is a folder; this format is one file, such as {out / 'name'}.")
    taken = any(out.iterdir()) if out.is_dir() else out.exists()
    if taken and not overwrite:
        raise UsageError(f"{out}: exists. Give another place, or --overwrite.")


def _untrained(network: HandedOn) -> list[str]:
    parts = network.handover.trained
    missing = [part for part in ("decoder", "head") if part not in parts]
    if not missing or network.handover.kind == "classification":
        return []
    named = " and ".join("output layer" if part == "head" else part for part in missing)
    return [f"trained were {', '.join(parts)}: nothing was learnt by the {named}"]


def _without_masks(network: HandedOn) -> list[str]:
    if isinstance(network.task, Segmentation):
        return []
    what = "its classifier is not part of MONAI's network and" if network.task else "it"
    return [f"{what} gives no masks, so the bundle has configs/network.json and nothing to run"]


def _standardised(network: HandedOn) -> list[str]:
    name = network.handover.intensity.name
    if name == "zscore":
        return []
    return [
        f"nnU-Net standardises every image (z-score), these weights have seen '{name}' intensities"
    ]
