"""The loss of restoring, and of guessing."""

import pytest
import torch

from voco.nn.restoration import restoration_health, restoration_loss


def test_all_of_the_volume_counts_in_the_loss():
    found, clean = torch.zeros(2, 1, 4, 4, 4), torch.zeros(2, 1, 4, 4, 4)
    clean[0, 0, 0, 0, 0] = 4.0
    assert restoration_loss(found, clean) == 16 / 128


def test_the_loss_is_float32_whatever_comes_in():
    volumes = torch.full((1, 1, 2, 2, 2), 1e30, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert restoration_loss(volumes, volumes).dtype == torch.float32
        assert restoration_loss(volumes, volumes) == 0


def test_guesses_cost_what_they_would_as_predictions():
    clean = torch.stack([torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2)])
    clean[1, 0, 0] = -1.0
    damaged = clean + 0.5
    health = restoration_health(damaged, clean)
    assert health["mean_chance"].item() == pytest.approx(0.5)
    assert health["untouched_chance"].item() == pytest.approx(0.25)
    assert health["outside_share"].item() == pytest.approx(0.25)
