"""The random numbers of one optimizer step.

A draw has one row for every volume of the *global* batch; each process keeps its own rows. So the
numbers depend on the run's seed and the step alone: not on the number of loader workers, not on
the number of processes that share the batch, not on what was drawn in earlier steps.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_MASK = (1 << 63) - 1


def mixed_seed(*parts: int) -> int:
    """A 63-bit seed from several integers; near-equal inputs give unrelated seeds (splitmix64)."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state ^ (part & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 30
        state = state * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & _MASK


class Draws:
    """Random numbers keyed on (seed, step, micro-batch); rows are shared out over processes.

    Args:
        seed: The run's seed.
        step: Number of the optimizer step.
        micro: Number of the micro-batch within the step (gradient accumulation).
        rank: Number of this process.
        world: Number of processes that share the batch.
    """

    def __init__(
        self, seed: int, step: int, *, micro: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self.rank, self.world = rank, world
        self._key = (seed, step, micro)
        self._generator = torch.Generator().manual_seed(mixed_seed(*self._key))

    def uniform(self, count: int, *shape: int) -> Float[Tensor, "b ..."]:
        """Numbers from [0, 1): ``count`` rows (this process's volumes) of ``shape``; on the CPU."""
        return self._rows(torch.rand(count * self.world, *shape, generator=self._generator))

    def normal(self, count: int, *shape: int) -> Float[Tensor, "b ..."]:
        """Standard normal numbers: ``count`` rows of ``shape``; on the CPU."""
        return self._rows(torch.randn(count * self.world, *shape, generator=self._generator))

    def integers(self, count: int, *shape: int, low: int = 0, high: int) -> Int64[Tensor, "b ..."]:
        """Integers from [low, high): ``count`` rows of ``shape``; on the CPU."""
        size = (count * self.world, *shape)
        return self._rows(torch.randint(low, high, size, generator=self._generator))

    def permutations(self, count: int, length: int) -> Int64[Tensor, "b _"]:
        """One random order of ``length`` things for each of ``count`` volumes; on the CPU."""
        return self.uniform(count, length).argsort(dim=1)

    def shared(self) -> float:
        """A number from [0, 1) that is the same for all volumes and processes."""
        return torch.rand((), generator=self._generator).item()

    def choose(self, count: int, options: Sequence[float], *shape: int) -> Float[Tensor, "b ..."]:
        """One of ``options``, all equally likely: ``count`` rows of ``shape``; on the CPU."""
        picked = self.integers(count, *shape, high=len(options))
        return torch.tensor(options)[picked]

    def noise_like(self, volumes: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Standard normal noise in the shape, type and place of ``volumes``, one seed per row."""
        noise = torch.empty_like(volumes)
        for row, generator in zip(noise, self._generators(volumes), strict=True):
            row.normal_(generator=generator)
        return noise

    def uniform_like(self, volumes: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Numbers from [0, 1) in the shape, type and place of ``volumes``, one seed per row."""
        noise = torch.empty_like(volumes)
        for row, generator in zip(noise, self._generators(volumes), strict=True):
            row.uniform_(generator=generator)
        return noise

    def child(self, number: int) -> "Draws":
        """Independent draws for a part of the same step."""
        seed, step, micro = self._key
        return Draws(
            mixed_seed(seed, number, 0x5EED), step, micro=micro, rank=self.rank, world=self.world
        )

    def _generators(self, rows: Tensor) -> list[torch.Generator]:
        """One for each row, where the rows are."""
        seeds = self.integers(len(rows), high=_MASK).tolist()
        return [torch.Generator(rows.device).manual_seed(seed) for seed in seeds]

    def _rows(self, drawn: Tensor) -> Tensor:
        count = len(drawn) // self.world
        return drawn[self.rank * count : (self.rank + 1) * count]
