from contextlib import suppress

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_files import slice_dataset, write_multiframe, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import RLELossless, generate_uid

from voco.data.dicom import find_stacks, is_dicom, read_folder, read_stack
from voco.data.imageio import read_scan
from voco.errors import DataError

rng = np.random.default_rng(0)
STORED = rng.integers(0, 2000, (5, 6, 7)).astype(np.uint16)
"""Slices, rows, columns."""

TILT = np.cos(np.radians(20)), np.sin(np.radians(20))


def refusal(folder):
    with pytest.raises(DataError) as caught:
        read_scan(folder)
    return str(caught.value)


def test_a_series_is_read_in_hu_where_it_lies(tmp_path):
    write_series(tmp_path, STORED)
    scan = read_scan(tmp_path)
    np.testing.assert_array_equal(scan.volume.array[0], STORED.T.astype(int) - 1024)
    assert scan.volume.array.dtype == np.int16
    assert scan.modality == "CT"
    # Columns are 0.75 mm and rows 0.5 mm apart; DICOM counts towards left and back.
    expected = np.diag([-0.75, -0.5, 2, 1])
    expected[:3, 3] = 10, 20, 30
    np.testing.assert_allclose(scan.volume.grid.affine, expected, atol=1e-6)
    assert scan.volume.grid.orientation == "LPS"


@settings(max_examples=10)
@given(st.permutations(range(5)))
def test_the_order_of_files_does_not_matter(tmp_path_factory, order):
    folder = tmp_path_factory.mktemp("series")
    names = [f"{place}.dcm" for place in order]
    write_series(folder, STORED, names=names)
    array = read_scan(folder).volume.array
    np.testing.assert_array_equal(array[0], STORED.T.astype(int) - 1024)


def test_an_oblique_series_keeps_its_affine(tmp_path):
    cos, sin = TILT
    normal = np.array([0, -sin, cos])
    positions = [np.array([1, 2, 3]) + 2.5 * i * normal for i in range(5)]
    write_series(
        tmp_path, STORED, positions=positions, ImageOrientationPatient=[1, 0, 0, 0, cos, sin]
    )
    grid = read_scan(tmp_path).volume.grid
    np.testing.assert_allclose(grid.spacing_mm, (0.75, 0.5, 2.5), atol=1e-5)
    expected = np.array([-1, -1, 1]) * (positions[4] + np.array([0, 5 * 0.5 * cos, 5 * 0.5 * sin]))
    np.testing.assert_allclose((grid.affine @ [0, 5, 4, 1])[:3], expected, atol=1e-5)


def test_each_slice_has_its_own_rescaling(tmp_path):
    for index, pixels in enumerate(STORED):
        data = slice_dataset(
            pixels, (0, 0, index), Modality="PT", RescaleSlope=0.5 * index, RescaleIntercept=1
        )
        data.save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    array = read_scan(tmp_path).volume.array
    assert array.dtype == np.float32
    for index, pixels in enumerate(STORED):
        np.testing.assert_allclose(array[0, :, :, index], pixels.T * 0.5 * index + 1)


def test_a_missing_slice_is_refused_and_named(tmp_path):
    write_series(tmp_path, STORED, positions=[(0, 0, z) for z in (0, 2, 4, 8, 10)])
    text = refusal(tmp_path)
    assert "2 mm apart, but 4 mm between 002.dcm and 003.dcm" in text


def test_positions_that_were_rounded_are_taken(tmp_path):
    write_series(tmp_path, STORED, positions=[(0, 0, z) for z in (0, 0.62, 1.25, 1.88, 2.5)])
    assert read_scan(tmp_path).volume.grid.spacing_mm[2] == pytest.approx(0.625)


def test_gantry_tilt_is_refused_with_its_angle(tmp_path):
    cos, sin = TILT
    orientation = [1, 0, 0, 0, cos, -sin]
    write_series(tmp_path, STORED, ImageOrientationPatient=orientation)
    assert "gantry tilt: the slices are stacked at 20.0 degrees" in refusal(tmp_path)


def test_a_slice_moved_sideways_is_refused(tmp_path):
    positions = [(0, 0, 0), (0, 0, 2), (3, 0, 4), (0, 0, 6), (0, 0, 8)]
    write_series(tmp_path, STORED, positions=positions)
    assert "shifted sideways by up to 3 mm" in refusal(tmp_path)


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_slices_are_no_volume(tmp_path, count):
    write_series(tmp_path, STORED[:count])
    assert f"{count} slice" in refusal(tmp_path)


