"""Real files: what is wrong in a known way is refused with a reason, the rest is read rightly."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from voco.data.imageio import read_label, read_scan
from voco.data.scan import grid_difference
from voco.data.sources import discover, read_source
from voco.errors import DataError

ROOT = Path(__file__).parents[2] / os.environ.get("VOCO_REAL_DATA", "../shared/data")
AWKWARD = ROOT / "awkward"

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not AWKWARD.is_dir(), reason=f"no real scans at {ROOT} (VOCO_REAL_DATA)"),
]

CUBE = ((3, 3, 3), (1, 1, 1), "unknown", ())
NOT_HU = "are not HU"

TAKEN = {
    "dicom/d2n_generic_anatomical_002_non_isotropic": ((64, 28, 4), (6.4, 4, 0.5), "MR", ()),
    "dicom/d2n_generic_compressed_j2k_001": ((256, 256, 4), (1, 1, 1), "MR", ()),
    "dicom/d2n_generic_compressed_jpeg_001": ((256, 256, 4), (1, 1, 1), "MR", ()),
    "dicom/d2n_hyperfine_anatomical_001/001.dcm": ((112, 138, 8), (1.59, 1.61, 5), "MR", ()),
    "dicom/d2n_philips_enhanced_anatomical_001/IM-0001-0170-0001.dcm": (
        ((256, 256, 8), (1, 1, 1.2), "MR", ())
    ),
    "dicom/dcmqi_23x38x3/image": ((23, 38, 3), (0.7, 0.7, 2.5), "unknown", (NOT_HU,)),
    "dicom/dcmqi_23x38x3/multiframe/mf.dcm": ((23, 38, 3), (0.7, 0.7, 2.5), "unknown", (NOT_HU,)),
    "dicom/rtutils_oriented_data": ((100, 50, 3), (2.5, 3.5, 4.5), "unknown", (NOT_HU,)),
    "nifti/ct_avm_uint8_scaled.nii.gz": (
        ((256, 242, 154), (0.71994, 0.72091, 1), "unknown", (NOT_HU,))
    ),
    "nifti/ct_head_phantom_uint8.nii.gz": (
        ((175, 248, 58), (0.8125, 0.8125, 2.39705), "unknown", (NOT_HU,))
    ),
    "nifti/nibabel_anatomical.nii": ((33, 41, 25), (2, 2, 2), "unknown", ()),
    "nifti/nibabel_scaled+tlrc.HEAD": ((47, 54, 43), (3, 3, 3), "unknown", ()),
    "nifti/nibabel_tiny.mnc": ((10, 20, 20), (2, 2, 2), "unknown", ()),
    "nifti/niftirs_27_float32.nii": CUBE,
    "nifti/niftirs_27_float64.nii": CUBE,
    "nifti/niftirs_27_int16.nii": CUBE,
    "nifti/niftirs_27_int32.nii": CUBE,
    "nifti/niftirs_27_int64.nii": CUBE,
    "nifti/niftirs_27_int8.nii": CUBE,
    "nifti/niftirs_27_uint16.nii": CUBE,
    "nifti/niftirs_27_uint32.nii": CUBE,
    "nifti/niftirs_27_uint64.nii": CUBE,
    "nifti/niftirs_27_uint8.nii": CUBE,
    "nifti/niftirs_minimal.hdr": ((64, 64, 10), (3, 3, 3), "unknown", ("left and right",)),
    "nifti/random_noise_id1_channel1.nii.gz": ((75, 75, 75), (1, 1, 1), "CT", ("taken for CT",)),
    "unpaired/hippocampus_118_image_only.nii.gz": ((37, 52, 33), (1, 1, 1), "unknown", ()),
}
"""Scan to shape, spacing, modality and what its warnings say."""

LONE = "a label without an image"
FUZZ = "nifti/niftirs_fuzz_artifacts_crash-"
ZOO = "dicom/pydicom_zoo"

REFUSED = {
    "derived/empty.nii.gz": "an empty file",
    "derived/label_wrong_shape.nii.gz": LONE,
    "derived/nan_block.nii.gz": "8926 voxels (14 %) are NaN or infinite",
    "derived/tiny_1voxel.nii.gz": "1 x 1 x 1 voxels; a volume needs at least 3",
    "derived/truncated.nii.gz": "damaged or cut off",
    "derived/zero_spacing.nii.gz": "a spacing of 0, 1, 1 mm",
    "dicom/d2n_failing_gantrytilting_001": "gantry tilt: the slices are stacked at 14.0 degrees",
    "dicom/d2n_failing_notavolume_001": "4 slices at 1 position",
    "dicom/d2n_failing_slicecount_001": "2 slices; a volume needs at least 3",
    "dicom/d2n_failing_sliceincrement_001": "slices 5 mm apart, but 10 mm between",
    "dicom/d2n_ge_anatomical_001_single_slice/IM-0001-0112-0001.dcm": "1 slice; a volume",
    "dicom/d2n_ge_fmri_001": "8 slices at 4 positions: 2 volumes in one series (a time series",
    "dicom/d2n_generic_rgb_001/IM-0001-0001-0001.dcm": "colour",
    "dicom/d2n_generic_rgb_001/IM-0001-0002-0001.dcm": "colour",
    "dicom/d2n_generic_rgb_001/IM-0001-0003-0001.dcm": "colour",
    "dicom/d2n_generic_rgb_001/IM-0001-0004-0001.dcm": "colour",
    "dicom/dcmqi_23x38x3/nrrd/label.nrrd": LONE,
    "dicom/dcmqi_23x38x3/screenshots/brainlab.jpg": "a picture, not a volume",
    "dicom/dcmqi_23x38x3/screenshots/slicer.png": "a picture, not a volume",
    "dicom/dcmqi_23x38x3/seg/label.seg": "a segmentation: not an image",
    "dicom/dcmqi_partial_overlaps_seg.dcm": "a segmentation: not an image",
    "dicom/dupe-positions.zip": "an archive; unpack it",
    ZOO: "7 slices at 1 position",  # all files of MR_small, in seven transfer syntaxes
    f"{ZOO}/693_J2KI.dcm": "1 slice; a volume",
    f"{ZOO}/CT_small.dcm": "1 slice; a volume",
    f"{ZOO}/ExplVR_BigEndNoMeta.dcm": "an RT plan: not an image",
    f"{ZOO}/J2K_pixelrep_mismatch.dcm": "1 slice; a volume",
    f"{ZOO}/JPEG2000.dcm": "no ImagePositionPatient",
    f"{ZOO}/JPGExtended.dcm": "no ImagePositionPatient",
    f"{ZOO}/SC_rgb_rle_16bit_2frame.dcm": "colour",
    f"{ZOO}/UN_sequence.dcm": "without an image",
    f"{ZOO}/badVR.dcm": "an RT dose: not an image",
    f"{ZOO}/empty_charset_LEI.dcm": "without an image",
    f"{ZOO}/examples_palette.dcm": "colours (PALETTE COLOR)",
    f"{ZOO}/image_dfl.dcm": "no ImagePositionPatient",
    f"{ZOO}/liver_1frame.dcm": "a segmentation: not an image",
    f"{ZOO}/nested_priv_SQ.dcm": "without an image",
    f"{ZOO}/no_meta.dcm": "without an image",
    f"{ZOO}/rtdose.dcm": "an RT dose: not an image",
    f"{ZOO}/rtplan.dcm": "an RT plan: not an image",
    f"{ZOO}/rtstruct.dcm": "an RT structure set: not an image",
    "dicom/rtutils_mock_data": "2 slices; a volume needs at least 3",
    "dicom/rtutils_mock_data/invalid_reference_rt.dcm": "an RT structure set: not an image",
    "dicom/rtutils_mock_data/non_existent_reference_rt.dcm": "an RT structure set: not an image",
    "dicom/rtutils_mock_data/rt.dcm": "an RT structure set: not an image",
    "dicom/rtutils_one_slice_data/0.dcm": "1 slice; a volume",
    "dicom/signed_12bit/12bitSigned_0x0F0F.dcm": "a mosaic",
    "dicom/signed_12bit/12bitUnsigned.dcm": "a mosaic",
    "dicom/signed_12bit/12bitUnsigned_0x0F0F.dcm": "a mosaic",
    "nifti/4d_pcasl.nii.gz": "52 x 68 x 20 x 10 voxels, more than three axes (a time series?",
    "nifti/label_float32_mask.nii.gz": LONE,
    "nifti/lfs_pointer_liver_0.nii.gz": "a Git LFS pointer, not the file itself: run 'git lfs",
    "nifti/nan_fmri_tsnr.nii.gz": "408 voxels (1.5 %) are NaN or infinite",
    "nifti/nibabel_analyze.hdr": "which side is left",
    "nifti/nibabel_example4d.nii.gz": "more than three axes",
    "nifti/nibabel_example_nifti2.nii.gz": "more than three axes",
    "nifti/nibabel_nifti2.hdr": "nibabel_nifti2.img is not there",
    "nifti/nibabel_test.mgz": "3 x 4 x 5 x 2 voxels, more than three axes",
    f"{FUZZ}08123ef33416bd6f0c5fa63d44b681b8581d62a0": "begins like NIfTI",
    f"{FUZZ}1.nii": "damaged or cut off",
    f"{FUZZ}98aa054390f8d3f932f190dc22ef62c6ff2d6619": "begins like NIfTI",
    f"{FUZZ}d03c6346fe83a026738f6b8cd2a9335a3f8cb158": "begins like NIfTI",
    f"{FUZZ}ed7d46344d7efb3b9f0c374d66d2e02f66cc447d.nii": "damaged or cut off",
    "nifti/random_noise_id1_region.nii.gz": "so it is a mask rather than an image",
    "nifti/rgb_spine_report.nii.gz": "colour voxels",
    "nifti/rgba_CIT168.nii.gz": "colour voxels",
    "nifti/singleslice_4d_venc.nii.gz": "256 x 256 x 1 x 3 voxels, more than three axes",
    "unpaired/hippocampus_281_label_only.nii.gz": LONE,
    "unpaired/lung1_label_only.nrrd": LONE,
    "unpaired/lung2_label_only.nrrd": LONE,
}
"""File, or folder of a series, to a part of the reason."""

PARTNERS = {"nifti/nibabel_scaled+tlrc.BRIK", "nifti/niftirs_minimal.img"}
"""The voxels of a header that is listed above."""

PASSED_OVER = {"dicom/dupe-positions_citation.txt", "dicom/rtutils_oriented_data/info.txt"}


@pytest.fixture(scope="module")
def outcomes():
    """What becomes of the folder: scans by path, and reasons by path."""
    sources, refused = discover(AWKWARD)
    scans, reasons = {}, {str(r.path.relative_to(AWKWARD)): r.reason for r in refused}
    assert len(reasons) == len(refused)
    for source in sources:
        name = str(source.images[0].relative_to(AWKWARD))
        try:
            scans[name] = read_source(source)[0]
        except DataError as error:
            reasons[name] = str(error)
    return scans, reasons


def test_every_file_is_in_one_of_the_tables():
    for file in AWKWARD.rglob("*"):
        name, folder = (str(path.relative_to(AWKWARD)) for path in (file, file.parent))
        named = [name in table for table in (TAKEN, REFUSED, PARTNERS, PASSED_OVER)]
        of_series = folder in TAKEN or folder in REFUSED
        assert file.is_dir() or sum(named) == 1 or (of_series and not any(named)), name


def test_what_is_taken_and_what_is_refused_is_as_expected(outcomes):
    scans, reasons = outcomes
    assert sorted(scans) == sorted(TAKEN)
    assert sorted(reasons) == sorted(REFUSED)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_gives_its_reason(outcomes, name):
    assert REFUSED[name] in outcomes[1][name]


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_has_the_right_shape_and_spacing(outcomes, name):
    scan = outcomes[0][name]
    shape, spacing, modality, warnings = TAKEN[name]
    assert scan.volume.array.shape == (1, *shape)
    np.testing.assert_allclose(scan.volume.grid.spacing_mm, spacing, rtol=1e-4)
    assert scan.modality == modality
    assert len(scan.warnings) == len(warnings)
    assert all(part in text for part, text in zip(warnings, scan.warnings, strict=True))


def test_all_number_types_hold_the_same_numbers(outcomes):
    scans = [scan for name, scan in outcomes[0].items() if "niftirs_27" in name]
    for scan in scans:
        np.testing.assert_array_equal(np.sort(scan.volume.array.ravel()), np.arange(27))


def test_two_compressions_of_one_series_are_equal(outcomes):
    first, second = (
        outcomes[0][f"dicom/d2n_generic_compressed_{kind}_001"].volume for kind in ("j2k", "jpeg")
    )
    np.testing.assert_array_equal(first.array, second.array)
    assert grid_difference(first.grid, second.grid) is None


def test_a_series_of_files_and_of_frames_are_equal(outcomes):
    first, second = (
        outcomes[0][f"dicom/dcmqi_23x38x3/{kind}"].volume for kind in ("image", "multiframe/mf.dcm")
    )
    np.testing.assert_array_equal(first.array, second.array)
    assert grid_difference(first.grid, second.grid) is None


def test_the_zipped_series_is_refused_once_unpacked(tmp_path):
    with zipfile.ZipFile(AWKWARD / "dicom" / "dupe-positions.zip") as archive:
        archive.extractall(tmp_path)
    sources, (refused,) = discover(tmp_path)
    assert not sources
    assert "11 slices at 10 positions: copies of some slices" in refused.reason


def test_a_label_of_another_shape_is_refused_with_its_image(tmp_path):
    image = ROOT / "hippocampus" / "imagesTr" / "hippocampus_001.nii.gz"
    label = AWKWARD / "derived" / "label_wrong_shape.nii.gz"
    (tmp_path / "list.csv").write_text(f"image,label\n{image.resolve()},{label.resolve()}\n")
    (source,), _ = discover(tmp_path / "list.csv")
    with pytest.raises(DataError, match="34 x 51 x 35 voxels against 35 x 51 x 35"):
        read_source(source)


@pytest.mark.parametrize("case", ["STS_019", "STS_025"])
def test_dicom_and_nifti_of_one_case_are_equal(case):
    series = read_scan(ROOT / "sts" / "dicom" / case / "CT" / "image")
    file = read_scan(ROOT / "sts" / "ct" / f"{case}_ct.nii.gz")
    np.testing.assert_array_equal(series.volume.array, file.volume.array)
    assert grid_difference(series.volume.grid, file.volume.grid, tolerance=1e-4) is None
    assert series.modality == file.modality == "CT"


def test_a_compressed_ct_is_in_hu_where_its_labels_are():
    folder = ROOT / "ct_fullfov" / "totalsegmentator"
    scan = read_scan(folder / "example_ct_dicom_j2k")
    label = read_label(folder / "example_ct_dicom_autoseg.nii.gz")
    assert scan.volume.array.dtype == np.int16
    # The label counts rows the other way: bring it onto the scan's grid.
    indices = np.linalg.solve(label.grid.affine, scan.volume.grid.affine)
    np.testing.assert_allclose(indices[:3, :3], np.diag([1, -1, 1]), atol=1e-6)
    classes = label.array[:, :, ::-1]
    values = {number: scan.volume.array[classes == number].mean() for number in (1, 5, 20, 69)}
    assert 50 < values[1] < 120  # spleen
    assert 50 < values[5] < 130  # liver
    assert values[20] < -50  # colon: gas
    assert values[69] > 300  # bone


def test_every_ct_is_recognised_and_every_other_scan_is_not():
    places = [ROOT / "sts" / "ct", ROOT / "ct_fullfov", ROOT / "sts" / "mr_t1", ROOT / "brain_mr"]
    for place in places:
        for source in discover(place)[0][:: 5 if place.name == "ct" else 1]:
            if "OTMultiClass" in source.id:
                continue
            scan, _ = read_source(source)
            is_ct = place.name in {"ct", "ct_fullfov"} and "mr_sm" not in source.id
            assert scan.modality == ("CT" if is_ct else "unknown"), source.id
            assert not is_ct or scan.volume.array.min() >= -1024


def test_all_labels_are_found_and_lie_on_the_grids_of_their_images():
    counts = {}
    for place in ("hippocampus", "sts/ct", "sts/mr_t1", "brain_mr/pyradiomics"):
        sources, refused = discover(ROOT / place)
        assert not refused
        for source in sources[::20]:
            assert read_source(source)[1] is not None
        counts[place] = sum(source.label is not None for source in sources), len(sources)
    assert counts == {
        "hippocampus": (209, 209),
        "sts/ct": (38, 38),
        "sts/mr_t1": (7, 7),
        "brain_mr/pyradiomics": (2, 2),
    }


def test_two_channels_and_a_label_of_floats_are_read_from_a_list(tmp_path):
    folder = (ROOT / "brain_mr" / "brats2015_sample").resolve()
    images = f"{folder}/T1c_subtrMeanDivStd.nii.gz;{folder}/Flair_subtrMeanDivStd.nii.gz"
    (tmp_path / "list.csv").write_text(f"image,label\n{images},{folder}/OTMultiClass.nii.gz\n")
    (source,), _ = discover(tmp_path / "list.csv")
    scan, label = read_source(source, modality="MR")
    assert scan.volume.array.shape == (2, 240, 240, 155)
    assert label is not None
    assert label.array.dtype == np.uint8
    assert set(np.unique(label.array)) == {0, 1, 2, 3, 4}


def test_the_shapes_of_glands_are_cases_with_targets():
    sources, refused = discover(ROOT / "adrenalmnist3d_64")
    assert not refused
    splits = [source.split for source in sources]
    assert (splits.count("train"), splits.count("validation")) == (1188, 98)
    assert {source.target for source in sources} == {0, 1}
    scan, _ = read_source(sources[7])
    assert scan.volume.array.shape == (1, 64, 64, 64)
    assert set(np.unique(scan.volume.array)) == {0, 255}
