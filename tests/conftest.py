"""What the tests of every part share; the networks and steps themselves are in ``tiny.py``."""

import pytest
import torch
from hypothesis import settings
from tiny import Tiny, step_at
from tiny import tiny as build_tiny

from voco.task import Step

# The first example pays for imports and kernels; a slow machine is no failure.
settings.register_profile("voco", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("voco")


@pytest.fixture(autouse=True)
def seeded():
    """No test depends on those that ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def step() -> Step:
    """The first step of a run."""
    return step_at(0)


@pytest.fixture
def tiny() -> Tiny:
    """A backbone of three convolutions."""
    return build_tiny()
