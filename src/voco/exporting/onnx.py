"""An ONNX file, checked against onnxruntime before it is written.

The network takes prepared volumes (the ``preprocessing`` and ``intensity`` in the metadata) and
gives what :class:`~voco.exporting.network.HandedOn` gives. The batch is free. So is the size, for
networks of convolutions alone; transformers are traced for one size, and a sliding window does the
rest. What the reader of the file must know lies in its ``metadata_props``, in JSON.
"""

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from voco.backbones.genesis_unet import GenesisUNet
from voco.backbones.resenc_unet import ResEncUNet
from voco.backbones.unet import UNet
from voco.errors import WeightsError
from voco.exporting.network import HandedOn
from voco.extras import needed
from voco.shapes import Shape3, Volumes
from voco.tasks.classification import Classification

OPSET = 18
"""Version of ONNX's operators, where none is asked for: the least that torch's exporter writes
without converting."""

TOLERANCE = 1e-3
"""Largest difference from torch that is allowed, as a share of the largest output."""

_ONE_FILE = 1 << 30
"""Parameters of more bytes than this lie in a second file: ONNX files must stay below 2 GiB."""


class Checked(NamedTuple):
    """What was written, and how near it is.

    Attributes:
        files: The ONNX file, and its weights where they are too many for one file.
        difference: Largest difference between onnxruntime and torch, as a share of the largest
            output.
        sizes: The sizes at which they were compared.
        free: Whether the file takes volumes of other sizes too.
    """

    files: list[Path]
    difference: float
    sizes: tuple[Shape3, ...]
    free: bool

    def __str__(self) -> str:
        sizes = " and ".join(" x ".join(map(str, size)) for size in self.sizes)
        other = "other sizes too" if self.free else "no other size"
        return (
            f"onnxruntime and torch differ by {self.difference:.1e} of the largest output, for "
            f"volumes of {sizes} voxels; the file takes any batch, and {other}"
        )


def require() -> None:
    """Check that what this export needs is installed.

    Raises:
        UsageError: Naming what is to be installed.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        needed(name, "onnx", "An export to ONNX")


def write_onnx(
    network: HandedOn, out: Path, size: Shape3 | None = None, opset: int | None = None
) -> Checked:
    """Export a network, compare it with onnxruntime on random volumes, and write it.

    Args:
        network: The network.
        out: The file, by custom ``*.onnx``.
        size: Voxels of a volume along x, y and z; for networks that are not free, the only ones.
        opset: Version of ONNX's operators; :data:`OPSET` for ``None``.

    Raises:
        WeightsError: If torch cannot export the network, or onnxruntime computes something else.
        ConfigError: If the network cannot take that size.
    """
    size = network.size(size)
    free = takes_any_size(network)
    module = _Outputs(network)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=_made(out.parent)) as folder:
        file = Path(folder) / out.name
        _export(module, network, size, OPSET if opset is None else opset, file, free=free)
        sizes = (size, _larger(network, size)) if free else (size,)
        difference = compared(network, file, sizes)
        files = sorted(Path(folder).iterdir(), reverse=True)  # the weights before what needs them
        for made in files:
            made.replace(out.parent / made.name)
    return Checked([out.parent / made.name for made in reversed(files)], difference, sizes, free)


def takes_any_size(network: HandedOn) -> bool:
    """Whether the graph holds for all sizes that the network's strides divide."""
    convolutions = isinstance(network.backbone, UNet | ResEncUNet | GenesisUNet)
    return convolutions and not isinstance(network.task, Classification)


class _Outputs(nn.Module):
    """The network with all that it gives in one tuple: what a graph can name."""

    def __init__(self, network: HandedOn) -> None:
        super().__init__()
        self.network = network

    def forward(self, volumes: Volumes) -> tuple[Tensor, ...]:
        made = self.network(volumes)
        return (made,) if isinstance(made, Tensor) else tuple(made)