def test_duplicated_slices_are_refused(tmp_path):
    write_series(tmp_path, STORED, positions=[(0, 0, z) for z in (0, 2, 2, 4, 6)])
    assert "5 slices at 4 positions: copies of some slices" in refusal(tmp_path)


def test_two_time_points_that_nothing_separates_are_refused_with_their_number(tmp_path):
    twice = np.concatenate([STORED, STORED])
    write_series(tmp_path, twice, positions=[(0, 0, 2 * (i % 5)) for i in range(10)])
    assert "10 slices at 5 positions: 2 volumes" in refusal(tmp_path)


def test_two_time_points_that_are_numbered_are_two_volumes(tmp_path):
    for time in (0, 1):
        for index, pixels in enumerate(STORED):
            data = slice_dataset(
                pixels + time, (0, 0, 2 * index), TemporalPositionIdentifier=time + 1
            )
            data.save_as(tmp_path / f"{index}-{time}.dcm", enforce_file_format=True)
    stacks, refused = find_stacks(tmp_path.iterdir())
    assert [stack.name for stack in stacks] == [
        "series 1 TemporalPositionIdentifier 1",
        "series 1 TemporalPositionIdentifier 2",
    ]
    assert not refused
    first, second = (read_stack(stack).volume.array.astype(int) for stack in stacks)
    np.testing.assert_array_equal(second - first, 1)
    assert "holds 2 volumes" in refusal(tmp_path)


def test_two_series_in_a_folder_are_two_volumes(tmp_path):
    write_series(tmp_path, STORED)
    names = [f"b{i}.dcm" for i in range(5)]
    write_series(tmp_path, STORED, names=names, SeriesInstanceUID=generate_uid(), SeriesNumber=2)
    stacks, refused = find_stacks(tmp_path.iterdir())
    assert [stack.name for stack in stacks] == ["series 1", "series 2"]
    assert len({stack.group for stack in stacks}) == 1
    assert not refused


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Modality": "RTSTRUCT"}, "an RT structure set: not an image"),
        ({"Modality": "SEG"}, "a segmentation: not an image"),
        ({"Modality": "SR", "Rows": None}, "a structured report: not an image"),
        ({"Modality": "XX", "Rows": None}, "without an image"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "mosaic"),
        ({"ImagePositionPatient": None}, "no ImagePositionPatient"),
        ({"ImageOrientationPatient": None}, "no ImageOrientationPatient"),
        ({"PixelSpacing": None}, "no PixelSpacing"),
        ({"PixelSpacing": [0, 1]}, r"PixelSpacing of \[0.0, 1.0\]"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "two right angles"),
        ({"NumberOfFrames": 5}, "several frames without a position"),
    ],
)
def test_what_is_no_slice_is_refused_and_the_series_beside_it_taken(tmp_path, elements, reason):
    write_series(tmp_path, STORED)
    odd = slice_dataset(STORED[0], (0, 0, 0), **elements)
    odd.save_as(tmp_path / "odd.dcm", enforce_file_format=True)
    stacks, refused = find_stacks(tmp_path.iterdir())
    assert len(stacks) == 1
    assert [item.files for item in refused] == [(tmp_path / "odd.dcm",)]
    with pytest.raises(DataError, match=reason):
        read_folder(tmp_path / "odd.dcm")


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Rows": 7, "Columns": 6}, "1 of 7 x 6"),
        ({"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}, "different orientations"),
        ({"PixelSpacing": [0.6, 0.75]}, "different pixel spacings"),
    ],
)
def test_slices_that_do_not_match_are_refused(tmp_path, elements, reason):
    write_series(tmp_path, STORED)
    odd = slice_dataset(STORED[0], (-10, -20, 40), **elements)
    odd.save_as(tmp_path / "odd.dcm", enforce_file_format=True)
    assert reason in refusal(tmp_path)


def test_missing_pixels_are_noticed(tmp_path):
    write_series(tmp_path, STORED)
    file = tmp_path / "002.dcm"
    file.write_bytes(file.read_bytes()[:-10])
    text = refusal(tmp_path)
    assert "002.dcm" in text
    assert "pixels missing or damaged" in text


