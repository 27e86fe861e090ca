"""New scans for a trained network: found, read, prepared as in its training, or refused."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int16
from torch import Tensor

from voco.data.intensity import apply
from voco.data.patches import scaling
from voco.data.preprocess import Prepared, prepare_volume
from voco.data.source import Source
from voco.data.sources import discover, read_source
from voco.errors import DataError
from voco.weights import Handover


def find_scans(
    places: Sequence[Path], way_out: str, dataset: str | None = None
) -> tuple[list[Source], list[tuple[str, str]]]:
    """Scans in all places; and what was refused, with the reason.

    Args:
        places: Files, folders of scans, DICOM folders, lists.
        way_out: What to do about two scans of one name, as a sentence.
        dataset: The places are folders of this data set, as its owners distribute it.

    Raises:
        DataError: If nothing is there at all, or two scans have the same name.
    """
    sources: dict[str, Source] = {}
    failures: list[tuple[str, str]] = []
    for place in places:
        try:
            found, refused = discover(Path(place), dataset or "")
        except DataError as error:
            failures.append((str(place), str(error)))
            continue
        failures += [(str(i.path), i.reason) for i in refused if not i.passed_over]
        for source in found:
            other = sources.get(source.id)
            if other is not None and other.images != source.images:
                raise DataError(
                    f"{other.images[0]} and {source.images[0]} would both become "
                    f"'{source.id}'. {way_out}"
                )
            sources[source.id] = source
    if not sources and not failures:
        raise DataError(f"{', '.join(map(str, places)) or 'no place'}: no scan is there.")
    return list(sources.values()), failures


def prepare_scan(source: Source, handover: Handover, modality: str | None) -> Prepared:
    """A scan as a store of the network's training would hold it.

    Args:
        source: What to read; its label is left aside.
        handover: What the network expects.
        modality: What the user says the scan is; overrides what its file says.

    Raises:
        DataError: If it cannot be read, or is of another kind than what was trained on.
    """
    scan, _ = read_source(replace(source, label=None), modality=modality)
    expected = handover.backbone.in_channels
    if len(scan.volume.array) != expected:
        names = f" ({', '.join(handover.channels)})" if handover.channels else ""
        raise DataError(
            f"{source.images[0]}: has {len(scan.volume.array)} channels, the network takes "
            f"{expected}{names}."
        )
    known = handover.modalities
    if known and scan.modality not in known:
        raise DataError(
            f"{source.images[0]}: its modality is {scan.modality}, the network was trained on "
            f"{', '.join(known)}. If the scan is {known[0]}, say so with --modality {known[0]}."
        )
    return prepare_volume(scan.volume, handover.preprocessing, modality=scan.modality)


def scaled(
    stored: Int16[np.ndarray, "c x y z"],
    ready: Prepared,
    handover: Handover,
    device: torch.device,
) -> Float[Tensor, "c x y z"]:
    """Stored voxels of a prepared scan, or of a part of it, in the network's range."""
    intensity = handover.intensity
    gain, bias = (part.to(device) for part in scaling(ready, intensity))
    voxels = torch.from_numpy(np.ascontiguousarray(stored)).to(device)
    return apply(voxels[None], gain[None], bias[None], *intensity.bounds)[0]
