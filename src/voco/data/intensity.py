"""From stored voxels to what a network sees: a choice of the recipe, never of the store.

Every way is ``clip(stored * gain + bias, low, high)`` per channel, so the loader ships int16 and
the device applies it (:func:`apply`).
"""

from abc import ABC, abstractmethod
from typing import Annotated, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from pydantic import Field
from torch import Tensor

from voco.config import Config
from voco.data.store import ChannelStatistics
from voco.shapes import Volumes


class Ramp(NamedTuple):
    """``clip(stored * gain + bias, low, high)``, per channel."""

    gain: tuple[float, ...]
    bias: tuple[float, ...]
    low: float
    high: float


@runtime_checkable
class Scaled(Protocol):
    """What is known about stored voxels: a case of a store, or a scan prepared for a network."""

    @property
    def modality(self) -> str:
        """``CT``, ``MR``, ..., ``unknown``."""
        ...

    @property
    def scale(self) -> tuple[float, ...]:
        """Per channel: source units per stored unit."""
        ...

    @property
    def offset(self) -> tuple[float, ...]:
        """Per channel: source units at stored 0."""
        ...

    @property
    def statistics(self) -> tuple[ChannelStatistics, ...]:
        """Per channel, in source units."""
        ...


class IntensityConfig(Config, ABC):
    """How intensities are brought to the network's range."""

    @abstractmethod
    def units(self, statistics: ChannelStatistics) -> tuple[float, float]:
        """Source units that become 0 and 1."""

    @property
    def bounds(self) -> tuple[float, float]:
        """What is clipped to, after scaling."""
        return (0.0, 1.0)

    def ramp(self, case: Scaled) -> Ramp:
        """What brings the stored voxels of a case to the network's range."""
        gains, biases = [], []
        for scale, offset, statistics in zip(case.scale, case.offset, case.statistics, strict=True):
            zero, one = self.units(statistics)
            if one <= zero:
                # All of the foreground is one value (a mask): the whole range tells it apart.
                zero, one = statistics.minimum, statistics.maximum
            width = one - zero if one > zero else 1.0
            gains.append(scale / width)
            biases.append((offset - zero) / width)
        return Ramp(tuple(gains), tuple(biases), *self.bounds)


class WindowIntensity(IntensityConfig):
    """A fixed window of source units to [0, 1]: CT."""

    name: Literal["window"] = "window"
    low: float = -175.0
    """Becomes 0 (HU)."""
    high: float = 250.0
    """Becomes 1 (HU)."""

    def units(self, statistics: ChannelStatistics) -> tuple[float, float]:
        """The window itself."""
        return (self.low, self.high)


class PercentileIntensity(IntensityConfig):
    """From the 0.5th to the 99.5th percentile of each case's foreground to [0, 1]: MR."""

    name: Literal["percentile"] = "percentile"

    def units(self, statistics: ChannelStatistics) -> tuple[float, float]:
        """The two percentiles."""
        return (statistics.percentiles["0.5"], statistics.percentiles["99.5"])


class ZScoreIntensity(IntensityConfig):
    """Zero mean, unit standard deviation over each case's foreground, clipped at ``limit``."""

    name: Literal["zscore"] = "zscore"
    limit: float = 5.0
    """Standard deviations beyond which values are clipped."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Plus and minus the limit."""
        return (-self.limit, self.limit)

    def units(self, statistics: ChannelStatistics) -> tuple[float, float]:
        """The mean, and one standard deviation above it."""
        return (statistics.mean, statistics.mean + statistics.std)


class ModalityIntensity(IntensityConfig):
    """CT by a window of HU, every other modality by its own percentiles; all to [0, 1].

    For stores of mixed scans, and for recipes that must run on any store.
    """

    name: Literal["modality"] = "modality"
    low: float = -175.0
    """Becomes 0 in CT (HU)."""
    high: float = 250.0
    """Becomes 1 in CT (HU)."""

    def ramp(self, case: Scaled) -> Ramp:
        """The window for CT, percentiles for the rest."""
        if case.modality == "CT":
            return WindowIntensity(low=self.low, high=self.high).ramp(case)
        return PercentileIntensity().ramp(case)

    def units(self, statistics: ChannelStatistics) -> tuple[float, float]:
        """Of a case that is not CT."""
        return PercentileIntensity().units(statistics)


Intensity = Annotated[
    WindowIntensity | PercentileIntensity | ZScoreIntensity | ModalityIntensity,
    Field(discriminator="name"),
]


def apply(
    stored: Shaped[Tensor, "b c x y z"],
    gain: Float[Tensor, "b c"],
    bias: Float[Tensor, "b c"],
    low: float,
    high: float,
) -> Volumes:
    """Stored voxels to float32 volumes in the network's range; where the voxels are."""
    shape = (*gain.shape, 1, 1, 1)
    volumes = stored.to(torch.float32, copy=True)  # what follows works in place on the copy
    return volumes.mul_(gain.view(shape)).add_(bias.view(shape)).clamp_(low, high)
