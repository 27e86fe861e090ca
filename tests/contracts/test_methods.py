"""What every pre-training method promises, whatever it does.

A new method adds its small settings to ``SMALL`` and is tested.
"""

import contextlib
import functools
from typing import Any

import pytest
import torch
from processes import WORLD, in_two_processes
from pydantic import TypeAdapter
from tiny import Tiny, TinyConfig, TinyMaskedConfig, TinyTokensConfig, step_at
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from voco.config import parse, read_yaml, to_yaml
from voco.errors import ConfigError
from voco.method import Method, MethodConfig
from voco.methods import MethodSettings, available

_VOCO = {"crop": [8, 8, 8], "hidden": 16, "width": 8, "grid": [2, 2, 1], "query_count": 2}
_PAIRS = {"window": [12, 12, 8], "crop": [8, 8, 8]}
_HEADS = {"hidden": 16, "width": 8, "map_hidden": 12, "map_width": 6}
_PIECES = {"grid": [2, 2, 1], "cell": [8, 8, 8], "patch": [6, 6, 6], "size": [8, 8, 8], "orders": 6}
_GLOBAL_LOCAL = {
    "window": [16, 12, 8],
    "global_crop": [12, 8, 8],
    "local_crop": [8, 8, 4],
    "scales": [0.6, 1.0],
    "width": 12,
    "depth": 1,
    "heads": 2,
    "hidden": 16,
    "head_widths": [16, 8],
    "prototypes": 20,
}
_REGISTERED = {"affine_width": 8, "flow_width": 8, "shuffle_blocks": 20, "shuffle_share": 0.25}
_MASKED = {"crop": [8, 8, 16], "width": 12, "depth": 1, "heads": 2, "hidden": 16}
_SIZED = {
    "window": [12, 12, 8],
    "sizes": [[8, 8, 8], [12, 12, 8]],
    "crop": [8, 8, 8],
}
_QUEUED = {"shuffle_blocks": 20, "queue": 6, "width": 8, "code_hidden": 8}
_INNER = {
    "local_count": 2,
    "local_sizes": [[4, 4, 4], [8, 8, 8]],
    "local_crop": [4, 4, 4],
    "swaps": 5,
    "swap_patch": [2, 2, 2],
}

