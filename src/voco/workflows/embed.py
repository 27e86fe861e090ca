"""Weights and scans to feature vectors: one for each scan, or one for each crop of a grid."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from voco import __version__
from voco.backbone import Backbone
from voco.data.foreground import Box
from voco.data.intake import digest_source
from voco.data.patches import lowest, padded_crop
from voco.data.preprocess import Prepared
from voco.data.source import Source
from voco.data.vectors import Vectors, check_vectors_file, write_vectors
from voco.embedding import deepest
from voco.errors import DataError, UsageError, VocoError
from voco.inference import starts
from voco.nn.pooling import level_means
from voco.progress import track
from voco.recipes import EmbedConfig
from voco.scans import find_scans, prepare_scan, scaled
from voco.shapes import Shape3, Volumes
from voco.weights import Handover, load_backbone, read_handover, weights_digest

WINDOW: Shape3 = (96, 96, 96)
"""Voxels of a crop, where neither the user nor the weights say."""

_TRAINED_ON = ("crop", "roi", "size", "window")
"""Settings of methods and tasks that say how large the volumes are that a network was shown."""

Pool = Callable[[Volumes], Float[Tensor, "n e"]]
"""Gives one vector per crop."""


@dataclass(frozen=True)
class Embedded:
    """What became of the scans.

    Attributes:
        rows: The vectors.
        file: Where they are; ``None`` if they were not written.
        failures: Scan and reason, of those that have none.
    """

    rows: Vectors
    file: Path | None
    failures: tuple[tuple[str, str], ...]

    @property
    def complete(self) -> bool:
        """Whether every scan has its vectors."""
        return not self.failures

    def __str__(self) -> str:
        count, features = self.rows.vectors.shape
        scans = len(set(self.rows.scan))
        failed = f", {len(self.failures)} not" if self.failures else ""
        where = f"; see {self.file}" if self.file else ""
        head = f"{scans} scans embedded{failed}: {count:,} vectors of {features:,} features{where}"
        return "\n".join([head, *(f"  {scan}: {reason}" for scan, reason in self.failures)])


def embed(
    weights: Path | str,
    scans: Sequence[Path | str],
    out: Path | str | None = None,
    config: EmbedConfig | None = None,
    *,
    modality: str | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> Embedded:
    """Feature vectors of scans, from the frozen encoder of a trained network.

    Scans are read and prepared as in training, and cut into a grid of crops that covers the box
    which holds the body (all of the scan where none is found). Of each crop the levels of the
    encoder are averaged over space and joined; a scan's vector is the mean of those of its crops.
    A scan that cannot be read is reported, and the others go on.

    Args:
        weights: The folder of a finished run, or its weight file.
        scans: Files, DICOM folders, folders of scans, or lists.
        out: File to write, ``.npz`` or ``.parquet`` (:mod:`voco.data.vectors`); ``None`` for none.
        config: The settings.
        modality: What the scans are, for formats that do not say.
        device: Such as ``cuda:1``; the GPU if there is one, else the CPU, for ``None``.
        overwrite: Replace the file that is there.

    Raises:
        ConfigError: If the network does not take the window.
        DataError: If nothing that could be a scan is found, or no scan can be embedded.
        UsageError: If the file cannot be written, or is there.
        WeightsError: If the weights are missing, damaged, or not described by a ``handover.json``.
    """
    weights, config = Path(weights), config or EmbedConfig()
    file = None if out is None else Path(out)
    if file is not None:
        _check_free(file, overwrite=overwrite)
    handover = read_handover(weights)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    backbone = load_backbone(weights).to(place).eval()
    window = config.window or backbone.fixed_size or _trained_on(handover) or WINDOW
    backbone.check_size(window)
    config = config.model_copy(update={"window": window})
    levels, pool = _pool(backbone, handover, config)
    sources, failures = find_scans(
        [Path(scan) for scan in scans], "Name the folder that holds both, or embed them apart."
    )
    made: list[Vectors] = []
    for source in track(sources, "embed", total=len(sources)):
        try:
            made.append(_scan(source, handover, pool, config, window, place, modality))
        except (VocoError, MemoryError, torch.OutOfMemoryError, OSError) as error:
            failures.append((str(source.images[0]), str(error) or "not enough memory"))
    if not made:
        lines = "\n".join(f"  {scan}: {reason}" for scan, reason in failures)
        raise DataError(f"no scan could be embedded:\n{lines}")
    rows = replace(_joined(made), provenance=_provenance(weights, handover, config, levels))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_vectors(rows, file)
    return Embedded(rows, file, tuple(failures))


def crop_grid(box: Box, window: Shape3, overlap: float) -> list[Shape3]:
    """First voxels of crops that cover a box, x outermost; below it where it is smaller.

    Args:
        box: Start and stop voxel.
        window: Voxels of a crop.
        overlap: Of neighbouring crops, as a share of their side, below 1.
    """
    axes: list[list[int]] = []
    for low, high, side in zip(*box, window, strict=True):
        room = high - low - side
        firsts = starts(high - low, side, overlap) if room >= 0 else [room // 2]
        axes.append(list(dict.fromkeys(low + first for first in firsts)))
    return [(x, y, z) for x, y, z in product(*axes)]


def _check_free(file: Path, *, overwrite: bool) -> None:
    check_vectors_file(file)
    if file.exists() and not overwrite:
        raise UsageError(f"{file}: exists. Give another file, or --overwrite.")


def _trained_on(handover: Handover) -> Shape3 | None:
    """Voxels of what the network was shown in training, if its settings say so."""
    settings = {**(handover.method or {}), **(handover.task or {})}
    found = [settings[key] for key in _TRAINED_ON if key in settings]
    sizes = [size for size in found if isinstance(size, list | tuple) and len(size) == 3]
    return (sizes[0][0], sizes[0][1], sizes[0][2]) if sizes else None


def _pool(backbone: Backbone, handover: Handover, config: EmbedConfig) -> tuple[str, Pool]:
    """Which levels are pooled, in words, and what does it.

    Of weights that trained a transformer alone, the convolutions beside it are random: they are
    left out, whatever levels are asked for.
    """
    if "tokens" in handover.trained and "encoder" not in handover.trained:
        return "tokens", lambda crops: level_means([deepest(backbone, crops)], (0,))
    last = (len(backbone.channels) - 1,)
    levels = backbone.embedding_levels if config.levels == "backbone" else last
    words = ", ".join(f"1/{backbone.strides[level]}" for level in levels)
    return words, lambda crops: level_means(backbone.encode(crops), levels)


@torch.no_grad()
def _scan(
    source: Source,
    handover: Handover,
    pool: Pool,
    config: EmbedConfig,
    window: Shape3,
    device: torch.device,
    modality: str | None,
) -> Vectors:
    """The vectors of one scan."""
    ready = prepare_scan(source, handover, modality)
    body = ready.foreground or ((0, 0, 0), ready.grid.shape)
    corners = crop_grid(body, window, config.overlap)
    vectors = torch.cat(
        [
            pool(crops).float().cpu()
            for crops in _crops(ready, corners, window, handover, config.crops_at_once, device)
        ]
    )
    low = np.array(corners, np.int64)
    box = np.stack([low, low + window], axis=1)
    crops = np.ones(len(box), np.int64)
    if config.of == "scans":
        vectors = vectors.double().mean(dim=0, keepdim=True).float()
        box = np.stack([box[:, 0].min(axis=0), box[:, 1].max(axis=0)])[None]
        crops = np.array([len(corners)], np.int64)
    if not bool(torch.isfinite(vectors).all()):
        raise DataError(f"{source.images[0]}: the network's features of it are not finite.")
    return Vectors(
        vectors=vectors.numpy(),
        scan=(source.id,) * len(box),
        source=(str(source.images[0].absolute()),) * len(box),
        sha256=(digest_source(replace(source, label=None)),) * len(box),
        box=box,
        centre_mm=_middles(box, ready),
        crops=crops,
        provenance={},
    )


def _crops(
    ready: Prepared,
    corners: Sequence[Shape3],
    window: Shape3,
    handover: Handover,
    at_once: int,
    device: torch.device,
) -> Iterator[Volumes]:
    """Crops of a scan in the network's range, some at a time."""
    pads = lowest(ready)
    for first in range(0, len(corners), at_once):
        parts = [
            scaled(padded_crop(ready.image, corner, window, pads), ready, handover, device)
            for corner in corners[first : first + at_once]
        ]
        yield torch.stack(parts)


