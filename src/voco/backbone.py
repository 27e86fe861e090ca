"""What a network declares so that methods and tasks can use it without knowing it."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from voco.config import Config
from voco.errors import ConfigError
from voco.shapes import Level, Shape3, Volumes

Part = Literal["encoder", "decoder", "head", "tokens"]
"""Encoder, decoder and head: what the parameters of a network divide into, without rest.
Tokens: that part of the encoder which :meth:`TokenBackbone.tokens` and
:meth:`MaskedBackbone.encode_masked` use."""


class BackboneConfig(Config, ABC):
    """Settings of a backbone. A subclass adds ``name: Literal[...]``, which selects it.

    Attributes:
        changeable: Settings that do not alter what trained weights mean; they may differ between
            the run that trained them and the run that goes on with them.
        adaptable: Settings that alter the shape of some tensors in a way that trained weights can
            be brought along: they may differ as well.
    """

    changeable: ClassVar[tuple[str, ...]] = ()
    adaptable: ClassVar[tuple[str, ...]] = ("in_channels",)
    in_channels: int = 1
    """Channels of a volume."""

    @abstractmethod
    def build(self, out_channels: int = 1) -> "Backbone":
        """The backbone, with random weights from torch's current seed.

        Args:
            out_channels: Channels of the output layer: classes, for segmentation.

        Raises:
            ConfigError: If the settings do not fit together.
        """


class Backbone(nn.Module, ABC):
    """A network with an encoder, a decoder and an output layer.

    The library's own network is ``network``; its ``state_dict`` is what is handed on, under the
    library's own names. ``forward`` equals ``network(volumes)`` and equals
    ``head(decode(encode(volumes)))``.

    Attributes:
        config: The settings it was built from.
        network: The library's own network class.
        library_arguments: ``type(network)(**library_arguments)`` builds the same network.
        out_channels: Channels of the output layer.
        channels: Channels of each level of the pyramid, finest first.
        strides: Voxels of the input per voxel of each level.
        decoded_channels: Channels of what :meth:`decode` gives.
        embedding_levels: Which levels a method pools for an embedding, as the references do.
        divisor: Every side of an input must be a multiple of this.
        smallest: Least side of an input that can be trained on.
        fixed_size: The only size the network takes, or ``None`` if any that divides.
        mixes_volumes: Whether in training, as with batch norm, what the network makes of a volume
            depends on the others of the batch, that of all processes. They must then pass through
            it together. In evaluation no network mixes volumes.
        encoder_prefixes: Prefixes of the encoder's parameter names in ``network``, with their dot.
        decoder_prefixes: The same of the decoder.
        head_prefixes: The same of the output layer.
        token_prefixes: Those of the encoder's that :meth:`TokenBackbone.tokens` and
            :meth:`MaskedBackbone.encode_masked` use.
        patch_prefixes: Those of the layer that turns patches into tokens, if there is one.
        position_suffixes: How the names of learned position codes in ``network`` end.
        input_weights: Names in ``network`` of the convolutions that read a volume's channels.
    """

    config: BackboneConfig
    network: nn.Module
    library_arguments: dict[str, Any]
    out_channels: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    decoded_channels: int
    embedding_levels: tuple[int, ...]
    divisor: int
    smallest: int
    fixed_size: Shape3 | None = None
    mixes_volumes: ClassVar[bool] = False
    encoder_prefixes: ClassVar[tuple[str, ...]]
    decoder_prefixes: ClassVar[tuple[str, ...]]
    head_prefixes: ClassVar[tuple[str, ...]]
    token_prefixes: ClassVar[tuple[str, ...]] = ()
    patch_prefixes: ClassVar[tuple[str, ...]] = ()
    position_suffixes: ClassVar[tuple[str, ...]] = ()
    input_weights: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def encode(self, volumes: Volumes) -> list[Level]:
        """The pyramid of features, finest first; uses the encoder's parameters only."""

    @abstractmethod
    def decode(self, pyramid: list[Level]) -> Level:
        """Features at full resolution, from the pyramid that :meth:`encode` gave."""

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each of the features that :meth:`decode_stages` gives."""
        return (self.decoded_channels,)

    def decode_stages(self, pyramid: list[Level]) -> list[Level]:
        """Features after each stage of the decoder, coarsest first; the last is :meth:`decode`.

        For methods that look at the decoder on its way up. A backbone that does not show its
        stages has a single one.
        """
        return [self.decode(pyramid)]

    @abstractmethod
    def head(self, features: Level) -> Level:
        """The output layer: one channel per class, before softmax."""

    def forward(self, volumes: Volumes) -> Level:
        """Logits, one channel per class, at full resolution."""
        return self.head(self.decode(self.encode(volumes)))

    def prefixes(self, part: Part) -> tuple[str, ...]:
        """Prefixes of the parameter names of a part, in ``network``; none if it has no such."""
        return {
            "encoder": self.encoder_prefixes,
            "decoder": self.decoder_prefixes,
            "head": self.head_prefixes,
            "tokens": self.token_prefixes,
        }[part]

    def check_pieces(self, at_once: int | None) -> None:
        """Refuse to train on some crops of a batch at a time, where that computes something else.

        Args:
            at_once: Crops that are to pass through together at most; ``None`` is not asked for.

        Raises:
            ConfigError: If the network mixes the volumes of a batch.
        """
        if at_once is not None and self.mixes_volumes:
            raise ConfigError(
                f"method.crops_at_once is {at_once}, but {type(self).__name__} normalises over all "
                "crops of a batch: in pieces it would compute something else. Leave the setting "
                "out (null in a recipe, None as an option); a smaller batch_size saves memory, too."
            )

    def check_size(self, size: Shape3) -> None:
        """Refuse a size that the network cannot take.

        Raises:
            ConfigError: Naming the size, the rule, and the nearest sizes that fit.
        """
        name = type(self).__name__
        if self.fixed_size is not None and size != self.fixed_size:
            raise ConfigError(
                f"{name} was built for volumes of {self.fixed_size} voxels and takes no other; "
                f"got {size}. Set the backbone's size to {size}, or the crop to {self.fixed_size}."
            )
        if any(side % self.divisor or side < self.smallest for side in size):
            fits = tuple(
                max(self.smallest, round(side / self.divisor) * self.divisor) for side in size
            )
            raise ConfigError(
                f"{name} takes volumes whose sides are multiples of {self.divisor} and at least "
                f"{self.smallest} voxels; got {size}. The nearest size that fits is {fits}."
            )


class TokenBackbone(Backbone):
    """A backbone that cuts a volume into tokens (patches), for methods that leave some out.

    Attributes:
        patch: Voxels of a patch along each axis.
        width: Length of a token's embedding.
    """

    patch: Shape3
    width: int

    @abstractmethod
    def tokens(
        self, volumes: Volumes, keep: Tensor | None = None, leading: Tensor | None = None
    ) -> Float[Tensor, "b t e"]:
        """Encoded tokens, in row-major order (x outermost), or in the order of ``keep``.

        The volumes may have another size than the network otherwise takes (see
        :meth:`check_token_size`); position codes are then stretched over them.

        Args:
            volumes: The volumes.
            keep: int64 ``(b, kept)``, the tokens that enter the encoder; the others are dropped.
                ``None`` keeps all.
            leading: ``(l, e)``, a method's own tokens, which are nowhere: they enter together with
                those of every volume, without a position code, and come first in what is given.
        """

    def check_token_size(self, size: Shape3) -> None:
        """Refuse a size of which :meth:`tokens` cannot make tokens.

        Raises:
            ConfigError: Naming the size, the rule, and the nearest size that fits.
        """
        if any(side % cube or side < cube for side, cube in zip(size, self.patch, strict=True)):
            fits = tuple(
                max(1, round(side / cube)) * cube
                for side, cube in zip(size, self.patch, strict=True)
            )
            raise ConfigError(
                f"{type(self).__name__} cuts volumes into tokens of {self.patch} voxels, of which "
                f"their sides must be multiples; got {size}. The nearest size that fits is {fits}."
            )


class MaskedBackbone(Backbone):
    """A backbone that can hide patches behind a learnt token, for methods that restore them.

    All patches go through the network, so that it may be of any kind that embeds each of them by
    itself: also one whose later layers merge patches.

    Attributes:
        patch: Voxels of a patch along each axis.
        embedding_width: Length of a patch's embedding, and so of the token.
    """

    patch: Shape3
    embedding_width: int

    @abstractmethod
    def encode_masked(
        self,
        volumes: Volumes,
        hidden: Bool[Tensor, "b i j k"],
        mask_token: Float[Tensor, "e"],
    ) -> Level:
        """The last map of what makes the tokens, with some patches hidden.

        It has the channels and the stride of the last level of the pyramid. Uses the parameters
        of the part ``tokens`` and no others; nothing of a hidden patch reaches it.

        Args:
            volumes: The volumes.
            hidden: Which patches are; one entry for each.
            mask_token: What their embeddings are replaced by.
        """
