import numpy as np
import pytest
import torch
from blobs import VALUES, blob_store
from hypothesis import given
from hypothesis import strategies as st
from processes import in_two_processes
from tiny import Tiny, tiny

from voco.data.intensity import WindowIntensity
from voco.data.labelled import labelled_cases
from voco.data.patches import scaling
from voco.data.store import Store
from voco.errors import ConfigError, StoreError
from voco.inference import starts
from voco.nn.pooling import level_means
from voco.probing import Probe, drawn_voxels, extracted, find_probe, window_corners
from voco.recipes import ProbeConfig

INTENSITY = WindowIntensity(low=-200, high=200)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return blob_store(tmp_path_factory.mktemp("probing") / "store", 5)


def probe_of(store, backbone=None, **settings) -> Probe:
    settings = {"window": (16, 16, 16), "voxels": 6, "validation": 2} | settings
    return find_probe(ProbeConfig(**settings), [store], backbone or tiny(), INTENSITY)


def scaled(one) -> torch.Tensor:
    """A case as a network sees it."""
    gain, bias = scaling(one.case, INTENSITY)
    return (torch.from_numpy(one.store.read(one.case.id)) * gain + bias).clamp(0, 1)[None]


sides = st.tuples(*[st.integers(4, 40)] * 3)


@given(
    shape=sides, window=sides, overlap=st.sampled_from([0.0, 0.25, 0.5]), seed=st.integers(0, 99)
)
def test_every_voxel_is_read_in_the_window_in_whose_middle_it_lies_nearest(
    shape, window, overlap, seed
):
    places = np.random.default_rng(seed).integers(0, shape, (20, 3))
    corners = window_corners(places, shape, window, overlap)
    assert (corners <= places).all()
    assert (places < corners + window).all()
    for axis in range(3):
        room = shape[axis] - window[axis]
        firsts = starts(shape[axis], window[axis], overlap) if room >= 0 else [-((1 - room) // 2)]
        for place, corner in zip(places[:, axis], corners[:, axis], strict=True):
            away = [abs(place + 0.5 - first - window[axis] / 2) for first in firsts]
            assert firsts[away.index(min(away))] == corner


def test_as_many_voxels_of_each_structure_are_drawn_and_always_the_same(store):
    one = labelled_cases([Store(store)], "label")[0]
    label = one.store.read_label(one.case.id)
    drawn = drawn_voxels(one, tuple(VALUES), 6, seed=0)
    assert drawn.classes.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    x, y, z = drawn.places.T
    assert label[x, y, z].tolist() == [0] * 6 + [205] * 6 + [420] * 6
    assert len(np.unique(drawn.places, axis=0)) == 18
    again, other = (drawn_voxels(one, tuple(VALUES), 6, seed=seed) for seed in (0, 1))
    assert np.array_equal(again.places, drawn.places)
    assert not np.array_equal(other.places, drawn.places)


def test_a_structure_of_few_voxels_gives_all_of_them(store):
    one = labelled_cases([Store(store)], "label")[0]
    count = int((one.store.read_label(one.case.id) == 205).sum())
    drawn = drawn_voxels(one, tuple(VALUES), 10**6, seed=0)
    assert (drawn.classes == 1).sum() == count


def test_background_is_drawn_inside_the_body(store):
    one = labelled_cases([Store(store)], "label")[0]
    box = ((2, 3, 4), (9, 22, 20))
    boxed = one._replace(case=one.case.model_copy(update={"foreground": box}))
    drawn = drawn_voxels(boxed, tuple(VALUES), 50, seed=0)
    places = drawn.places[drawn.classes == 0]
    assert len(places) == 50
    assert (places >= box[0]).all()
    assert (places < box[1]).all()


def test_no_case_is_both_learnt_from_and_asked_about(store):
    probe = probe_of(store, labels=2)
    train, test = ({one.case.id for one in part} for part in probe.split[:2])
    assert (len(train), len(test)) == (2, 2)
    assert not train & test
    assert train < {one.case.id for one in probe_of(store, labels=3).split.train}


def test_features_of_a_voxel_are_those_of_the_pyramid_at_its_place(store):
    """In one window that holds the volume, computed without any of the sliding."""
    probe = probe_of(store, window=(24, 24, 24))
    network = tiny()
    train, test = extracted(probe, network, CPU)
    assert train.features.shape == (3 * 18, 4 + 6 + 8)
    assert test.cases.tolist() == [3] * 18 + [4] * 18
    one = probe.split.train[0]
    fine, _, _ = network.encode(scaled(one))
    first = slice(0, 18)
    for row, (x, y, z) in enumerate(probe.drawn(one).places.tolist()):
        torch.testing.assert_close(train.features[first][row, :4], fine[0, :, x, y, z])
    assert torch.equal(train.classes[first], torch.tensor([0] * 6 + [1] * 6 + [2] * 6))


def test_small_windows_tell_near_their_middle_what_a_large_one_tells(store):
    """Tiny sees 4 voxels at once: away from the rim a window's size makes no difference."""
    large, small = (
        extracted(probe_of(store, window=(side,) * 3, overlap=0.5), tiny(), CPU)[0]
        for side in (24, 16)
    )
    probe = probe_of(store)
    places = np.concatenate([probe.drawn(one).places for one in probe.split.train])
    corners = window_corners(places, (24, 24, 24), (16, 16, 16), 0.5)
    away = torch.from_numpy(np.minimum(places - corners, corners + 15 - places).min(axis=1))
    fine = (large.features - small.features)[:, :4].abs().amax(dim=1)
    assert (away > 1).sum() > 20
    assert fine[away > 1].max() < 1e-5


def test_a_volume_smaller_than_a_window_lies_in_its_middle(store):
    train, _ = extracted(probe_of(store, window=(32, 32, 32)), tiny(), CPU)
    same, _ = extracted(probe_of(store, window=(24, 24, 24)), tiny(), CPU)
    one = probe_of(store).split.train[0]
    places = probe_of(store).drawn(one).places
    inner = ((places > 0) & (places < 23)).all(axis=1)
    torch.testing.assert_close(train.features[:18, :4][inner], same.features[:18, :4][inner])


def test_features_of_a_case_are_its_pooled_levels(store):
    probe = probe_of(store, of="cases", window=(24, 24, 24))
    network = tiny()
    train, test = extracted(probe, network, CPU)
    assert probe.targets == ("plain", "raised")
    assert train.classes.tolist() == [
        probe.targets.index(one.case.target) for one in probe.split.train
    ]
    expected = level_means(network.encode(scaled(probe.split.train[0])), (0, 1, 2))
    torch.testing.assert_close(train.features[:1], expected)
    assert len(test.features) == 2


def test_a_network_that_is_asked_stays_as_it_was(store):
    network = tiny().train()
    network.network.down.eval()
    modes = [module.training for module in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    numbers = torch.get_rng_state()
    extracted(probe_of(store, network), network, CPU)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(parameter.grad is None for parameter in network.parameters())


def shared_rows(_rank, _world, store):
    train, test = extracted(probe_of(store), tiny(), CPU)
    return train.features, test.features, train.cases


def test_processes_share_the_cases_and_all_get_all_rows(store, tmp_path):
    train, test = extracted(probe_of(store), tiny(), CPU)
    for ours in in_two_processes(shared_rows, tmp_path, store):
        for found, expected in zip(ours, (train.features, test.features, train.cases), strict=True):
            assert torch.equal(found, expected)


class OneSize(Tiny):
    """Takes no other size."""

    fixed_size = (20, 20, 20)


def test_a_network_of_one_size_is_asked_in_that_size(store):
    backbone = OneSize(tiny().config, 1)
    assert probe_of(store, backbone, window=None).window == (20, 20, 20)
    assert probe_of(store, window=None).window == (96, 96, 96)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"validation": 0}, "validation: 0 holds no case out"),
        ({"window": (15, 16, 16)}, "multiples of 4"),
        ({"labels": 9}, "labels: 9 cases asked for, 3 are there"),
    ],
)
def test_settings_that_cannot_be_are_refused(store, settings, said):
    with pytest.raises(ConfigError, match=said):
        probe_of(store, **settings)


def test_a_network_of_other_channels_is_refused(store):
    with pytest.raises(ConfigError, match=r"backbone\.in_channels is 2"):
        probe_of(store, tiny(in_channels=2))


def test_one_class_alone_is_nothing_to_tell_apart(store):
    with pytest.raises(StoreError, match="1 cases to learn from show one class only"):
        probe_of(store, of="cases", labels=1)
