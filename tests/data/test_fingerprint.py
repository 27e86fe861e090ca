"""Fingerprints: a scan is recognised however it was prepared, and no other one is taken for it."""

import gzip
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from voco.data.fingerprint import (
    SAME,
    Fingerprint,
    Looks,
    aligned_likeness,
    decode,
    decoded,
    directions,
    fingerprint,
)
from voco.data.leaks import find_overlaps, likeness_of
from voco.data.phantom import torso
from voco.data.preprocess import prepare_volume
from voco.data.store import Preprocessing
from voco.geometry import Grid
from voco.volume import Volume

SPACING = (1.0, 1.0, 1.0)


def body(seed, shape=(48, 44, 40)):
    """A smooth ellipsoid of tissue in air, with organs of its own; HU."""
    rng = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    organs = ndimage.gaussian_filter(rng.normal(size=shape), 3)
    inside = (places**2).sum(axis=0) < 0.7
    tissue = 40 + 60 * organs / organs.std()
    return np.where(inside, tissue, -1000).round().astype(np.int16)


def prepared(array, affine=None, modality="CT", **preprocessing):
    affine = np.diag([1.0, 1.0, 1.0, 1.0]) if affine is None else affine
    volume = Volume(array[None], Grid(array.shape, affine))
    return prepare_volume(volume, Preprocessing(**preprocessing), modality=modality)


def mark_of(ready):
    return fingerprint(ready.image, ready.grid.spacing_mm)


def likeness(first, second):
    return likeness_of(first.looks, second.looks)


@pytest.fixture(scope="module")
def scan():
    return body(0)


@pytest.fixture(scope="module")
def mark(scan):
    return mark_of(prepared(scan))


COPIES = {
    "resampled": lambda scan: prepared(scan, spacing_mm=(1.6, 1.6, 1.6)),
    "thick slices": lambda scan: prepared(scan, spacing_mm=(1, 1, 3)),
    "cut to the body": lambda scan: prepared(scan, foreground=True),
    "gain and offset": lambda scan: prepared(scan * np.float32(0.37) + 1100, modality="unknown"),
    "window": lambda scan: prepared(
        ((np.clip(scan, -160, 240) + 160) / 400 * 255).astype(np.uint8), modality="unknown"
    ),
    "noise": lambda scan: prepared(
        (scan + np.random.default_rng(1).normal(0, 30, scan.shape)).astype(np.float32),
        modality="MR",
    ),
    "all of it": lambda scan: prepared(
        ((np.clip(scan, -160, 240) + 160) / 400 * 255).astype(np.uint8),
        modality="unknown",
        foreground=True,
        spacing_mm=(1.5, 1.5, 1.5),
    ),
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_looks_the_same(scan, mark, copy):
    assert likeness(mark, mark_of(COPIES[copy](scan))) >= SAME


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_of_another_scan_does_not(mark, copy):
    assert likeness(mark, mark_of(COPIES[copy](body(1)))) < 0.85


def test_a_copy_that_lost_slices_looks_the_same_once_it_is_aligned(scan, mark):
    cut = mark_of(prepared(scan[..., 7:]))
    before = float((directions(mark.looks.waves) @ directions(cut.looks.waves).T).max())
    assert before < SAME <= likeness(mark, cut)


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (2, 0, 1), (1, 0, 2)])
def test_turning_the_axes_in_file_and_header_changes_nothing(scan, mark, axes):
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, list(axes)]
    array = np.ascontiguousarray(scan.transpose(axes)[::-1])
    affine[:3, 3] = affine[:3, 0] * (len(array) - 1)
    affine[:3, 0] *= -1
    turned = mark_of(prepared(array, affine))
    assert turned.voxels == mark.voxels
    assert np.array_equal(turned.looks.waves, mark.looks.waves)


@settings(max_examples=10)
@given(gain=st.integers(1, 20), offset=st.integers(-1000, 1000))
def test_gain_and_offset_leave_the_look_as_it_is(gain, offset):
    image = body(2, (20, 20, 20))[None]
    changed = fingerprint((image * gain + offset).astype(np.int16), SPACING)
    assert likeness(fingerprint(image, SPACING), changed) > 0.99


def test_torsos_do_not_pass_for_each_other_but_their_copies_do():
    volumes = [torso(0, case, spacing_mm=8.0).image for case in range(2)]
    marks = [mark_of(prepare_volume(v, Preprocessing(), modality="CT")) for v in volumes]
    assert max(likeness(a, b) for a, b in combinations(marks, 2)) < SAME
    cut = Preprocessing(foreground=True, spacing_mm=(10.0, 10.0, 10.0))
    copies = [mark_of(prepare_volume(v, cut, modality="CT")) for v in volumes]
    assert [(o.seen, o.tested) for o in find_overlaps(marks, copies)] == [(n, n) for n in range(2)]


