"""The pre-training methods, one per file; chosen by ``name``."""

from typing import Annotated, get_args

from pydantic import Field

from voco.methods.glmae import GLMAEConfig
from voco.methods.gvsl import GVSLConfig
from voco.methods.jigsaw import JigsawConfig
from voco.methods.mae3d import MAE3DConfig
from voco.methods.mocov3 import MoCoV3Config
from voco.methods.modelsgenesis import ModelsGenesisConfig
from voco.methods.pcrl import PCRLConfig
from voco.methods.pcrlv2 import PCRLv2Config
from voco.methods.positionlabel import PositionLabelConfig
from voco.methods.rot import ROTConfig
from voco.methods.rubik import RubikConfig
from voco.methods.s3d import S3DConfig
from voco.methods.simclr import SimCLRConfig
from voco.methods.simmim import SimMIMConfig
from voco.methods.swinmm import SwinMMConfig
from voco.methods.swinunetr import SwinUNETRPretrainingConfig
from voco.methods.vicregl import VICRegLConfig
from voco.methods.voco import VoCoConfig
from voco.methods.volumefusion import VolumeFusionConfig

_Kinds = (
    VoCoConfig
    | SimCLRConfig
    | MoCoV3Config
    | VICRegLConfig
    | JigsawConfig
    | PositionLabelConfig
    | ROTConfig
    | VolumeFusionConfig
    | ModelsGenesisConfig
    | MAE3DConfig
    | RubikConfig
    | SimMIMConfig
    | S3DConfig
    | GLMAEConfig
    | GVSLConfig
    | SwinUNETRPretrainingConfig
    | SwinMMConfig
    | PCRLConfig
    | PCRLv2Config
)

MethodSettings = Annotated[_Kinds, Field(discriminator="name")]
"""Settings of any method."""


def available() -> tuple[str, ...]:
    """Names of all methods."""
    return tuple(kind.model_fields["name"].default for kind in get_args(_Kinds))