SMALL: dict[str, tuple[dict[str, Any], ...]] = {
    "voco": (
        {"variant": "paper", **_VOCO},
        {"variant": "v0", **_VOCO},
        {"variant": "v1", **_VOCO, "resize": [4, 4, 4]},
        {"variant": "v2", **_VOCO, "grid": None},
    ),
    "simclr": (
        {**_PAIRS, "hidden": 16, "width": 8, "temperature": 0.5},
        {**_PAIRS, "hidden": 16, "width": 8, "pairs": 1, "levels": "last"},
    ),
    "mocov3": (
        {**_PAIRS, "hidden": 16, "width": 8, "variant": "transformer"},
        {**_PAIRS, "hidden": 16, "width": 8, "variant": "convolution", "levels": "backbone"},
    ),
    "vicregl": (
        {**_PAIRS, **_HEADS, "levels": "backbone"},
        {**_PAIRS, **_HEADS, "statistics": "slot", "map_level": 1, "farthest": None},
    ),
    "positionlabel": (
        {"crop": [12, 12, 8], "shift_probability": 1.0},
        {"crop": [8, 8, 8], "shift_probability": 1.0, "level": 1, "pairs": 50, "padding": "zeros"},
    ),
    "jigsaw": (
        {**_PIECES, "hidden": [16], "dropout": 0.5},
        {**_PIECES, "size": None, "patch": [8, 8, 8], "hidden": [], "standardise": False},
    ),
    "rot": (
        {"side": 8, "hidden": [16], "shift_probability": 1.0},
        {
            "side": 8,
            "rotations": 4,
            "per_volume": "all",
            "mask": "sphere",
            "hidden": [],
            "shift_probability": 1.0,
        },
    ),
    "volumefusion": (
        {"window": [8, 8, 8], "crop": [8, 8, 8], "least_edge": 2},
        {**_PAIRS, "least_edge": 2, "sources": "crops", "blocks": "grid", "draw_zero": True},
    ),
    "modelsgenesis": (
        {"crop": [8, 8, 8], "shuffle_blocks": 20},
        {"crop": [16, 12, 8], "flips": "all_axes", "sigmoid": False, "inpaint_share": 0.8},
    ),
    "mae3d": (
        {"variant": "standardised", **_MASKED},
        {"variant": "raw", **_MASKED, "mask_ratio": 0.5, "depth": 2},
    ),
    "rubik": (
        {"side": 8, "discriminator_channels": [4, 6]},
        {"side": 12, "slabs": 3, "adversarial_weight": 0.0, "finest_skip": False},
    ),
    "simmim": (
        {"crop": [8, 8, 16], "cube": [4, 4, 4]},
        {
            "crop": [8, 12, 8],
            "cube": [4, 2, 4],
            "mask_ratio": 0.75,
            "rounding": "down",
            "head": "linear",
            "error": "squared",
            "counted": "all",
        },
    ),
    "s3d": (
        {"crop": [8, 8, 16], "block": 4, "variant": "sparse"},
        {
            "crop": [8, 8, 8],
            "block": 2,
            "mask_ratio": 0.6,
            "largest_mask_ratio": 0.9,
            "mask_input": False,
            "efficient": True,
        },
        {"crop": [8, 8, 8], "block": 4, "variant": "dense", "hand_on_decoder": True},
    ),
    "glmae": (
        {**_GLOBAL_LOCAL, "frozen_prototype_steps": 2},
        {**_GLOBAL_LOCAL, "summary": "mean", "targets": "raw", "local_crops": 1, "scales": [1, 1]},
    ),
    "gvsl": (
        {"crop": [8, 8, 8], **_REGISTERED},
        {
            "crop": [12, 8, 8],
            **_REGISTERED,
            "affine": "detached",
            "shift_units": "reference",
            "coordinates": "reference",
            "shuffle_order": "own",
            "move_probability": 0.5,
        },
        {"crop": [8, 8, 8], **_REGISTERED, "move_probability": 0.0, "restoration_weight": 0.0},
    ),
    "swinunetr": (
        {"crop": [8, 8, 8], "width": 8, "swap_among": 2},
        {
            "crop": [12, 12, 8],
            "plane": "xy",
            "width": 8,
            "swap_among": 2,
            "swap_source": "clean",
            "readout": "mean",
            "rotation_weight": 0.0,
        },
    ),
    "swinmm": (
        {"side": 8, "block": 4, "width": 8},
        {
            "side": 8,
            "block": 2,
            "width": 8,
            "mask_ratio": 0.25,
            "masking": "reference",
            "mutual": "across",
            "readout": "mean",
            "standardise": False,
            "contrast_weight": 0.0,
        },
    ),
    "pcrl": (
        {**_SIZED, **_QUEUED},
        {
            **_SIZED,
            **_QUEUED,
            "targets": "damaged",
            "mixed_targets": "unaligned",
            "contrast": "memory_bank",
            "queued": "all",
            "sigmoid": False,
        },
    ),
    "pcrlv2": (
        {**_SIZED, **_INNER},
        {**_SIZED, **_INNER, "skips": True, "standardise": False, "sigmoid": False},
    ),
}
"""Settings of each method, one or more, that train the tiny backbone in no time."""

ON_TOKENS = {"mae3d", "glmae"}
"""Methods that take no backbone without tokens."""

ON_PATCHES = {"simmim"}
"""Methods that take no backbone that cannot hide patches."""

CASES = [(name, index) for name, many in SMALL.items() for index in range(len(many))]
every = pytest.mark.parametrize(
    ("name", "index"),
    CASES,
    ids=[f"{name}-{SMALL[name][i].get('variant', i)}" for name, i in CASES],
)