def test_a_compressed_file_that_was_cut_off_is_noticed(tmp_path):
    for index, pixels in enumerate(STORED):
        data = slice_dataset(pixels, (0, 0, index))
        data.compress(RLELossless)
        data.save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    file = tmp_path / "3.dcm"
    file.write_bytes(file.read_bytes()[:-30])
    assert "3.dcm: no pixels in it; was it cut off?" in refusal(tmp_path)


def test_run_length_encoding_is_read(tmp_path):
    for index, pixels in enumerate(STORED):
        data = slice_dataset(pixels, (0, 0, index))
        data.compress(RLELossless)
        data.save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    array = read_scan(tmp_path).volume.array
    np.testing.assert_array_equal(array[0], STORED.T.astype(int) - 1024)


def test_compressed_pixels_are_rescaled_once(tmp_path):
    writer = sitk.ImageFileWriter()
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")
    for index, pixels in enumerate(STORED):
        writer.SetFileName(str(tmp_path / "packed.dcm"))
        writer.Execute(sitk.GetImageFromArray(pixels[None]))
        packed = pydicom.dcmread(tmp_path / "packed.dcm")
        data = slice_dataset(pixels, (0, 0, index), PixelData=packed.PixelData)
        data.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
        data.save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    (tmp_path / "packed.dcm").unlink()
    assert data.file_meta.TransferSyntaxUID.is_compressed
    array = read_scan(tmp_path).volume.array
    np.testing.assert_array_equal(array[0], STORED.T.astype(int) - 1024)


def test_frames_of_one_file_are_stacked_by_their_own_positions(tmp_path):
    positions = [(0, 0, z) for z in (8, 6, 4, 2, 0)]
    write_multiframe(tmp_path / "frames.dcm", STORED, positions)
    scan = read_scan(tmp_path / "frames.dcm")
    assert scan.modality == "MR"
    np.testing.assert_allclose(scan.volume.grid.spacing_mm, (0.75, 0.5, 2))
    for place in range(5):
        frame = 4 - place
        expected = STORED[frame].T.astype(int) * (frame + 1)
        np.testing.assert_array_equal(scan.volume.array[0, :, :, place], expected)


def test_frames_at_irregular_positions_are_refused(tmp_path):
    positions = [(0, 0, z) for z in (0, 2, 4, 8, 10)]
    write_multiframe(tmp_path / "frames.dcm", STORED, positions)
    assert "slices are missing" in refusal(tmp_path / "frames.dcm")


def test_a_file_is_dicom_by_its_marker_whatever_its_name(tmp_path):
    write_series(tmp_path, STORED, names=[f"CT.1.2.{i}" for i in range(5)])
    assert all(is_dicom(file) for file in tmp_path.iterdir())
    assert read_scan(tmp_path).volume.grid.shape == (7, 6, 5)
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), tmp_path / "a.nii")
    assert not is_dicom(tmp_path / "a.nii")


@pytest.mark.parametrize("content", [b"", b"text", bytes(range(256)) * 10, b"\0" * 128 + b"DICM"])
def test_a_damaged_file_is_refused_without_a_traceback(tmp_path, content):
    (tmp_path / "bad.dcm").write_bytes(content)
    assert "bad.dcm" in refusal(tmp_path / "bad.dcm")


def test_a_folder_without_dicom_is_refused(tmp_path):
    assert "without DICOM files" in refusal(tmp_path)


def test_patients_are_told_apart_without_their_names(tmp_path):
    write_series(tmp_path, STORED, PatientID="Jane", PatientName="Doe^Jane")
    (stack,), _ = find_stacks(tmp_path.iterdir())
    assert stack.group is not None
    assert "Jane" not in repr(stack)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(132, 1500), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(200, 1600),
)
def test_a_damaged_slice_ends_in_a_volume_or_a_reason(tmp_path_factory, changes, length):
    folder = tmp_path_factory.mktemp("fuzz")
    write_series(folder, STORED)
    content = bytearray((folder / "000.dcm").read_bytes())
    for place, value in changes:
        content[min(place, len(content) - 1)] = value
    (folder / "000.dcm").write_bytes(content[:length])
    with suppress(DataError):
        shape = read_scan(folder).volume.array.shape
        assert shape in {(1, 7, 6, 5), (1, 7, 6, 4)}
