"""Every method with every backbone that it fits: the networks themselves, not a stand-in.

The battery in ``test_methods`` runs on a network of three convolutions. Here each pair of a method
and a real network trains for a moment, is resumed, and is shared by two processes.
"""

import copy
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from processes import WORLD, in_two_processes
from pydantic import TypeAdapter
from tiny import step_at

from voco.backbone import Backbone
from voco.backbones import BackboneSettings
from voco.errors import ConfigError
from voco.method import Method
from voco.methods import MethodSettings, available

ALL_PAIRS = "VOCO_TEST_ALL_PAIRS" in os.environ
"""Whether what takes a CPU many minutes is done for all pairs: see the two places below."""

NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "resenc_unet": ({"features": (4, 6, 8), "blocks": (1, 1, 1)}, 8),
    "unet": ({"features": (4, 4, 4, 6, 8, 4)}, 32),
    "unetr": (
        {
            "size": (32, 32, 32),
            "feature_size": 4,
            "hidden_size": 24,
            "mlp_dim": 8,
            "num_heads": 2,
        },
        32,
    ),
    "swin_unetr": ({"feature_size": 12, "depths": (1, 1, 1, 1), "use_v2": False}, 64),
    "genesis_unet": ({"features": (4, 4, 6, 8)}, 16),
}
"""Small settings of every backbone, and a side of a cube that it can be trained on."""

_HEADS = {"hidden": 8, "width": 8}


def _pair(side: int) -> dict[str, Any]:
    return {"window": 3 * [side + 2], "crop": 3 * [side]}


