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


COSTLY = ("two", "two_processes", "straight")
"""Module fixtures that train in processes of their own."""


def pytest_collection_modifyitems(items):
    """Tests that share a costly fixture run in one worker, so that it is made once."""
    for item in items:
        if any(name in COSTLY for name in getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
