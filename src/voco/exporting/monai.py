"""A MONAI bundle: weights for MONAI's own network class, and a configuration that runs it.

The folder follows MONAI's bundle specification: ``configs/metadata.json``, ``configs/
inference.json``, ``models/model.pt``. Beside them lies ``voco_transforms.py``, which prepares scans
as voco does and needs MONAI alone (:mod:`voco.exporting.scan_transforms`, as it is).
"""

import importlib.metadata
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import torch

from voco.backbones.legacy_merging import LegacySwinUNETR
from voco.backbones.resenc_unet import ResEncUNet
from voco.data.store import write_atomically
from voco.errors import WeightsError
from voco.exporting.network import HandedOn
from voco.tasks.segmentation import Segmentation

MODULE = "voco_transforms"
"""Name of the bundle's own module: unlike ``scripts``, two bundles in one program share it."""

MERGING = "voco_merging"
"""Name of a second one, with the network class of weights from before MONAI 1.5."""


def write_bundle(network: HandedOn, out: Path) -> list[Path]:
    """Write a bundle; a network that gives no masks gets no ``inference.json``.

    Args:
        network: Whose backbone is one of MONAI's.
        out: The bundle's folder.

    Raises:
        WeightsError: If MONAI has no such network.
    """
    check_is_monai(network)
    segments = isinstance(network.task, Segmentation)
    config = _inference(network) if segments else _definition(network)
    files: dict[str, bytes] = {
        "models/model.pt": _state(network),
        f"{MODULE}.py": _source("voco.exporting.scan_transforms"),
        f"configs/{'inference' if segments else 'network'}.json": _text(config),
        "docs/README.md": _readme(network, segments=segments).encode(),
        "configs/metadata.json": _text(_metadata(network)),  # last: MONAI knows a bundle by it
    }
    if merges_as_once(network):
        files = {f"{MERGING}.py": _source("voco.backbones.legacy_merging"), **files}
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out / name, content)
    return [out / name for name in files]


def check_is_monai(network: HandedOn) -> None:
    """Refuse a network that MONAI does not have.

    Raises:
        WeightsError: Naming the exports that fit.
    """
    if not is_monais(network):
        nnunets = isinstance(network.backbone, ResEncUNet)
        way = "--to nnunet gives them to nnU-Net, whose network it is; " if nnunets else ""
        raise WeightsError(
            f"MONAI has no network of the kind '{network.handover.backbone.name}', so there is no "
            f"class that could load these weights. {way}--to onnx and --to huggingface take every "
            "network."
        )


def is_monais(network: HandedOn) -> bool:
    """Whether MONAI has, or had, the network."""
    kind = type(network.backbone.network)
    return kind.__module__.startswith("monai.") or merges_as_once(network)


def merges_as_once(network: HandedOn) -> bool:
    """Whether the network is MONAI's Swin UNETR as it was up to 1.4.

    MONAI's class of today would load its tensors without complaint and compute something else.
    """
    return isinstance(network.backbone.network, LegacySwinUNETR)


def _state(network: HandedOn) -> bytes:
    """The tensors under MONAI's names; without the output layer where none was trained."""
    backbone = network.backbone
    state = backbone.network.state_dict()
    left_out = () if "head" in network.handover.trained else backbone.prefixes("head")
    kept = {name: tensor.cpu() for name, tensor in state.items() if not name.startswith(left_out)}
    stream = io.BytesIO()
    torch.save(kept, stream)
    return stream.getvalue()


def _source(module: str) -> bytes:
    """A module of ours that needs MONAI alone, as it is."""
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).read_bytes()


def _definition(network: HandedOn) -> dict[str, Any]:
    """What is the same for every network: how it is built, and how scans are prepared."""
    handover, backbone = network.handover, network.backbone
    kind = type(backbone.network)
    home = MERGING if merges_as_once(network) else kind.__module__
    modality = handover.modalities[0] if handover.modalities else "unknown"
    return {
        "imports": ["$import pathlib", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "scans": "$sorted(map(str, pathlib.Path(@dataset_dir).glob('[!.]*')))",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "modality": modality,
        "window": list(network.size()),
        "network_def": {
            "_target_": f"{home}.{kind.__qualname__}",
            **json.loads(json.dumps(backbone.library_arguments)),
        },
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {
                    "_target_": f"{MODULE}.PrepareScand",
                    "keys": "image",
                    "spacing_mm": handover.preprocessing.spacing_mm,
                    "foreground": handover.preprocessing.foreground,
                    "intensity": handover.intensity.model_dump(mode="json"),
                    "modality": "@modality",
                    "window": "@window",
                },
            ],
        },
    }


