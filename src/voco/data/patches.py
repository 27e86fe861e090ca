"""Labelled crops for segmentation and whole volumes for classification.

Which cases a step sees, and which crops of them, follows from the seed, the step and the place in
the batch alone: every case once before any comes again, in an order drawn anew for each round.
int16 voxels go to the device as they are stored and are scaled there.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int16, Int64, Integer
from torch import Tensor
from torch.utils.data import Dataset

from voco.data.intensity import Intensity, Scaled, apply
from voco.data.labelled import Labelled
from voco.data.loading import Share, loaded
from voco.data.resampling import resized
from voco.draws import mixed_seed
from voco.errors import DataError, VocoError
from voco.shapes import Crops, Shape3, Volumes

_CENTRES = 1024
"""Voxels of each class of a case that can be the centre of a crop; drawn once."""

_ORDER, _CROP, _CENTRE = 0x0DE4, 0xC409, 0xCE27
"""Keep the random numbers of different uses apart."""


Fit = Literal["resize", "crop"]
"""How a whole volume is brought to one size: resampled, or cut and padded."""


class Patches(NamedTuple):
    """Crops on the device, scaled to the network's range, and the class of each voxel."""

    crops: Crops
    labels: Int64[Tensor, "b n x y z"]


class Targets(NamedTuple):
    """Volumes on the device, scaled to the network's range, and the class of each."""

    volumes: Volumes
    classes: Int64[Tensor, "b"]


class Sample(NamedTuple):
    """One volume as it leaves the store, and how to scale it."""

    stored: Int16[Tensor, "*n c x y z"]
    truth: Integer[Tensor, "..."]
    gain: Float[Tensor, "c"]
    bias: Float[Tensor, "c"]


class Samples(Dataset["Sample | VocoError"], ABC):
    """Micro-batches of samples by number.

    Args:
        cases: Learnt from.
        intensity: How stored voxels are to be scaled.
        seed: The run's seed.
        share: Which samples this process takes.
    """

    def __init__(
        self, cases: Sequence[Labelled], intensity: Intensity, seed: int, share: Share
    ) -> None:
        self.cases, self.intensity, self.seed, self.share = cases, intensity, seed, share

    def __getitem__(self, index: int) -> "Sample | VocoError":
        """A micro-batch, every tensor with one more axis; or the error a user should read."""
        try:
            samples = [self.sample(number) for number in self.share.samples(index)]
        except VocoError as error:
            return error
        return Sample(*(torch.stack(parts) for parts in zip(*samples, strict=True)))

    @abstractmethod
    def sample(self, number: int) -> Sample:
        """Sample ``number`` of the run: always the same.

        Raises:
            VocoError: If it cannot be read.
        """

    def batches(
        self, device: torch.device, workers: int, start: int, stop: int
    ) -> Iterator[Sample]:
        """Micro-batches on a device.

        Args:
            device: Where they go.
            workers: Loader processes; 0 loads here.
            start: The first micro-batch.
            stop: The one after the last.
        """
        pin = device.type == "cuda"
        for batch in loaded(self, range(start, stop), workers, pin=pin):
            yield Sample(*(part.to(device, non_blocking=True) for part in batch))


class CropSettings(NamedTuple):
    """How crops are taken.

    Attributes:
        values: Label values in the order of the classes; the first is the background.
        roi: Voxels of a crop.
        crops: Crops of each volume.
        positive_share: Probability that a crop is centred on a voxel of a structure.
    """

    values: tuple[int, ...]
    roi: Shape3
    crops: int
    positive_share: float