def settings_of(name: str, index: int, **changes: Any) -> MethodConfig:
    values = {"name": name, **SMALL[name][index], **changes}
    return TypeAdapter(MethodSettings).validate_python(values)


def backbone_for(name: str) -> Tiny:
    if name in ON_PATCHES:
        return TinyMaskedConfig().build()
    return (TinyTokensConfig() if name in ON_TOKENS else TinyConfig()).build()


def built(name: str, index: int, **changes: Any) -> Method:
    torch.manual_seed(0)
    return settings_of(name, index, **changes).build(backbone_for(name))


def volumes_of(method: Method, count: int = 2) -> torch.Tensor:
    shape = (count, 1, *method.window)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def tensors(views: tuple[Any, ...]) -> list[torch.Tensor]:
    return [view for view in views if isinstance(view, torch.Tensor)]


def same(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> bool:
    pairs = zip(tensors(ours), tensors(theirs), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def trained(method: Method, steps: range, optimizer: torch.optim.Optimizer) -> None:
    """A plain training loop."""
    for number in steps:
        step = step_at(number)
        method.before_step(step)
        outcome = method(volumes_of(method), step)
        optimizer.zero_grad()
        torch.stack(list(outcome.losses.values())).sum().backward()
        method.after_backward(step)
        optimizer.step()
        method.after_step(step)


def optimizer_of(method: Method) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)


def test_every_method_is_tested_here():
    assert set(available()) == set(SMALL)


@every
def test_losses_and_health_are_finite_scalars(name, index):
    method = built(name, index)
    outcome = method(volumes_of(method), step_at())
    for loss in outcome.losses.values():
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
    assert torch.stack(list(outcome.losses.values())).sum().requires_grad
    for figure in outcome.health.values():
        assert figure.shape == ()
        assert torch.isfinite(figure)
        assert not figure.requires_grad


@every
def test_the_same_step_gives_the_same_views(name, index):
    method = built(name, index)
    volumes, step = volumes_of(method), step_at(3)
    first = method.views(volumes, step)
    assert same(first, method.views(volumes, step_at(3)))
    # A picture of the views, drawn before the step is trained on, shows what is trained on.
    assert same(first, method.views(volumes, step))


@every
def test_another_step_or_seed_gives_other_views(name, index):
    method = built(name, index)
    volumes = volumes_of(method)
    first = method.views(volumes, step_at(3))
    assert not same(first, method.views(volumes, step_at(4)))
    assert not same(first, method.views(volumes, step_at(3, seed=1)))


@every
def test_views_do_not_depend_on_how_many_processes_share_the_batch(name, index):
    method = built(name, index)
    volumes = volumes_of(method, count=4)
    whole = method.views(volumes, step_at(2))
    for rank in range(2):
        rows = slice(2 * rank, 2 * rank + 2)
        part = method.views(volumes[rows], step_at(2, rank=rank, world=2))
        for all_rows, own in zip(tensors(whole), tensors(part), strict=True):
            assert torch.equal(all_rows[rows], own)


@every
def test_views_leave_the_volumes_as_they_are(name, index):
    method = built(name, index)
    volumes = volumes_of(method)
    before = volumes.clone()
    method.views(volumes, step_at())
    assert torch.equal(volumes, before)


@every
def test_random_numbers_come_from_the_step_alone(name, index):
    method = built(name, index)
    before = torch.get_rng_state()
    method(volumes_of(method), step_at())
    assert torch.equal(torch.get_rng_state(), before)


@every
def test_what_is_trained_gets_a_gradient_and_the_rest_is_frozen(name, index):
    method = built(name, index)
    method.before_step(step_at())
    outcome = method(volumes_of(method), step_at())
    torch.stack(list(outcome.losses.values())).sum().backward()
    for parameter_name, parameter in method.named_parameters():
        reached = parameter.grad is not None
        assert reached == parameter.requires_grad, parameter_name
        assert not reached or torch.isfinite(parameter.grad).all(), parameter_name
    backbone = method.handover()
    for parameter_name, parameter in backbone.network.named_parameters():
        if parameter_name.startswith(backbone.decoder_prefixes):
            assert parameter.requires_grad == method.trains_decoder, parameter_name


@every
def test_training_changes_what_is_handed_over(name, index):
    method = built(name, index)
    before = {key: value.clone() for key, value in method.handover().network.state_dict().items()}
    trained(method, range(3), optimizer_of(method))
    after = method.handover().network.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert any(key.startswith(method.handover().encoder_prefixes) for key in changed)
    if not method.trains_decoder:
        assert not any(key.startswith(method.handover().decoder_prefixes) for key in changed)


@every
def test_what_is_handed_over_has_the_names_of_the_library_network(name, index):
    fresh = backbone_for(name).network.state_dict()
    assert set(built(name, index).handover().network.state_dict()) == set(fresh)


@every
def test_a_resumed_training_ends_with_the_same_bits(name, index):
    straight = built(name, index)
    trained(straight, range(4), optimizer_of(straight))
    first = built(name, index)
    optimizer = optimizer_of(first)
    trained(first, range(2), optimizer)
    second = built(name, index)
    torch.nn.init.ones_(next(second.parameters()))
    second.load_state_dict(first.state_dict())
    resumed = optimizer_of(second)
    resumed.load_state_dict(optimizer.state_dict())
    trained(second, range(2, 4), resumed)
    for key, value in straight.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


@every
def test_settings_survive_a_round_trip(name, index, tmp_path):
    settings = settings_of(name, index)
    (tmp_path / "method.yaml").write_text(to_yaml(settings))
    assert parse(type(settings), read_yaml(tmp_path / "method.yaml"), "method.yaml") == settings


@every
def test_mixed_precision_is_finite(name, index):
    method = built(name, index)
    with torch.autocast("cpu", torch.bfloat16):
        outcome = method(volumes_of(method), step_at())
    total = torch.stack(list(outcome.losses.values())).sum()
    total.backward()
    assert total.dtype == torch.float32
    assert torch.isfinite(total)
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@every
def test_empty_volumes_are_finite(name, index):
    method = built(name, index)
    outcome = method(torch.zeros_like(volumes_of(method)), step_at())
    total = torch.stack(list(outcome.losses.values())).sum()
    total.backward()
    assert torch.isfinite(total)
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@every
def test_a_single_held_out_volume_can_be_looked_at(name, index):
    method = built(name, index).eval()
    with torch.no_grad():
        outcome = method(volumes_of(method, count=1), step_at())
    figures = [*outcome.losses.values(), *outcome.health.values()]
    assert all(torch.isfinite(figure) for figure in figures)


@every
def test_pictures_can_be_drawn_and_change_nothing(name, index):
    method = built(name, index)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    panels = method.show(volumes_of(method), step_at())
    assert panels
    for panel in panels:
        assert (panel.image is None) == (panel.bars is not None), panel.title
        if panel.image is not None:
            assert panel.image.min() >= 0
            assert panel.image.max() <= 1
    assert method.training
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())