def _middles(box: Int64[np.ndarray, "n 2 3"], ready: Prepared) -> Float[np.ndarray, "n 3"]:
    """World millimetres of the middles of boxes: half a voxel lies before the first centre."""
    middle = (box.sum(axis=1) - 1) / 2
    return middle @ ready.grid.affine[:3, :3].T + ready.grid.affine[:3, 3]


def _joined(parts: Sequence[Vectors]) -> Vectors:
    return Vectors(
        vectors=np.concatenate([part.vectors for part in parts]),
        scan=tuple(name for part in parts for name in part.scan),
        source=tuple(name for part in parts for name in part.source),
        sha256=tuple(name for part in parts for name in part.sha256),
        box=np.concatenate([part.box for part in parts]),
        centre_mm=np.concatenate([part.centre_mm for part in parts]),
        crops=np.concatenate([part.crops for part in parts]),
        provenance={},
    )


def _provenance(
    weights: Path, handover: Handover, config: EmbedConfig, levels: str
) -> dict[str, Any]:
    return {
        "voco_version": __version__,
        "weights": str(weights.absolute()),
        "weights_sha256": weights_digest(weights),
        "kind": handover.kind,
        "method": handover.method,
        "task": handover.task,
        "step": handover.step,
        "backbone": handover.backbone.model_dump(mode="json"),
        "trained": list(handover.trained),
        "settings": config.model_dump(mode="json"),
        "levels": levels,
        "preprocessing": handover.preprocessing.model_dump(mode="json"),
        "intensity": handover.intensity.model_dump(mode="json"),
    }