SETTINGS: dict[str, Callable[[int], dict[str, Any]]] = {
    "voco": lambda s: {"grid": [2, 1, 1], "crop": 3 * [s], "query_count": 1, **_HEADS},
    "simclr": lambda s: {**_pair(s), "pairs": 1, **_HEADS},
    "mocov3": lambda s: {**_pair(s), "variant": "convolution", **_HEADS},
    "vicregl": lambda s: {**_pair(s), "map_hidden": 6, "map_width": 4, **_HEADS},
    "jigsaw": lambda s: {
        "grid": [2, 1, 1],
        "cell": 3 * [s],
        "patch": 3 * [s - 1],
        "size": 3 * [s],
        "orders": 2,
        "hidden": [8],
    },
    "positionlabel": lambda s: {"crop": 3 * [s], "pairs": 50},
    "rot": lambda s: {"side": s, "hidden": [8]},
    "volumefusion": lambda s: {"window": 3 * [s], "crop": 3 * [s], "least_edge": 2},
    "modelsgenesis": lambda s: {"crop": 3 * [s], "shuffle_blocks": 10},
    "mae3d": lambda s: {"crop": 3 * [s], "width": 12, "depth": 1, "heads": 2, "hidden": 8},
    "simmim": lambda s: {"crop": 3 * [s], "cube": 3 * [min(16, s // 2)]},
    "rubik": lambda s: {"side": s, "discriminator_channels": [4, 4]},
    "s3d": lambda s: {"crop": 3 * [s], "block": s // 4},
    "glmae": lambda s: {
        "window": 3 * [2 * s],
        "global_crop": 3 * [s],
        "local_crop": 3 * [s],
        "local_crops": 1,
        "width": 12,
        "depth": 1,
        "heads": 2,
        "hidden": 8,
        "head_widths": [8, 4],
        "prototypes": 4,
    },
    "swinunetr": lambda s: {"crop": 3 * [s], "width": 8, "swap_among": 2},
    "swinmm": lambda s: {"side": s, "block": s // 4, "width": 8},
    "pcrl": lambda s: {
        "window": 3 * [s],
        "sizes": [3 * [s]],
        "crop": 3 * [s],
        "shuffle_blocks": 10,
        "queue": 8,
    },
    "pcrlv2": lambda s: {
        "window": 3 * [s],
        "sizes": [3 * [s]],
        "crop": 3 * [s],
        "local_sizes": [3 * [s]],
        "local_crop": 3 * [s],
        "local_count": 1,
        "swap_patch": [2, 2, 2],
    },
    "gvsl": lambda s: {"crop": 3 * [s], "affine_width": 8},
}
"""Small settings of every method for cubes of a side."""

NEED_TWO = {"simclr", "mocov3", "vicregl", "volumefusion", "swinunetr", "gvsl", "pcrl", "pcrlv2"}
"""Methods that compare volumes of a batch; the others do with one, which takes half the time."""

FITS: dict[str, set[str]] = {
    "mae3d": {"unetr"},
    "glmae": {"unetr"},
    "simmim": {"unetr", "swin_unetr"},
    "s3d": {"resenc_unet", "unet"},
}
"""Methods that need something special of a network; the others fit all."""

PAIRS = [
    (method, network)
    for method in SETTINGS
    for network in NETWORKS
    if network in FITS.get(method, set(NETWORKS))
]
UNFIT = [
    (method, network)
    for method, fitting in FITS.items()
    for network in NETWORKS
    if network not in fitting
]


def network_of(name: str, seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    settings = {"name": name, **NETWORKS[name][0]}
    return TypeAdapter(BackboneSettings).validate_python(settings).build()


def built(method: str, network: str, seed: int = 0) -> Method:
    settings = {"name": method, **SETTINGS[method](NETWORKS[network][1])}
    backbone = network_of(network, seed)
    return TypeAdapter(MethodSettings).validate_python(settings).build(backbone)


def gradients(method: Method, number: int) -> None:
    """One pass, there and back; everything finite, everything trained is reached."""
    count = 2 if method.config.name in NEED_TWO else 1
    seeded = torch.Generator().manual_seed(number)
    volumes = torch.rand((count, 1, *method.window), generator=seeded)
    method.before_step(step_at(number))
    losses = method(volumes, step_at(number)).losses
    total = torch.stack(list(losses.values())).sum()
    assert total.dtype == torch.float32
    assert torch.isfinite(total)
    total.backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all()), name


def train(method: Method, optimizer: torch.optim.Optimizer, number: int) -> None:
    """A whole step."""
    optimizer.zero_grad()
    gradients(method, number)
    method.after_backward(step_at(number))
    optimizer.step()
    method.after_step(step_at(number))


def optimizer_of(method: Method) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)


def test_every_method_is_here():
    assert set(SETTINGS) == set(available())


@pytest.mark.parametrize(("method", "network"), PAIRS)
def test_a_method_trains_what_it_hands_over_and_resumes_to_the_same_bits(method, network):
    trained = built(method, network)
    backbone = trained.handover()
    before = {name: value.clone() for name, value in backbone.network.state_dict().items()}
    optimizer = optimizer_of(trained)
    train(trained, optimizer, 0)
    after = backbone.network.state_dict()
    assert all(bool(torch.isfinite(value).all()) for value in after.values())
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    handed = tuple(p for part in trained.trained_parts() for p in backbone.prefixes(part))
    assert any(name.startswith(handed) for name in changed)

    saved = copy.deepcopy((trained.state_dict(), optimizer.state_dict()))
    train(trained, optimizer, 1)
    resumed = built(method, network, seed=1)
    again = optimizer_of(resumed)
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    train(resumed, again, 1)
    ended = resumed.state_dict()
    for name, value in trained.state_dict().items():
        assert torch.equal(value, ended[name]), name

    # A transformer of 64 cubed in half precision takes a CPU many seconds: once is enough for CI.
    if network != "swin_unetr" or method == "positionlabel" or ALL_PAIRS:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            gradients(trained, 2)


SHARED = {
    "resenc_unet": set(SETTINGS),
    "genesis_unet": set(SETTINGS),
    "unet": {"positionlabel", "s3d"},
    "unetr": {"positionlabel", "mae3d", "glmae", "simmim"},
    "swin_unetr": {"positionlabel", "simmim"},
}
"""What two processes share: all methods on a network that normalises every volume by itself and on
one that mixes them, and on the larger networks those that need their like. In float64 each of these
takes a CPU many seconds: ``VOCO_TEST_ALL_PAIRS=1`` shares all, in half an hour and 12 GB."""


def shares_of(rank: int, world: int) -> dict[tuple[str, str], dict[str, torch.Tensor]]:
    """Losses, buffers and gradients of each pair, on this process's share of the volumes."""
    chosen = [pair for pair in PAIRS if ALL_PAIRS or pair[0] in SHARED[pair[1]]]
    return {pair: _share(*pair, rank, world) for pair in chosen}


def _share(method: str, network: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    # In float64, so that what is left of a difference is no rounding.
    trained = built(method, network).double()
    count = WORLD * (2 if method in NEED_TWO else 1)
    seeded = torch.Generator().manual_seed(0)
    volumes = torch.rand((count, 1, *trained.window), generator=seeded).double().chunk(world)[rank]
    step = step_at(1, rank=rank, world=world)
    trained.before_step(step)
    losses = trained(volumes, step).losses
    torch.stack(list(losses.values())).sum().backward()
    found = {f"loss {name}": loss.detach() for name, loss in losses.items()}
    found |= {f"kept {name}": kept.double() for name, kept in trained.named_buffers()}
    return found | {n: p.grad for n, p in trained.named_parameters() if p.grad is not None}


@pytest.mark.slow
def test_two_processes_compute_what_one_would_of_the_whole_batch(tmp_path):
    # All in one pair of processes: starting them takes longest.
    parts = in_two_processes(shares_of, tmp_path)
    apart: list[str] = []
    for pair, expected in shares_of(0, 1).items():
        assert {*parts[0][pair]} == {*expected}
        for name, value in expected.items():
            mean = torch.stack([part[pair][name] for part in parts]).mean(dim=0)
            try:
                torch.testing.assert_close(mean, value, atol=1e-8, rtol=1e-5)
            except AssertionError as difference:
                apart.append(f"{pair} {name}: {difference}")
    assert not apart


@pytest.mark.parametrize(("method", "network"), UNFIT)
def test_a_method_refuses_a_network_that_does_not_fit_and_names_those_that_do(method, network):
    with pytest.raises(ConfigError) as refusal:
        built(method, network)
    assert all(name in str(refusal.value) for name in FITS[method])