def _export(
    module: nn.Module, network: HandedOn, size: Shape3, opset: int, file: Path, *, free: bool
) -> None:
    axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=4096)}
    if free:
        step = network.backbone.divisor
        axes |= {
            axis: step * torch.export.Dim(f"{name}_{step}", min=1, max=4096)
            for axis, name in ((2, "x"), (3, "y"), (4, "z"))
        }
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")  # torch warns of its own insides
            program = torch.onnx.export(
                module,
                (_random(network, size, batch=2),),
                dynamo=True,
                verbose=False,
                input_names=["volumes"],
                output_names=list(network.outputs),
                dynamic_shapes={"volumes": axes},
                opset_version=opset,
            )
    except Exception as error:  # noqa: BLE001 (torch's exporter raises anything)
        raise WeightsError(
            f"torch cannot export this network to ONNX with opset {opset}: {error}"
        ) from None
    assert program is not None
    program.model.metadata_props.update(dict(_facts(network, size, free=free)))
    program.save(file, external_data=_bytes(network) > _ONE_FILE)


def compared(network: HandedOn, file: Path, sizes: tuple[Shape3, ...]) -> float:
    """How far onnxruntime is from torch: largest difference, as a share of the largest output.

    Args:
        network: What torch computes.
        file: What onnxruntime computes.
        sizes: Voxels of the random volumes that both get, in batches of 1, 2, ...

    Raises:
        WeightsError: If they are further apart than :data:`TOLERANCE`.
    """
    import onnxruntime  # noqa: PLC0415 (an extra)  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    worst = 0.0
    for number, size in enumerate(sizes):
        volumes = _random(network, size, batch=number + 1)
        with torch.no_grad():
            expected = _Outputs(network)(volumes)
        found = session.run(None, {"volumes": volumes.numpy()})
        for name, ours, theirs in zip(network.outputs, expected, found, strict=True):
            apart = float(np.abs(ours.numpy() - np.asarray(theirs)).max())
            share = apart / max(float(ours.abs().max()), 1e-12)
            worst = max(worst, share)
            if not share <= TOLERANCE:
                raise WeightsError(
                    f"onnxruntime {onnxruntime.__version__} gives another '{name}' than torch "
                    f"for volumes of {size} voxels: up to {apart:.3g} apart, {share:.3g} of the "
                    f"largest value (allowed: {TOLERANCE:g}). Nothing is written. Try another "
                    "--opset, or other versions of torch and onnxruntime."
                )
    return worst


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch logs about packages that nothing here needs."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _facts(network: HandedOn, size: Shape3, *, free: bool) -> Iterator[tuple[str, str]]:
    """What a reader of the file must know, in JSON."""
    handover = network.handover
    task = handover.task or {}
    facts = {
        "voco.kind": handover.kind,
        "voco.preprocessing": handover.preprocessing.model_dump(mode="json"),
        "voco.intensity": handover.intensity.model_dump(mode="json"),
        "voco.classes": {str(value): name for value, name in handover.classes.items()},
        "voco.channels": handover.channels,
        "voco.modalities": handover.modalities,
        "voco.window": size,
        "voco.any_size_divisible_by": network.backbone.divisor if free else None,
        "voco.overlap": task.get("overlap"),
        "voco.blending": task.get("blending"),
        "voco.handover": handover.model_dump(mode="json"),
    }
    for name, value in facts.items():
        yield name, json.dumps(value)


def _random(network: HandedOn, size: Shape3, batch: int) -> Tensor:
    low, high = network.handover.intensity.bounds
    rng = torch.Generator().manual_seed(0)
    shape = (batch, network.backbone.config.in_channels, *size)
    return torch.rand(shape, generator=rng) * (high - low) + low


def _larger(network: HandedOn, size: Shape3) -> Shape3:
    x, y, z = size
    return (x + network.backbone.divisor, y, z)


def _bytes(network: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
