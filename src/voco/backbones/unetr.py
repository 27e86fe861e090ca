"""UNETR: MONAI's ``UNETR`` (Hatamizadeh et al., WACV 2022): a ViT with a convolutional decoder."""

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt, field_validator, model_validator
from torch import Tensor

from voco.backbone import BackboneConfig, MaskedBackbone, TokenBackbone
from voco.backbones.residual_blocks import basic_block, up_block
from voco.nn.channels_last import laid_out
from voco.nn.convolution import use_own_convolutions
from voco.nn.cubes import cube_grid
from voco.nn.instance_norm import use_own_norms
from voco.nn.masking import replaced
from voco.nn.positions import resampled_code
from voco.shapes import Level, Shape3, Volumes

if TYPE_CHECKING:
    from monai.networks.nets import unetr

Tokens = Float[Tensor, "b t e"]
"""One row for each patch."""

_PATCH = 16
_SKIPS = (3, 6, 9)
"""Hidden states that become the levels at 2, 4 and 8 voxels; the network has 12 blocks."""


class UNETRConfig(BackboneConfig):
    """Settings of UNETR (MONAI UNETR)."""

    changeable: ClassVar = ("dropout_rate",)
    adaptable: ClassVar = ("in_channels", "size")
    name: Literal["unetr"] = "unetr"
    """Selects this backbone."""
    size: Shape3 = (96, 96, 96)
    """Voxels of the volumes it takes, along x, y, z: multiples of 16 and at least 32."""
    feature_size: PositiveInt = 16
    """Channels at full resolution."""
    hidden_size: PositiveInt = 768
    """Length of a token's embedding."""
    mlp_dim: PositiveInt = 3072
    """Hidden units of each block's MLP."""
    num_heads: PositiveInt = 12
    """Attention heads of each block."""
    qkv_bias: bool = False
    """Whether queries, keys and values have a bias."""
    dropout_rate: float = Field(default=0.0, ge=0, le=1)
    """Dropout in the transformer."""

    @field_validator("size")
    @classmethod
    def _whole_patches(cls, size: Shape3) -> Shape3:
        if any(side % _PATCH or side < 2 * _PATCH for side in size):
            fits = tuple(max(2 * _PATCH, round(side / _PATCH) * _PATCH) for side in size)
            raise ValueError(
                f"sides must be multiples of {_PATCH} and at least {2 * _PATCH} voxels; the "
                f"nearest size that fits is {fits}"
            )
        return size

    @model_validator(mode="after")
    def _heads_divide_embedding(self) -> "UNETRConfig":
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"num_heads {self.num_heads} must divide hidden_size {self.hidden_size}"
            )
        return self

    def build(self, out_channels: int = 1) -> "UNETR":
        """The backbone, with random weights from torch's current seed."""
        return UNETR(self, out_channels)


