"""Models Genesis: each damage on its own, what is restored, settings."""

import pytest
import torch
from pydantic import ValidationError
from tiny import TinyConfig, step_at

from voco.draws import Draws
from voco.methods.modelsgenesis import (
    ModelsGenesis,
    ModelsGenesisConfig,
    draw_flips,
)

HARMLESS = {"shuffle_probability": 0.0, "curve_probability": 0.0, "paint_probability": 0.0}


def config_of(**changes) -> ModelsGenesisConfig:
    return ModelsGenesisConfig(**({"crop": (8, 8, 8), "shuffle_blocks": 20} | changes))


def genesis(**changes) -> ModelsGenesis:
    torch.manual_seed(0)
    return config_of(**changes).build(TinyConfig().build())


# ---- mirroring --------------------------------------------------------------------------------


def test_the_target_is_mirrored_and_otherwise_untouched():
    ramp = torch.arange(512.0).view(1, 1, 8, 8, 8) / 511
    volumes = ramp.expand(40, -1, -1, -1, -1)
    clean = genesis().views(volumes, step_at()).clean
    allowed = {axes: ramp.flip(axes) for axes in [(), (2,), (3,), (2, 3)]}
    seen = {
        axes for row in clean for axes, image in allowed.items() if torch.equal(row[None], image)
    }
    assert seen == set(allowed)
    assert all(any(torch.equal(row[None], image) for image in allowed.values()) for row in clean)


def test_the_input_is_mirrored_like_the_target():
    method = genesis(**HARMLESS, flips="all_axes")
    views = method.views(torch.rand(10, 1, 8, 8, 8), step_at())
    assert torch.equal(views.damaged, views.clean)


@pytest.mark.parametrize(("axes", "share"), [("reference", (1, 1, 0)), ("all_axes", (1, 1, 1))])
def test_flips_are_as_likely_as_the_loop_of_the_reference_makes_them(axes, share):
    flips = draw_flips(Draws(0, 0), 20_000, axes)[:, 0].float().mean(dim=0)
    # One to three flips (0.24, 0.096, 0.064), each along one of three axes: an odd number of them.
    odd = 0.24 / 3 + 0.096 * 2 * (1 / 3) * (2 / 3) + 0.064 * (3 * (1 / 3) * (4 / 9) + 1 / 27)
    assert flips.tolist() == pytest.approx([odd * part for part in share], abs=0.01)


# ---- how much of each damage ------------------------------------------------------------------


def test_the_settings_say_which_damages_there_are():
    volumes = torch.rand(40, 1, 20, 20, 20)
    harmless = {**HARMLESS, "crop": (20, 20, 20)}
    for name in HARMLESS:
        views = genesis(**{**harmless, name: 1.0}).views(volumes, step_at())
        assert (views.damaged != views.clean).flatten(1).any(dim=1).all(), name
    still = genesis(**harmless).views(volumes, step_at())
    assert torch.equal(still.damaged, still.clean)


def test_half_of_the_curves_fall():
    ends = torch.tensor([0.0, 1.0]).repeat(4).view(1, 1, 8, 1, 1).expand(100, 1, 8, 8, 8)
    only = {**HARMLESS, "curve_probability": 1.0}
    views = genesis(**only).views(ends, step_at())
    fallen = (views.damaged == 1 - views.clean).flatten(1).all(dim=1)
    assert fallen.float().mean() == pytest.approx(0.5, abs=0.15)
    rising = genesis(**only, inverted_probability=0.0).views(ends, step_at())
    assert torch.equal(rising.damaged, rising.clean)


# ---- the whole --------------------------------------------------------------------------------


def test_guesses_cost_what_health_says():
    volumes = torch.stack([torch.zeros(1, 8, 8, 8), torch.ones(1, 8, 8, 8)])
    volumes[:, :, :4] = 0.5
    health = genesis(**HARMLESS)(volumes, step_at()).health
    assert health["mean_chance"].item() == pytest.approx(1 / 16)
    assert health["untouched_chance"] == 0
    assert health["outside_share"] == 0


def test_another_range_of_intensities_means_the_same():
    volumes = torch.rand(4, 1, 8, 8, 8)
    one, other = genesis(), genesis(intensities=(-5, 5))
    views, wide = one.views(volumes, step_at()), other.views(volumes * 10 - 5, step_at())
    torch.testing.assert_close(views.damaged * 10 - 5, wide.damaged, atol=1e-3, rtol=0)
    assert one(volumes * 10 - 5, step_at()).health["outside_share"] > 0.5
    assert other(volumes * 10 - 5, step_at()).health["outside_share"] == 0


def test_the_output_is_between_0_and_1_unless_the_sigmoid_is_off():
    volumes = torch.full((1, 1, 8, 8, 8), 1e6)
    assert genesis(**HARMLESS)._restored(volumes).amax() <= 1
    bare = genesis(**HARMLESS, sigmoid=False)
    assert bare._restored(volumes).abs().amax() > 1
    assert torch.isfinite(bare(volumes * 1e9, step_at()).losses["restoration"])


def test_every_channel_is_restored():
    torch.manual_seed(0)
    method = config_of().build(TinyConfig(in_channels=2).build())
    assert method.head.out_channels == 2
    assert torch.isfinite(method(torch.rand(2, 2, 8, 8, 8), step_at()).losses["restoration"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intensities": (1.0, 1.0)}, "not below the largest"),
        ({"flips": "none"}, "all_axes"),
        ({"inpaint_share": 1.5}, "less than or equal to 1"),
        ({"shuffle_blocks": 0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        ModelsGenesisConfig(**changes)


def test_it_learns_to_restore():
    method = genesis()
    place = torch.linspace(0, 1, 8).view(1, 1, 8, 1, 1).expand(4, 1, 8, 8, 8)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-2)
    for number in range(40):
        loss = method(place, step_at(number)).losses["restoration"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = method.eval()(place, step_at(1000))
    assert found.losses["restoration"] < found.health["untouched_chance"] / 2