class CropSamples(Samples):
    """Crops around structures: ``stored`` is ``(n, c, x, y, z)``, ``truth`` ``(n, x, y, z)``."""

    def __init__(
        self,
        settings: CropSettings,
        cases: Sequence[Labelled],
        intensity: Intensity,
        seed: int,
        share: Share,
    ) -> None:
        super().__init__(cases, intensity, seed, share)
        self.settings = settings
        self._centres: dict[str, dict[int, Int16[np.ndarray, "_ 3"]]] = {}

    def sample(self, number: int) -> Sample:
        """The crops of one volume."""
        one = case_at(self.cases, self.seed, number)
        values, roi, crops, _ = self.settings
        rng = np.random.default_rng(mixed_seed(self.seed, _CROP, number))
        starts = [self._start(one, rng) for _ in range(crops)]
        pads = lowest(one.case)
        images = np.stack([read_padded(one, start, roi, pads) for start in starts])
        labels = np.stack([read_classes(one, start, roi, values) for start in starts])
        gain, bias = scaling(one.case, self.intensity)
        return Sample(torch.from_numpy(images), torch.from_numpy(labels), gain, bias)

    def _start(self, one: Labelled, rng: np.random.Generator) -> Shape3:
        """First voxel of a crop; below 0 where the volume is smaller than the crop."""
        share, which, voxel, *place = rng.random(6)
        roi = np.asarray(self.settings.roi)
        room = np.asarray(one.case.shape) - roi
        start = np.floor(np.asarray(place) * (room + 1))
        if share < self.settings.positive_share and (centres := self._centres_of(one)):
            rows = list(centres.values())[int(which * len(centres))]
            start = rows[int(voxel * len(rows))] - roi // 2
        # A volume smaller than the crop lies in its middle.
        x, y, z = np.where(room < 0, room // 2, np.clip(start, 0, np.maximum(room, 0))).tolist()
        return (int(x), int(y), int(z))

    def _centres_of(self, one: Labelled) -> Mapping[int, Int16[np.ndarray, "_ 3"]]:
        key = one.case.id
        if key not in self._centres:
            digest = hashlib.sha256(key.encode()).digest()[:8]
            seed = mixed_seed(self.seed, _CENTRE, int.from_bytes(digest))
            self._centres[key] = class_voxels(one.store.read_label(key), seed)
        return self._centres[key]


class VolumeSamples(Samples):
    """Whole volumes of one size: ``stored`` is ``(c, x, y, z)``, ``truth`` a class number.

    Args:
        targets: The classes, in order.
        size: Voxels that every volume is brought to.
        fit: Whether to resample, or to cut and pad.
        cases: Learnt from.
        intensity: How stored voxels are to be scaled.
        seed: The run's seed.
        share: Which samples this process takes.
    """

    def __init__(
        self,
        targets: Sequence[int | str],
        size: Shape3,
        fit: Fit,
        cases: Sequence[Labelled],
        intensity: Intensity,
        seed: int,
        share: Share,
    ) -> None:
        super().__init__(cases, intensity, seed, share)
        self.targets, self.size = targets, size
        self.fit: Fit = fit

    def sample(self, number: int) -> Sample:
        """One volume."""
        one = case_at(self.cases, self.seed, number)
        assert one.case.target is not None
        stored = fitted(one.store.read(one.case.id), self.size, self.fit, lowest(one.case))
        truth = torch.tensor(self.targets.index(one.case.target))
        return Sample(torch.from_numpy(stored), truth, *scaling(one.case, self.intensity))


def patch_batches(
    samples: CropSamples, device: torch.device, workers: int, start: int, stop: int
) -> Iterator[Patches]:
    """Micro-batches of crops on a device (see :meth:`Samples.batches`)."""
    low, high = samples.intensity.bounds
    for stored, labels, *ramp in samples.batches(device, workers, start, stop):
        count, number = stored.shape[:2]
        gain, bias = (part.repeat_interleave(number, dim=0) for part in ramp)
        crops = apply(stored.flatten(0, 1), gain, bias, low, high)
        yield Patches(crops.unflatten(0, (count, number)), labels.long())


def volume_batches(
    samples: VolumeSamples, device: torch.device, workers: int, start: int, stop: int
) -> Iterator[Targets]:
    """Micro-batches of whole volumes on a device (see :meth:`Samples.batches`)."""
    low, high = samples.intensity.bounds
    for stored, classes, gain, bias in samples.batches(device, workers, start, stop):
        yield Targets(apply(stored, gain, bias, low, high), classes)


def case_at(cases: Sequence[Labelled], seed: int, number: int) -> Labelled:
    """The case of sample ``number``: all of them once, in a random order, then again in another."""
    turn, place = divmod(number, len(cases))
    rng = np.random.default_rng(mixed_seed(seed, _ORDER, turn))
    return cases[int(rng.permutation(len(cases))[place])]


def scaling(scan: Scaled, intensity: Intensity) -> tuple[Tensor, Tensor]:
    """Gain and bias of each channel of a case or a prepared scan, float32."""
    ramp = intensity.ramp(scan)
    return torch.tensor(ramp.gain), torch.tensor(ramp.bias)


def lowest(scan: Scaled) -> Int16[np.ndarray, "c"]:
    """The smallest stored value of each channel: what padding is filled with."""
    units = np.array([statistics.minimum for statistics in scan.statistics])
    return np.rint((units - scan.offset) / scan.scale).clip(-32768, 32767).astype(np.int16)


def class_voxels(
    label: Integer[np.ndarray, "x y z"], seed: int, most: int = _CENTRES
) -> dict[int, Int16[np.ndarray, "_ 3"]]:
    """For each label value but 0, up to so many of its voxels, drawn evenly; pure."""
    rng = np.random.default_rng(seed)
    flat = np.flatnonzero(label)
    values = label.ravel()[flat]
    order = np.argsort(values, kind="stable")
    found, first = np.unique(values[order], return_index=True)
    places: dict[int, Int16[np.ndarray, "_ 3"]] = {}
    for value, rows in zip(found.tolist(), np.split(flat[order], first[1:]), strict=True):
        few = rng.choice(rows, most, replace=False) if len(rows) > most else rows
        places[value] = np.stack(np.unravel_index(few, label.shape), axis=1).astype(np.int16)
    return places


def read_padded(
    one: Labelled, start: Shape3, size: Shape3, pads: Int16[np.ndarray, "c"]
) -> Int16[np.ndarray, "c _ _ _"]:
    """Stored voxels of a box that may reach beyond the volume; there the padding is."""
    crop = np.empty((len(pads), *size), np.int16)
    crop[:] = pads[:, None, None, None]
    box, inside = _common(start, size, one.case.shape)
    crop[(slice(None), *inside)] = one.store.read(one.case.id, box)
    return crop


def read_classes(
    one: Labelled, start: Shape3, size: Shape3, values: Sequence[int]
) -> Integer[np.ndarray, "_ _ _"]:
    """Class numbers of a box that may reach beyond the volume; there is background.

    Raises:
        DataError: If the label holds a value that is none of ``values``.
    """
    box, inside = _common(start, size, one.case.shape)
    crop = np.zeros(size, np.uint8 if len(values) <= 256 else np.int16)
    crop[inside] = class_numbers(one.store.read_label(one.case.id, box), values, one.case.id)
    return crop


def class_numbers(
    label: Integer[np.ndarray, "x y z"], values: Sequence[int], case: str
) -> Integer[np.ndarray, "x y z"]:
    """Label values (such as 0, 205, 420) to class numbers (0, 1, 2).

    Raises:
        DataError: If the label holds a value that is none of ``values``.
    """
    table = np.full(32768, -1, np.int16)
    table[list(values)] = np.arange(len(values))
    numbers = table[label]
    if numbers.min() < 0:
        strange = np.unique(label[numbers < 0]).tolist()
        raise DataError(
            f"case '{case}': its label holds the values {strange}, which are none of the classes "
            f"{list(values)}. Correct the label and prepare the case anew."
        )
    return numbers


def fitted(
    stored: Int16[np.ndarray, "c x y z"],
    size: Shape3,
    fit: Fit,
    pads: Int16[np.ndarray, "c"],
) -> Int16[np.ndarray, "c _ _ _"]:
    """A whole volume in one size: resampled, or its middle with padding where it is smaller."""
    if fit == "resize":
        return resized(stored, size, np.int16)
    sides = zip(stored.shape[1:], size, strict=True)
    x, y, z = ((old - new) // 2 for old, new in sides)
    return padded_crop(stored, (x, y, z), size, pads)


def padded_crop(
    stored: Int16[np.ndarray, "c x y z"],
    start: Shape3,
    size: Shape3,
    pads: Int16[np.ndarray, "c"],
) -> Int16[np.ndarray, "c _ _ _"]:
    """A box of a volume that may reach beyond it; there the padding is."""
    shape = stored.shape[1:]
    box, inside = _common(start, size, (shape[0], shape[1], shape[2]))
    made = np.empty((len(stored), *size), np.int16)
    made[:] = pads[:, None, None, None]
    within = tuple(slice(low, high) for low, high in zip(*box, strict=True))
    made[(slice(None), *inside)] = stored[(slice(None), *within)]
    return made


def _common(
    start: Shape3, size: Shape3, shape: Shape3
) -> tuple[tuple[Shape3, Shape3], tuple[slice, slice, slice]]:
    """What a box and a volume have in common: as a box of the volume, and as slices of the box."""
    first = [max(0, low) for low in start]
    last = [min(side, low + width) for low, width, side in zip(start, size, shape, strict=True)]
    x, y, z = (slice(a - low, b - low) for a, b, low in zip(first, last, start, strict=True))
    return ((first[0], first[1], first[2]), (last[0], last[1], last[2])), (x, y, z)