def _inference(network: HandedOn) -> dict[str, Any]:
    task = network.task
    assert isinstance(task, Segmentation)
    config = task.config
    load = "torch.load(@checkpoint, map_location='cpu', weights_only=True)"
    return {
        **_definition(network),
        "output_dir": "$@bundle_root + '/masks'",
        "checkpoint": "$@bundle_root + '/models/model.pt'",
        "network": "$@network_def.to(@device)",
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': file} for file in @scans]",
            "transform": "@preprocessing",
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": "@window",
            "sw_batch_size": config.windows_per_batch,
            "overlap": config.overlap,
            "mode": config.blending,
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": f"{MODULE}.RestoreMaskd",
                    "keys": "pred",
                    "scan": "image",
                    "values": list(network.handover.classes),
                },
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "",
                    "separate_folder": False,
                    "resample": False,
                    "output_dtype": "$None",
                },
            ],
        },
        "evaluator": {
            "_target_": f"{MODULE}.Segmenter",
            "network": "@network",
            "dataset": "@dataset",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "device": "@device",
        },
        "initialize": [f"$@network.load_state_dict({load})"],
        "run": ["$@evaluator.run()"],
    }


def _metadata(network: HandedOn) -> dict[str, Any]:
    handover = network.handover
    low, high = handover.intensity.bounds
    modality = "/".join(handover.modalities) or "unknown"
    channels = handover.channels or tuple(
        f"channel{number}" for number in range(handover.backbone.in_channels)
    )
    image = {
        "type": "image",
        "format": "hounsfield" if modality == "CT" else "magnitude",
        "modality": modality,
        "num_channels": len(channels),
        "spatial_shape": list(network.size()),
        "dtype": "float32",
        "value_range": [low, high],
        "is_patch_data": True,
        "channel_def": {str(number): name for number, name in enumerate(channels)},
    }
    names = list(handover.classes.values()) if isinstance(network.task, Segmentation) else []
    pred = {
        "type": "image",
        "format": "segmentation",
        "num_channels": handover.out_channels,
        "spatial_shape": list(network.size()),
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": True,
        "channel_def": {str(number): name for number, name in enumerate(names)},
    }
    versions = {name: importlib.metadata.version(name) for name in _VERSIONS}
    return {
        "schema": _SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by voco {handover.voco_version}"},
        "monai_version": versions["monai"],
        "pytorch_version": versions["torch"],
        "numpy_version": versions["numpy"],
        "required_packages_version": {name: versions[name] for name in ("nibabel", "scipy")},
        "name": f"voco {handover.kind}",
        "task": handover.kind,
        "description": _description(network),
        "authors": "those who trained it",
        "copyright": "theirs",
        "intended_use": "Research. Not a medical device.",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
        "voco": handover.model_dump(mode="json"),
    }


_VERSIONS = ("monai", "torch", "numpy", "nibabel", "scipy")

_SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
"""Of MONAI's bundle metadata."""


def _description(network: HandedOn) -> str:
    handover = network.handover
    method = (handover.method or {}).get("name")
    how = f"pre-trained with {method}" if method else f"trained for {handover.kind}"
    return (
        f"{handover.backbone.name} {how}, {handover.step} steps on "
        f"{sum(store.cases for store in handover.data)} scans. Trained parts: "
        f"{', '.join(handover.trained)}; all others are random."
    )


def _readme(network: HandedOn, *, segments: bool) -> str:
    lines = ["# MONAI bundle", "", _description(network), ""]
    if segments:
        lines += [
            "Segments every file in a folder, on the grid of each:",
            "",
            "```sh",
            "pip install monai nibabel scipy fire",
            "python -m monai.bundle run --config_file configs/inference.json \\",
            "    --bundle_root . --dataset_dir SCANS --output_dir MASKS",
            "```",
            "",
            "Classes: "
            + ", ".join(f"{value} {name}" for value, name in network.handover.classes.items())
            + ".",
        ]
    else:
        lines += [
            "There is nothing to predict yet. `models/model.pt` loads into the network that",
            "`configs/network.json` defines, strictly but for the output layer;",
            "`configs/network.json` also says how scans are prepared.",
        ]
    return "\n".join([*lines, ""])


def _text(values: dict[str, Any]) -> bytes:
    return f"{json.dumps(values, indent=2)}\n".encode()