@every
def test_a_size_the_backbone_cannot_take_is_refused_at_once(name, index):
    settings = settings_of(name, index)
    backbone = backbone_for(name)
    backbone.fixed_size = (20, 20, 20)
    with pytest.raises(ConfigError, match=r"\(20, 20, 20\)"):
        settings.build(backbone)


# ---- two processes ----------------------------------------------------------------------------


def gradients_of(rank: int, world: int) -> dict[str, dict[str, torch.Tensor]]:
    """Losses, gradients and what is remembered of this process's share of four volumes."""
    return {f"{name}-{index}": _gradients(name, index, rank, world) for name, index in CASES}


def _gradients(name: str, index: int, rank: int, world: int) -> dict[str, torch.Tensor]:
    # In float64, so that what is left of a difference is no rounding.
    method = built(name, index).double()
    volumes = volumes_of(method, count=4).double().chunk(world)[rank]
    step = step_at(1, rank=rank, world=world)
    method.before_step(step)
    outcome = method(volumes, step)
    torch.stack(list(outcome.losses.values())).sum().backward()
    method.after_step(step)
    own = {f"loss {key}": loss.detach() for key, loss in outcome.losses.items()}
    own |= {f"remembered {key}": kept.double() for key, kept in method.named_buffers()}
    return own | {key: p.grad for key, p in method.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return in_two_processes(gradients_of, tmp_path_factory.mktemp("processes"))


@functools.cache
def one_process() -> dict[str, dict[str, torch.Tensor]]:
    return gradients_of(0, 1)


@every
def test_two_processes_compute_what_one_would_of_the_whole_batch(name, index, two_processes):
    case = f"{name}-{index}"
    expected = one_process()[case]
    assert len(two_processes) == WORLD
    assert {*two_processes[0][case]} == {*expected}
    for key, value in expected.items():
        mean = torch.stack([part[case][key] for part in two_processes]).mean(dim=0)
        torch.testing.assert_close(mean, value, atol=1e-8, rtol=1e-5)


class OnCpu(torch.Generator):
    """The meta device has no generators."""

    def __new__(cls, *_):
        return super().__new__(cls, "cpu")


@pytest.fixture
def on_meta(monkeypatch):
    """Lets a step be taken on tensors that have no numbers."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "Generator", OnCpu)


def take_step(name: str, index: int, number: int = 1) -> None:
    method, step = built(name, index).to("meta"), step_at(number)
    method.before_step(step)
    outcome = method(volumes_of(method).to("meta"), step)
    torch.stack(list(outcome.losses.values())).sum().backward()
    method.after_backward(step)
    method.after_step(step)


def waits(name: str, index: int) -> bool:
    """Whether a step asks the device for a number.

    Tensors of the meta device have none: whoever asks (``item``, ``tolist``, a choice by a mask,
    a copy to the CPU) gets an error, where a GPU would make the processor wait for it. What is
    drawn on the CPU stays there, and may be asked.
    """
    try:
        take_step(name, index)
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error).lower():
            raise
        return True
    return False


@pytest.mark.parametrize("name", sorted(SMALL))
@pytest.mark.usefixtures("on_meta")
def test_no_step_waits_for_the_device(name):
    assert not any(waits(name, index) for index in range(len(SMALL[name])))


class Operators(TorchDispatchMode):
    """Notes what is called on the device, and the shapes of all that it is given and gives."""

    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        leaves = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        if any(leaf.is_meta for leaf in leaves):
            self.called.append((str(func), *(leaf.shape for leaf in leaves)))
        return out


_BOXES = "voxels of boxes of drawn sizes are listed"
SHAPES_VARY = {
    ("gvsl", 0): _BOXES,
    ("gvsl", 1): _BOXES,
    ("gvsl", 2): _BOXES,
    ("modelsgenesis", 0): _BOXES,
    ("modelsgenesis", 1): _BOXES,
    ("pcrl", 0): _BOXES,
    ("pcrl", 1): _BOXES,
    ("swinunetr", 0): _BOXES,
    ("swinunetr", 1): _BOXES,
    ("s3d", 1): "the share of what is hidden is drawn, and only what is seen is computed",
}
"""Whose steps differ in shapes on a device, and why."""


@pytest.mark.parametrize("name", sorted(SMALL))
@pytest.mark.usefixtures("on_meta")
def test_steps_on_a_device_differ_in_no_operator_and_no_shape(name):
    for index in range(len(SMALL[name])):
        seen = []
        for number in range(1, 5):
            with Operators() as operators:
                take_step(name, index, number)
            seen.append(operators.called)
        assert len(seen[0]) > 50
        same = all(each == seen[0] for each in seen[1:])
        assert same == ((name, index) not in SHAPES_VARY)