@settings(max_examples=10)
@given(numbers=st.integers(0, 99), channels=st.integers(1, 2))
def test_a_fingerprint_survives_as_text(numbers, channels):
    rng = np.random.default_rng(numbers)
    image = rng.integers(-99, 99, (channels, 9, 8, 7)).astype(np.int16)
    made = fingerprint(image, (1.0, 2.0, 0.7), "abc")
    read = decode(made.encode())
    assert (read.files, read.voxels) == (made.files, made.voxels)
    assert np.array_equal(read.looks.waves, made.looks.waves)
    assert np.array_equal(read.looks.sides_mm, made.looks.sides_mm)


def test_a_fingerprint_is_about_a_kilobyte(mark):
    assert 1 <= len(mark.looks.waves) <= 3
    assert len(mark.encode()) < 1450


@pytest.mark.parametrize("text", ["", "1:", "1:????", "1:AAAA", "2:" + "A" * 24])
def test_what_is_no_fingerprint_of_this_version_is_passed_over(text):
    assert decode(text) is None
    assert decoded([text]) == []


def test_equal_voxels_are_equal_whatever_the_files(scan):
    first, second = (fingerprint(scan[None], SPACING, files) for files in ("a", "b"))
    assert first.voxels == second.voxels
    assert [item.same for item in find_overlaps([first], [second])] == ["voxels"]
    assert [item.same for item in find_overlaps([first], [first])] == ["files"]


def test_unknown_files_are_not_equal():
    one, other = (fingerprint(body(seed)[None], SPACING) for seed in (0, 1))
    assert not any(one.files)
    assert find_overlaps([one], [other]) == []


@pytest.mark.parametrize("value", [0, -1000, 32767])
def test_a_volume_that_is_the_same_everywhere_has_no_look_and_equals_its_copies_only(value, mark):
    flat = fingerprint(np.full((1, 9, 9, 9), value, np.int16), SPACING)
    assert len(flat.looks.waves) == 0
    assert decode(flat.encode()).voxels == flat.voxels
    assert [item.same for item in find_overlaps([flat, mark], [flat])] == ["voxels"]
    other = fingerprint(np.full((1, 9, 9, 8), value, np.int16), SPACING)
    assert find_overlaps([flat], [other]) == []


@pytest.mark.parametrize("shape", [(1, 3, 3, 3), (1, 3, 200, 4), (2, 5, 5, 5)])
def test_any_shape_has_a_fingerprint(shape):
    image = np.arange(np.prod(shape)).astype(np.int16).reshape(shape)
    made = fingerprint(image, SPACING)
    assert np.isfinite(made.looks.waves).all()
    assert len(made.looks.waves) >= shape[0]


def test_a_channel_is_found_among_several(scan, mark):
    both = fingerprint(np.stack([body(5), scan]), SPACING)
    assert [item.same for item in find_overlaps([both], [mark])] == ["look"]


def test_looks_of_boxes_of_quite_another_size_are_not_aligned(mark):
    row = Looks(mark.looks.sides_mm[:1], mark.looks.waves[:1])
    assert aligned_likeness(row, row) == pytest.approx(1, abs=1e-6)
    assert aligned_likeness(row, Looks(row.sides_mm * np.float32(2.1), row.waves)) == 0


def test_the_same_look_at_another_size_fits_less(mark):
    row = Looks(mark.looks.sides_mm[:1], mark.looks.waves[:1])
    assert aligned_likeness(row, Looks(row.sides_mm * np.float32(1.2), row.waves)) < SAME


def test_overlaps_come_in_the_order_of_the_tested_cases():
    marks = [mark_of(prepared(body(seed))) for seed in (0, 1, 2)]
    found = find_overlaps([marks[2], marks[0], marks[0]], [marks[0], marks[1], marks[2]])
    assert [(item.seen, item.tested) for item in found] == [(1, 0), (2, 0), (0, 2)]
    assert find_overlaps([], marks) == find_overlaps(marks, []) == []


def test_a_lower_likeness_shows_more(scan, mark):
    far = mark_of(prepared(np.clip(scan, 20, 60).astype(np.int16)[3:, :-4, 5:], modality="MR"))
    alike = likeness(mark, far)
    assert 0.5 < alike < SAME
    assert find_overlaps([mark], [far]) == []
    assert len(find_overlaps([mark], [far], alike - 0.01)) == 1


def test_compression_does_not_reach_the_voxels(scan):
    levels = [gzip.decompress(gzip.compress(scan.tobytes(), level)) for level in (1, 9)]
    marks = [
        fingerprint(np.frombuffer(raw, np.int16).reshape(1, *scan.shape), SPACING, str(level))
        for level, raw in enumerate(levels)
    ]
    assert isinstance(marks[0], Fingerprint)
    assert marks[0].voxels == marks[1].voxels
