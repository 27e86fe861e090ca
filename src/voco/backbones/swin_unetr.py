"""Swin UNETR: MONAI's ``SwinUNETR`` (Hatamizadeh et al. 2022; v2: He et al., MICCAI 2023).

The backbone of the VoCo papers. ``use_v2`` puts a residual convolution block before each of the
four Swin stages, as VoCo's published weights have it.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from voco.backbone import BackboneConfig, MaskedBackbone
from voco.backbones.residual_blocks import basic_block, up_block
from voco.backbones.swin_blocks import stages
from voco.nn.channels_last import laid_out
from voco.nn.convolution import use_own_convolutions
from voco.nn.masking import replaced
from voco.shapes import Level, Volumes

if TYPE_CHECKING:
    from monai.networks.nets import swin_unetr

Four = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]

Merging = Literal["fixed", "legacy"]
"""How patches are merged: names and shapes of the tensors are the same."""


class SwinUNETRConfig(BackboneConfig):
    """Settings of Swin UNETR (MONAI SwinUNETR)."""

    changeable: ClassVar = ("use_checkpoint", "drop_rate", "attn_drop_rate", "dropout_path_rate")
    name: Literal["swin_unetr"] = "swin_unetr"
    """Selects this backbone."""
    feature_size: PositiveInt = Field(default=48, multiple_of=12)
    """Channels at full resolution; 48, 96 and 192 are the B, L and H of the VoCo papers."""
    use_v2: bool = True
    """Whether a residual convolution block precedes each Swin stage."""
    depths: Four = (2, 2, 2, 2)
    """Transformer blocks in each stage."""
    num_heads: Four = (3, 6, 12, 24)
    """Attention heads in each stage."""
    merging: Merging | None = None
    """How four stages halve the resolution. ``fixed``: eight neighbours become one, as MONAI does
    it from 1.5 on. ``legacy``: two of the eight are taken twice and two never, as MONAI did it up
    to 1.4 and as all weights of that time expect it. ``None``: as the weights that a run starts
    from expect it, and ``fixed`` if there are none."""
    use_checkpoint: bool = False
    """Whether to recompute the transformer blocks in the backward pass: less memory, more time."""
    drop_rate: float = Field(default=0.0, ge=0, le=1)
    """Dropout after the patch embedding and in the blocks."""
    attn_drop_rate: float = Field(default=0.0, ge=0, le=1)
    """Dropout of attention weights."""
    dropout_path_rate: float = Field(default=0.0, ge=0, le=1)
    """Stochastic depth: share of blocks skipped in the last stage, falling to 0 in the first."""

    @model_validator(mode="after")
    def _heads_divide_channels(self) -> "SwinUNETRConfig":
        for stage, heads in enumerate(self.num_heads):
            channels = self.feature_size * 2**stage
            if channels % heads:
                raise ValueError(
                    f"num_heads[{stage}] = {heads} must divide the {channels} channels of its "
                    f"stage (feature_size {self.feature_size} times {2**stage})"
                )
        return self

    def build(self, out_channels: int = 1) -> "SwinUNETR":
        """The backbone, with random weights from torch's current seed."""
        return SwinUNETR(self, out_channels)


class SwinUNETR(MaskedBackbone):
    """MONAI's ``SwinUNETR``: levels at 1, 2, 4, 8, 16 and 32 voxels.

    The encoder is the Swin transformer together with the convolution blocks ``encoder1`` to
    ``encoder10`` that feed the decoder; :meth:`encode_masked` uses the Swin transformer alone.
    Embeddings pool five levels and leave out the one at 16 voxels, as the VoCo papers' code does:
    1152 numbers at ``feature_size`` 48.
    """

    network: "swin_unetr.SwinUNETR"
    strides = (1, 2, 4, 8, 16, 32)
    embedding_levels = (0, 1, 2, 3, 5)
    divisor = 32
    smallest = 64  # below, the coarsest level is one voxel, which has no variance to normalise
    patch = (2, 2, 2)
    encoder_prefixes: ClassVar = (
        "swinViT.",
        "encoder1.",
        "encoder2.",
        "encoder3.",
        "encoder4.",
        "encoder10.",
    )
    decoder_prefixes: ClassVar = ("decoder5.", "decoder4.", "decoder3.", "decoder2.", "decoder1.")
    head_prefixes: ClassVar = ("out.",)
    token_prefixes: ClassVar = ("swinViT.",)
    patch_prefixes: ClassVar = ("swinViT.patch_embed.",)
    position_suffixes: ClassVar = ("relative_position_bias_table",)
    input_weights: ClassVar = (
        "swinViT.patch_embed.proj.weight",
        "encoder1.layer.conv1.conv.weight",
        "encoder1.layer.conv3.conv.weight",
    )

    def __init__(self, config: SwinUNETRConfig, out_channels: int) -> None:
        super().__init__()
        from monai.networks.nets import swin_unetr  # noqa: PLC0415 (takes seconds)

        self.config = config
        self.out_channels = out_channels
        size = config.feature_size
        self.channels = (size, size, 2 * size, 4 * size, 8 * size, 16 * size)
        self.decoded_channels = self.embedding_width = size
        self.library_arguments = {
            **config.model_dump(exclude={"name", "merging"}),
            "out_channels": out_channels,
            "spatial_dims": 3,
        }
        kind = swin_unetr.SwinUNETR
        if config.merging == "legacy":
            from voco.backbones.legacy_merging import LegacySwinUNETR  # noqa: PLC0415 (as above)

            kind = LegacySwinUNETR
        network = kind(**self.library_arguments)
        use_own_convolutions(network)
        self.network = network  # pyright: ignore[reportIncompatibleVariableOverride]

    def encode(self, volumes: Volumes) -> list[Level]:
        """Features of the six levels."""
        net, vit = self.network, self.network.swinViT
        # First, so that what it only needs for a moment makes room for what the others keep.
        finest = basic_block(net.encoder1, volumes)
        maps = stages(vit, vit.pos_drop(vit.patch_embed(laid_out(volumes))))
        hidden = [vit.proj_out(each, net.normalize) for each in maps]
        return [
            finest,
            basic_block(net.encoder2, hidden[0]),
            basic_block(net.encoder3, hidden[1]),
            basic_block(net.encoder4, hidden[2]),
            hidden[3],
            basic_block(net.encoder10, hidden[4]),
        ]

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels at 16, 8, 4, 2 and 1 voxels."""
        return tuple(reversed(self.channels[:5]))

    def decode(self, pyramid: list[Level]) -> Level:
        """Features at full resolution."""
        return self.decode_stages(pyramid)[-1]

    def decode_stages(self, pyramid: list[Level]) -> list[Level]:
        """Features at 16, 8, 4, 2 and 1 voxels."""
        net = self.network
        ups = (net.decoder5, net.decoder4, net.decoder3, net.decoder2, net.decoder1)
        decoded = [pyramid[5]]
        for up, skip in zip(ups, reversed(pyramid[:5]), strict=True):
            decoded.append(up_block(up, decoded[-1], skip))
        return decoded[1:]

    def head(self, features: Level) -> Level:
        """A 1x1x1 convolution."""
        return self.network.out(features)

    def encode_masked(
        self,
        volumes: Volumes,
        hidden: Bool[Tensor, "b i j k"],
        mask_token: Float[Tensor, "e"],
    ) -> Level:
        """The Swin transformer's last map, at 32 voxels, as the block ``encoder10`` gets it."""
        vit = self.network.swinViT
        features = vit.pos_drop(replaced(vit.patch_embed(volumes), hidden, mask_token))
        return vit.proj_out(stages(vit, features)[-1], self.network.normalize)
