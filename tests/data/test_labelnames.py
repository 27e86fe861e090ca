from xml.etree import ElementTree

import nibabel as nib
import numpy as np

from voco.data.imageio import read_label, write_image
from voco.data.labelnames import caret_extension, colour, itksnap_labels
from voco.geometry import Grid
from voco.volume import Volume

CLASSES = {0: "background", 205: 'left "big" ear <é>', 420: "tail"}


def test_the_names_travel_in_the_file_and_the_voxels_stay(tmp_path):
    array = np.random.default_rng(0).choice([0, 205, 420], (1, 4, 5, 6)).astype(np.int16)
    volume = Volume(array, Grid((4, 5, 6), np.diag([1.5, 1.5, 3, 1])))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_image(volume, tmp_path / name, labels=CLASSES)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    (extension,) = nib.load(tmp_path / "a.nii.gz").header.extensions
    assert extension.get_code() == 30
    table = ElementTree.fromstring(extension.content.rstrip(b"\0")).iter("Label")
    assert {int(entry.get("Key")): entry.text for entry in table} == CLASSES
    again = read_label(tmp_path / "a.nii.gz")
    assert np.array_equal(again.array, array)
    assert np.allclose(again.grid.affine, volume.grid.affine)


def test_colours_of_classes_differ_and_the_background_is_unseen():
    colours = [colour(number) for number in range(120)]
    assert len(set(colours)) == len(colours)
    assert all(0 <= part <= 255 for each in colours for part in each)
    keys = [
        entry.get("Alpha")
        for entry in ElementTree.fromstring(caret_extension(CLASSES)).iter("Label")
    ]
    assert keys == ["0", "1", "1"]


def test_a_label_description_has_eight_columns_in_each_line():
    first, *lines = itksnap_labels(CLASSES).splitlines()
    assert first.startswith("#")
    for line, (value, name) in zip(lines, CLASSES.items(), strict=True):
        numbers, quoted, rest = line.split('"')
        assert int(numbers.split()[0]) == value
        assert len(numbers.split()) == 7
        assert quoted == name.replace('"', "'")
        assert rest == ""
