"""Run folders as training leaves them, without the training: their weights are random."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from voco.backbone import Backbone, BackboneConfig
from voco.backbones.genesis_unet import GenesisUNetConfig
from voco.backbones.resenc_unet import ResEncUNetConfig
from voco.backbones.unet import UNetConfig
from voco.data.intensity import WindowIntensity
from voco.data.store import Preprocessing
from voco.weights import TrainingData, export

SMALL = UNetConfig(features=(2, 2, 2, 2, 2, 2))
GENESIS = GenesisUNetConfig(features=(4, 6, 8, 10))
RESENC = ResEncUNetConfig(features=(4, 6, 8), blocks=(1, 2, 1))
CLASSES = {0: "background", 3: "liver", 7: "spleen"}


def shaken(backbone: Backbone) -> Backbone:
    """The backbone with random numbers also where networks start with zeros and ones."""
    with torch.no_grad():
        for parameter in backbone.network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return backbone


def pretrained(folder: Path, config: BackboneConfig = SMALL, **changes: Any) -> Backbone:
    """A run of pre-training; gives the network as it was trained."""
    torch.manual_seed(3)
    backbone = shaken(config.build(1))
    facts: dict[str, Any] = {
        "kind": "pretraining",
        "trained": ("encoder",),
        "method": {"name": "voco"},
        **_facts(),
        **changes,
    }
    export(folder, backbone, **facts)
    return backbone


def segmenting(folder: Path, config: BackboneConfig = SMALL, **changes: Any) -> Backbone:
    """A run of fine-tuning a segmentation of :data:`CLASSES`."""
    torch.manual_seed(4)
    backbone = shaken(config.build(len(CLASSES)))
    facts: dict[str, Any] = {
        "kind": "segmentation",
        "trained": ("encoder", "decoder", "head"),
        "task": {"name": "segmentation", "roi": [32, 32, 32]},
        "classes": CLASSES,
        "modalities": ("MR",),
        **_facts(),
        **changes,
    }
    export(folder, backbone, **facts)
    return backbone


def classifying(folder: Path, config: BackboneConfig = SMALL) -> tuple[Backbone, nn.Linear]:
    """A run of fine-tuning a classification; gives the network and its last layer."""
    torch.manual_seed(5)
    backbone = shaken(config.build(1))
    layer = nn.Linear(sum(backbone.channels[n] for n in backbone.embedding_levels), 2)
    tensors = {f"classifier.{name}": tensor for name, tensor in layer.state_dict().items()}
    export(
        folder,
        backbone,
        kind="classification",
        trained=("encoder",),
        task={"name": "classification", "size": [32, 32, 32]},
        classes={0: "healthy", 1: "ill"},
        task_tensors=tensors,
        **_facts(),
    )
    return backbone, layer


def _facts() -> dict[str, Any]:
    return {
        "step": 30,
        "seed": 5,
        "preprocessing": Preprocessing(spacing_mm=(1.0, 1.5, 2.0)),
        "intensity": WindowIntensity(low=-100, high=240),
        "data": (TrainingData(digest="abc", cases=24),),
    }
