"""One training step of VoCo per backbone: seconds and peak memory, each in a process of its own.

``python -m voco.bench.step NAME REPEATS`` prints one line of JSON.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

from voco.backbone import BackboneConfig
from voco.backbones import ResEncUNetConfig, SwinUNETRConfig, UNetConfig, UNETRConfig
from voco.draws import Draws
from voco.engine.allocator import keep_freed_pages
from voco.methods.voco import VoCoConfig
from voco.task import Step

BACKBONES: dict[str, BackboneConfig] = {
    "unet": UNetConfig(),
    "resenc_unet": ResEncUNetConfig(),
    "unetr": UNETRConfig(size=(64, 64, 64)),
    "swin_unetr-24": SwinUNETRConfig(feature_size=24),
    "swin_unetr-48": SwinUNETRConfig(feature_size=48),
}
"""What is measured, in the settings of the references."""

METHOD = VoCoConfig(variant="v1", grid=(2, 2, 1), crop=(64, 64, 64), query_count=1)
"""Four base crops and a random one: the cost of a crop, in a time that can be waited for."""


def rows(repeats: int) -> list[dict[str, Any]]:
    """One row per backbone."""
    return [_in_a_process(name, repeats) for name in BACKBONES]


def _in_a_process(name: str, repeats: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "voco.bench.step", name, str(repeats)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_step(name: str, repeats: int) -> dict[str, Any]:
    """Forward, backward and optimizer step on one volume, in float32."""
    keep_freed_pages()
    method = METHOD.build(BACKBONES[name].build())
    trained = [tensor for tensor in method.parameters() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    volume = torch.rand(1, 1, *method.window)
    before = _peak_bytes()
    seconds = []
    for number in range(repeats + 1):
        began = time.perf_counter()
        step = Step(number, repeats + 1, Draws(0, number))
        method.before_step(step)
        sum(method(volume, step).losses.values(), torch.zeros(())).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
    return {
        "backbone": name,
        "trained_parameters": sum(tensor.numel() for tensor in trained),
        "seconds": statistics.median(seconds[1:]),
        "peak_bytes": _peak_bytes(),
        "step_bytes": _peak_bytes() - before,
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(json.dumps(measure_step(sys.argv[1], int(sys.argv[2]))))  # noqa: T201 (its output)
