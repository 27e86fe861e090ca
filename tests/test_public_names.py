"""The names that users type: each exists, and works as it is written in the documentation."""

import subprocess
import sys

import pytest
import torch

import voco
from voco.geometry import grid_boxes, overlap, random_boxes
from voco.methods.voco import prediction_loss, regularization_loss, similarity


@pytest.mark.parametrize("name", voco.__all__)
def test_every_public_name_exists_and_is_described(name):
    assert getattr(voco, name).__doc__
    assert name in dir(voco)


def test_an_unknown_name_is_said_to_be_unknown():
    with pytest.raises(AttributeError, match="has no attribute 'pretrian'"):
        _ = voco.pretrian


def test_methods_and_backbones_tell_their_names():
    assert "voco" in voco.methods.available()
    assert {"swin_unetr", "unet", "unetr", "resenc_unet", "genesis_unet"} <= set(
        voco.backbones.available()
    )


def test_importing_voco_loads_no_heavy_library():
    code = (
        "import sys, voco; "
        "print([m for m in ('torch', 'monai', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


def test_the_geometry_can_be_called_on_its_own():
    bases = grid_boxes((2, 2, 1), (8, 8, 8))
    assert bases.dtype == torch.int64
    assert bases.shape == (4, 2, 3)
    assert torch.equal(overlap(bases, bases), torch.eye(4))
    queries = random_boxes(3, (8, 8, 8), (16, 16, 8), torch.Generator().manual_seed(0))
    assert torch.allclose(overlap(queries, bases).sum(dim=1), torch.ones(3))


@pytest.mark.parametrize("variant", ["paper", "v0", "v1", "v2"])
def test_the_losses_can_be_called_on_their_own(variant):
    bases = torch.eye(4)[None]
    queries = bases[:, :2]
    predicted = similarity(queries, bases)
    assert torch.allclose(predicted, torch.eye(4)[None, :2])
    assert prediction_loss(predicted, torch.eye(4)[:2][None], variant=variant).abs() < 1e-5
    assert regularization_loss(bases, variant=variant) == 0
