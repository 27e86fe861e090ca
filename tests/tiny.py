"""The smallest network that is a backbone: three convolutions, a decoder of one, an output."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from voco.backbone import Backbone, BackboneConfig, MaskedBackbone, TokenBackbone
from voco.draws import Draws
from voco.nn.masking import replaced
from voco.shapes import Level, Volumes
from voco.task import Step


class TinyConfig(BackboneConfig):
    name: Literal["tiny"] = "tiny"

    def build(self, out_channels: int = 1) -> "Tiny":
        return Tiny(self, out_channels)


class TinyNetwork(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv3d(in_channels, 4, 3, padding=1)
        self.down = nn.Conv3d(4, 6, 2, stride=2)
        self.deep = nn.Conv3d(6, 8, 2, stride=2)
        self.up = nn.Conv3d(8 + 6 + 4, 4, 1)
        self.out = nn.Conv3d(4, out_channels, 1)

    def encode(self, volumes: torch.Tensor) -> list[torch.Tensor]:
        fine = F.gelu(self.stem(volumes))
        middle = F.gelu(self.down(fine))
        return [fine, middle, F.gelu(self.deep(middle))]

    def decode(self, pyramid: list[torch.Tensor], at: int = 0) -> torch.Tensor:
        sizes = [F.interpolate(level, size=pyramid[at].shape[2:]) for level in pyramid]
        return F.gelu(self.up(torch.cat(sizes, dim=1)))

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        return self.out(self.decode(self.encode(volumes)))


class Tiny(Backbone):
    """Levels at 1, 2 and 4 voxels."""

    network: TinyNetwork
    channels = (4, 6, 8)
    strides = (1, 2, 4)
    embedding_levels = (0, 1, 2)
    divisor = 4
    smallest = 4
    encoder_prefixes: ClassVar = ("stem.", "down.", "deep.")
    decoder_prefixes: ClassVar = ("up.",)
    head_prefixes: ClassVar = ("out.",)

    def __init__(self, config: TinyConfig, out_channels: int) -> None:
        super().__init__()
        self.config = config
        self.out_channels = out_channels
        self.decoded_channels = 4
        self.network = TinyNetwork(config.in_channels, out_channels)

    def encode(self, volumes: Volumes) -> list[Level]:
        return self.network.encode(volumes)

    def decode(self, pyramid: list[Level]) -> Level:
        return self.network.decode(pyramid)

    @property
    def stage_channels(self) -> tuple[int, ...]:
        return (4, 4)

    def decode_stages(self, pyramid: list[Level]) -> list[Level]:
        return [self.network.decode(pyramid, at=1), self.decode(pyramid)]

    def head(self, features: Level) -> Level:
        return self.network.out(features)


class TinyTokensConfig(TinyConfig):
    def build(self, out_channels: int = 1) -> "TinyTokens":
        return TinyTokens(self, out_channels)


class TinyTokens(Tiny, TokenBackbone):
    """The same with tokens of 4x4x4 voxels, which know of each other by their mean."""

    patch = (4, 4, 4)
    width = 10
    encoder_prefixes: ClassVar = ("stem.", "down.", "deep.", "patch.", "mix.")
    token_prefixes: ClassVar = ("patch.", "mix.")

    def __init__(self, config: TinyConfig, out_channels: int) -> None:
        super().__init__(config, out_channels)
        self.network.patch = nn.Conv3d(config.in_channels, 10, 4, stride=4)
        self.network.mix = nn.Linear(20, 10)

    def tokens(
        self,
        volumes: Volumes,
        keep: torch.Tensor | None = None,
        leading: torch.Tensor | None = None,
    ) -> torch.Tensor:
        tokens = self.network.patch(volumes).flatten(2).mT
        if keep is not None:
            tokens = tokens.take_along_dim(keep[..., None], dim=1)
        if leading is not None:
            tokens = torch.cat([leading.to(tokens).expand(len(tokens), -1, -1), tokens], dim=1)
        mean = tokens.mean(dim=1, keepdim=True).expand_as(tokens)
        return tokens + F.gelu(self.network.mix(torch.cat([tokens, mean], dim=2)))


class TinyMaskedConfig(TinyConfig):
    def build(self, out_channels: int = 1) -> "TinyMasked":
        return TinyMasked(self, out_channels)


class TinyMasked(Tiny, MaskedBackbone):
    """The same with patches of 2x2x2 voxels, which see their neighbours and are then merged."""

    patch = (2, 2, 2)
    embedding_width = 5
    encoder_prefixes: ClassVar = ("stem.", "down.", "deep.", "patch.", "mix.", "merge.")
    token_prefixes: ClassVar = ("patch.", "mix.", "merge.")

    def __init__(self, config: TinyConfig, out_channels: int) -> None:
        super().__init__(config, out_channels)
        self.network.patch = nn.Conv3d(config.in_channels, 5, 2, stride=2)
        self.network.mix = nn.Conv3d(5, 5, 3, padding=1)
        self.network.merge = nn.Conv3d(5, 8, 2, stride=2)

    def encode_masked(
        self, volumes: Volumes, hidden: torch.Tensor, mask_token: torch.Tensor
    ) -> Level:
        patches = replaced(self.network.patch(volumes), hidden, mask_token)
        return self.network.merge(F.gelu(self.network.mix(patches)))


def tiny(in_channels: int = 1, seed: int = 0) -> Tiny:
    """The network with weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TinyConfig(in_channels=in_channels).build()


def step_at(number: int = 0, *, seed: int = 0, rank: int = 0, world: int = 1) -> Step:
    """A step of a run of ten."""
    return Step(number, 10, Draws(seed, number, rank=rank, world=world))
