"""The checkpoint from which nnU-Net fine-tunes: the format of nnssl, that nnU-Net's own tools read.

``nnUNetv2_preprocess_like_nnssl -pc FILE`` and ``nnUNetv2_train_pretrained`` take the encoder, and
build the rest anew; ``nnUNetv2_train -pretrained_weights FILE`` takes all but the output layers.
So the file holds every tensor of the network, those that were not trained with random values.

nnU-Net reads arrays with the slowest axis first: where voco has x, y, z, it has z, y, x. A kernel
keeps its meaning only if it is turned too, so every kernel's axes are reversed here, and so are
spacing and sizes. nnU-Net does not mirror scans to one orientation: what was learnt holds best
for files whose axes point as they did in training (Right, Anterior, Superior).
"""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from voco.backbones.resenc_unet import ResEncUNet, repeated_names
from voco.data.store import write_atomically
from voco.errors import WeightsError
from voco.exporting.monai import is_monais
from voco.exporting.network import HandedOn
from voco.shapes import Shape3

_CONFIGURATION = "voco"
"""Name of the one configuration; nnU-Net takes the first, whatever its name."""


def write_checkpoint(network: HandedOn, out: Path, size: Shape3 | None = None) -> list[Path]:
    """Write the checkpoint.

    Args:
        network: Whose backbone is ``resenc_unet``.
        out: The file, by custom ``*.pth``.
        size: Voxels of the patches that nnU-Net is advised to train on, along x, y and z.

    Raises:
        WeightsError: If nnU-Net has no such network.
        ConfigError: If the network cannot take that size.
    """
    check_is_nnunets(network)
    stream = io.BytesIO()
    torch.save(checkpoint(network, network.size(size)), stream)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, stream.getvalue())
    return [out]


def check_is_nnunets(network: HandedOn) -> None:
    """Refuse a network that nnU-Net does not have.

    Raises:
        WeightsError: Naming the exports that fit.
    """
    if not isinstance(network.backbone, ResEncUNet):
        fitting = "--to monai, --to onnx" if is_monais(network) else "--to onnx"
        raise WeightsError(
            f"nnU-Net has no network of the kind '{network.handover.backbone.name}'; of voco's it "
            f"has 'resenc_unet' alone. {fitting} and --to huggingface fit these weights."
        )


def checkpoint(network: HandedOn, size: Shape3) -> dict[str, Any]:
    """What the file holds: tensors, and what nnU-Net must know of them, in plain values.

    Args:
        network: Whose backbone is ``resenc_unet``.
        size: Voxels of a patch along x, y and z.
    """
    handover = network.handover
    spacing = handover.preprocessing.spacing_mm
    patch = list(reversed(size))
    configuration = {
        "spacing": None if spacing is None else list(reversed(spacing)),
        "patch_size": patch,
    }
    return {
        "network_weights": tensors(network.backbone),
        "nnssl_adaptation_plan": {
            "architecture_plans": architecture(network.backbone),
            "pretrain_plan": {"configurations": {_CONFIGURATION: configuration}},
            "pretrain_num_input_channels": handover.backbone.in_channels,
            "recommended_downstream_patchsize": patch,
            "key_to_encoder": "encoder.stages",
            "key_to_stem": "encoder.stem",
            "keys_to_in_proj": [
                "encoder.stem.convs.0.conv",
                "encoder.stem.convs.0.all_modules.0",
            ],
            "key_to_lpe": None,
        },
        "citations": [],
        "voco": {
            "trained": list(handover.trained),
            "handover": handover.model_dump(mode="json"),
        },
    }


def tensors(backbone: torch.nn.Module) -> dict[str, Tensor]:
    """The network's tensors under nnU-Net's names, kernels turned to z, y, x.

    Tensors of several names share their memory, so that the file holds each once.
    """
    assert isinstance(backbone, ResEncUNet)
    state = {
        name: tensor.permute(0, 1, 4, 3, 2).contiguous() if tensor.ndim == 5 else tensor
        for name, tensor in backbone.network.state_dict().items()
    }
    return repeated_names({name: tensor.detach().cpu() for name, tensor in state.items()})


def architecture(backbone: torch.nn.Module) -> dict[str, Any]:
    """Class and arguments of ``dynamic_network_architectures`` that build the network."""
    assert isinstance(backbone, ResEncUNet)
    features, blocks = (backbone.library_arguments[key] for key in ("features", "blocks"))
    count = len(features)
    return {
        "arch_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
        "arch_kwargs": {
            "n_stages": count,
            "features_per_stage": list(features),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * count,
            "strides": [[1, 1, 1], *[[2, 2, 2]] * (count - 1)],
            "n_blocks_per_stage": list(blocks),
            "n_conv_per_stage_decoder": [1] * (count - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "arch_kwargs_requiring_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
