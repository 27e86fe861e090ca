import numpy as np
import pydicom
import pytest
from dicom_files import write_multiframe, write_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import generate_uid

from voco.data.dicom import find_stacks, read_stack
from voco.data.dicomseg import segment_kind, write_dicom_segmentation
from voco.errors import DataError

hd = pytest.importorskip("highdicom")

rng = np.random.default_rng(0)
STORED = rng.integers(0, 2000, (5, 6, 7)).astype(np.uint16)
CLASSES = {0: "background", 205: "liver", 420: "kidney left", 7: "pancreatic duct stent"}
FRAME = generate_uid(entropy_srcs=["frame"])


def turned(degrees: float, step: float) -> dict:
    """Positions and orientation of slices that are turned about the left-right axis."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    normal = np.array([0, -sin, cos])
    positions = [np.array([1.0, 2, 3]) + step * index * normal for index in range(5)]
    return {"positions": positions, "ImageOrientationPatient": [1, 0, 0, 0, cos, sin]}


def stack_of(folder):
    (stack,), refused = find_stacks(sorted(folder.iterdir()))
    assert not refused
    return stack


def written(stack, mask, file):
    write_dicom_segmentation(mask, CLASSES, stack, file, network="0123456789abcdef")
    return hd.seg.segread(file)


def at(segmentation, affine, shape):
    """The segmentation's numbers at the voxels of a grid (RAS), found by their place alone."""
    volume = segmentation.get_volume(combine_segments=True)
    places = np.indices(shape).reshape(3, -1)
    world = np.diag([-1.0, -1, 1, 1]) @ affine @ np.vstack([places, np.ones(places.shape[1])])
    index = volume.map_reference_to_indices(world[:3].T)
    assert np.abs(index - index.round()).max() < 1e-3
    index = index.round().astype(int)
    inside = ((index >= 0) & (index < volume.array.shape)).all(axis=1)
    found = np.zeros(len(index), int)
    found[inside] = volume.array[tuple(index[inside].T)]
    return found.reshape(shape)


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    degrees=st.sampled_from([0.0, 20.0, -75.0]),
    step=st.sampled_from([2.5, -2.5]),
    order=st.permutations(range(5)),
    empty=st.booleans(),
)
def test_every_voxel_is_where_it_was_in_the_series(tmp_path_factory, degrees, step, order, empty):
    folder = tmp_path_factory.mktemp("series")
    names = [f"{place}.dcm" for place in order]
    write_series(folder, STORED, names=names, FrameOfReferenceUID=FRAME, **turned(degrees, step))
    stack = stack_of(folder)
    grid = read_stack(stack).volume.grid
    mask = rng.choice(list(CLASSES), grid.shape).astype(np.int16)
    mask[:, :, 1] = 0
    mask[:, :, 3] *= not empty
    segmentation = written(stack, mask, folder / "seg.dcm")
    numbers = {value: number for number, value in enumerate(CLASSES)}
    expected = np.vectorize(numbers.get)(mask)
    assert np.array_equal(at(segmentation, grid.affine, grid.shape), expected)


def test_the_segmentation_belongs_to_its_series(tmp_path):
    write_series(tmp_path, STORED, FrameOfReferenceUID=FRAME, PatientName="Some^Body")
    stack = stack_of(tmp_path)
    mask = np.full((7, 6, 5), 205, np.int16)
    mask[0, 0, :] = 420
    segmentation = written(stack, mask, tmp_path / "seg.dcm")
    source = pydicom.dcmread(stack.files[0])
    for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "FrameOfReferenceUID"):
        assert segmentation[keyword].value == source[keyword].value
    assert segmentation.SeriesInstanceUID != source.SeriesInstanceUID
    (series,) = segmentation.ReferencedSeriesSequence
    referred = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert referred == {pydicom.dcmread(file).SOPInstanceUID for file in stack.files}
    segments = segmentation.SegmentSequence
    assert [item.SegmentNumber for item in segments] == [1, 2, 3]
    assert [item.SegmentLabel for item in segments] == ["liver", "kidney left", CLASSES[7]]
    (code,) = segments[1].SegmentedPropertyTypeCodeSequence
    assert code.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert segmentation.DeviceSerialNumber == "0123456789abcdef"
    pixels = segmentation.get_pixels_by_source_instance(
        [pydicom.dcmread(stack.slices[2].file).SOPInstanceUID], segment_numbers=[1]
    )
    assert np.array_equal(pixels[0, :, :, 0], (mask[:, :, 2] == 205).T)


def test_names_that_dicom_lists_get_its_codes_whatever_the_order_of_their_words():
    assert segment_kind("liver", 1) == (
        "AnatomicalStructure", "10200004", "SCT", "Liver", "",
    )  # fmt: skip
    kidney = segment_kind("kidney", 1)
    assert kidney.scheme == "SCT"
    assert segment_kind("kidney_left", 1) == kidney._replace(side="Left")
    assert segment_kind("Right kidney", 2) == kidney._replace(side="Right")
    assert segment_kind("neoplasm", 1).category == "MorphologicallyAbnormalStructure"
    assert segment_kind("dark", 205) == ("AnatomicalStructure", "label-205", "99VOCO", "dark", "")


def test_a_mask_without_a_voxel_is_a_segmentation_all_the_same(tmp_path):
    write_series(tmp_path, STORED, FrameOfReferenceUID=FRAME)
    mask = np.zeros((7, 6, 5), np.int16)
    segmentation = written(stack_of(tmp_path), mask, tmp_path / "seg.dcm")
    assert segmentation.number_of_segments == 3
    assert segmentation.pixel_array.max() == 0


def test_frames_of_one_file_are_referred_to_in_their_order(tmp_path):
    positions = [(0, 0, z) for z in (8, 2, 0, 6, 4)]
    extra = {"FrameOfReferenceUID": FRAME, "RescaleSlope": None}
    write_multiframe(tmp_path / "many.dcm", STORED, positions, **extra)
    stack = stack_of(tmp_path)
    grid = read_stack(stack).volume.grid
    mask = rng.choice([0, 205], grid.shape).astype(np.int16)
    segmentation = written(stack, mask, tmp_path / "seg.dcm")
    assert np.array_equal(at(segmentation, grid.affine, grid.shape), mask // 205)


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "StudyInstanceUID"])
def test_a_series_that_cannot_be_referred_to_is_refused(tmp_path, keyword):
    write_series(tmp_path, STORED, **{"FrameOfReferenceUID": FRAME, keyword: None})
    with pytest.raises(DataError, match=f"no {keyword}.*Write NIfTI"):
        written(stack_of(tmp_path), np.zeros((7, 6, 5), np.int16), tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


def test_an_anonymised_series_will_do(tmp_path):
    write_series(tmp_path, STORED, FrameOfReferenceUID=FRAME, PatientID=None, SeriesNumber=None)
    mask = np.full((7, 6, 5), 205, np.int16)
    segmentation = written(stack_of(tmp_path), mask, tmp_path / "seg.dcm")
    assert segmentation.PatientID == ""
    assert segmentation.SeriesNumber == 1000
