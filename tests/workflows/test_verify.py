"""Checking and mending a store."""

import numpy as np
import pytest

from voco.data.imageio import write_image
from voco.data.store import Store
from voco.errors import StoreError
from voco.geometry import Grid
from voco.volume import Volume
from voco.workflows.prepare import prepare
from voco.workflows.verify import verify


@pytest.fixture
def scans(tmp_path):
    random = np.random.default_rng(0)
    grid = Grid((12, 12, 12), np.diag([1.0, 1.0, 1.0, 1.0]))
    for number in range(3):
        image = Volume(random.integers(0, 500, (1, 12, 12, 12)).astype(np.int16), grid)
        for folder, volume in (("imagesTr", image), ("labelsTr", image_mask(image))):
            (tmp_path / "scans" / folder).mkdir(parents=True, exist_ok=True)
            write_image(volume, tmp_path / "scans" / folder / f"s{number}.nii.gz")
    return tmp_path / "scans"


@pytest.fixture
def store(scans, tmp_path):
    prepare(scans, tmp_path / "store", workers=1, modality="MR")
    return Store(tmp_path / "store")


def image_mask(image):
    return Volume((image.array > 250).astype(np.uint8), image.grid)


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_store_as_written_is_sound(store):
    found = verify(store.path)
    assert (found.sound, found.checked, found.damaged) == (True, 3, {})


@pytest.mark.parametrize("kind", ["image", "label"])
def test_one_flipped_bit_is_found_and_mended(store, kind):
    file = store.image_file("s1") if kind == "image" else store.label_file("s1")
    before = file.read_bytes()
    flip_a_bit(file)
    found = verify(store.path)
    assert not found.sound
    assert list(found.damaged) == ["s1"]
    assert "--repair" in str(found)
    mended = verify(store.path, repair=True)
    assert mended.sound
    assert mended.repaired == ("s1",)
    assert file.read_bytes() == before
    assert verify(store.path).sound


def test_a_missing_and_a_cut_file_are_mended_together(store):
    store.image_file("s0").unlink()
    file = store.label_file("s2")
    file.write_bytes(file.read_bytes()[:40])
    mended = verify(store.path, repair=True)
    assert set(mended.repaired) == {"s0", "s2"}
    assert {case.modality for case in Store(store.path).cases.values()} == {"MR"}
    assert verify(store.path).sound


def test_a_case_is_not_mended_from_a_source_that_changed(store, scans):
    flip_a_bit(store.image_file("s1"))
    (scans / "imagesTr" / "s1.nii.gz").write_bytes((scans / "imagesTr" / "s2.nii.gz").read_bytes())
    mended = verify(store.path, repair=True)
    assert not mended.sound
    assert "changed" in mended.failed["s1"]
    assert "voco prepare" in str(mended)


def test_a_case_whose_source_is_gone_says_so(store, scans):
    flip_a_bit(store.image_file("s1"))
    (scans / "imagesTr" / "s1.nii.gz").unlink()
    assert "no longer found" in verify(store.path, repair=True).failed["s1"]


def test_a_folder_that_is_no_store_is_an_error(tmp_path):
    with pytest.raises(StoreError, match="not a store"):
        verify(tmp_path)