class UNETR(TokenBackbone, MaskedBackbone):
    """MONAI's ``UNETR``: levels at 1, 2, 4, 8 and 16 voxels, for volumes of one size only.

    The encoder is the ViT together with the convolution blocks ``encoder1`` to ``encoder4`` that
    feed the decoder; :meth:`tokens` and :meth:`encode_masked` use the ViT alone, the former on
    volumes of any size that 16 divides. Which levels an embedding pools is not settled by a
    reference; here it is all five.
    """

    network: "unetr.UNETR"
    strides = (1, 2, 4, 8, 16)
    embedding_levels = (0, 1, 2, 3, 4)
    divisor = _PATCH
    smallest = 2 * _PATCH
    patch: Shape3 = (_PATCH, _PATCH, _PATCH)
    encoder_prefixes: ClassVar = ("vit.", "encoder1.", "encoder2.", "encoder3.", "encoder4.")
    decoder_prefixes: ClassVar = ("decoder5.", "decoder4.", "decoder3.", "decoder2.")
    head_prefixes: ClassVar = ("out.",)
    token_prefixes: ClassVar = ("vit.",)
    patch_prefixes: ClassVar = ("vit.patch_embedding.patch_embeddings.",)
    position_suffixes: ClassVar = ("position_embeddings",)
    input_weights: ClassVar = (
        "vit.patch_embedding.patch_embeddings.weight",
        "encoder1.layer.conv1.conv.weight",
        "encoder1.layer.conv3.conv.weight",
    )

    def __init__(self, config: UNETRConfig, out_channels: int) -> None:
        super().__init__()
        from monai.networks.nets import unetr  # noqa: PLC0415 (takes seconds)

        self.config = config
        self.out_channels = out_channels
        self.fixed_size = config.size
        self.width = self.embedding_width = config.hidden_size
        self._grid = cube_grid(config.size, self.patch)
        size = config.feature_size
        self.channels = (size, 2 * size, 4 * size, 8 * size, config.hidden_size)
        self.decoded_channels = size
        self.library_arguments = {
            **config.model_dump(exclude={"name", "size"}),
            "img_size": config.size,
            "out_channels": out_channels,
            "spatial_dims": 3,
        }
        network = unetr.UNETR(**self.library_arguments)
        use_own_norms(network)
        use_own_convolutions(network)
        for block in network.vit.blocks:
            # MONAI builds this norm whether or not a block attends to something else; ours never
            # does, so it would wait for a gradient for ever.
            block.norm_cross_attn.requires_grad_(requires_grad=False)  # pyright: ignore[reportCallIssue]
        self.network = network  # pyright: ignore[reportIncompatibleVariableOverride]

    def encode(self, volumes: Volumes) -> list[Level]:
        """Features of the five levels."""
        net = self.network
        tokens, hidden = net.vit(volumes)
        x2, x3, x4 = (net.proj_feat(hidden[index]) for index in _SKIPS)
        return [
            basic_block(net.encoder1, volumes),
            net.encoder2(laid_out(x2)),
            net.encoder3(laid_out(x3)),
            net.encoder4(laid_out(x4)),
            net.proj_feat(tokens),
        ]

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels at 8, 4, 2 and 1 voxels."""
        return tuple(reversed(self.channels[:4]))

    def decode(self, pyramid: list[Level]) -> Level:
        """Features at full resolution."""
        return self.decode_stages(pyramid)[-1]

    def decode_stages(self, pyramid: list[Level]) -> list[Level]:
        """Features at 8, 4, 2 and 1 voxels."""
        net = self.network
        stages = [pyramid[4]]
        ups = (net.decoder5, net.decoder4, net.decoder3, net.decoder2)
        for up, skip in zip(ups, reversed(pyramid[:4]), strict=True):
            stages.append(up_block(up, stages[-1], skip))
        return stages[1:]

    def head(self, features: Level) -> Level:
        """A 1x1x1 convolution."""
        return self.network.out(features)

    def tokens(
        self, volumes: Volumes, keep: Tensor | None = None, leading: Tensor | None = None
    ) -> Tokens:
        """Encoded tokens of 16x16x16 voxels, normalised.

        Tokens are dropped after the position code is added. Volumes of another size than the
        network's get its code stretched over their grid.
        """
        tokens = self._placed(self.network.vit.patch_embedding.patch_embeddings(volumes))
        if keep is not None:
            tokens = tokens.take_along_dim(keep[..., None], dim=1)
        if leading is not None:
            first = leading.to(tokens).expand(len(tokens), -1, -1)
            tokens = torch.cat([first, tokens], dim=1)
        return self._encoded(tokens)

    def encode_masked(
        self,
        volumes: Volumes,
        hidden: Bool[Tensor, "b i j k"],
        mask_token: Float[Tensor, "e"],
    ) -> Level:
        """The level at 16 voxels, patches hidden before the position code is added."""
        patches = self.network.vit.patch_embedding.patch_embeddings(volumes)
        tokens = self._encoded(self._placed(replaced(patches, hidden, mask_token)))
        return self.network.proj_feat(tokens)

    def _placed(self, patches: Level) -> Tokens:
        """Embedded patches as tokens in row-major order, with their position code."""
        embedding = self.network.vit.patch_embedding
        x, y, z = patches.shape[2:]
        position = resampled_code(embedding.position_embeddings[0], self._grid, (x, y, z))
        tokens = rearrange(patches, "b e x y z -> b (x y z) e")
        return embedding.dropout(tokens + position)

    def _encoded(self, tokens: Tokens) -> Tokens:
        vit = self.network.vit
        for block in vit.blocks:
            tokens = block(tokens)
        return vit.norm(tokens)
