import gzip
import logging
import random
from contextlib import suppress
from importlib.util import find_spec

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from voco.data.imageio import read_image, read_label, read_scan, write_image
from voco.data.scan import grid_difference, rescaled, same_grid
from voco.errors import DataError
from voco.geometry import Grid
from voco.volume import Volume

DTYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32")
UPRIGHT = np.diag([1.0, 2.0, 3.0, 1.0])


def volume(array, affine=UPRIGHT):
    array = array if array.ndim == 4 else array[None]
    return Volume(array, Grid(array.shape[1:], np.asarray(affine, float)))


def body(shape=(12, 11, 10)):
    """Air with a block of soft tissue, in HU."""
    array = np.full(shape, -1000, np.int16)
    array[3:9, 3:9, 3:9] = 40
    return array


def save(path, array, affine=UPRIGHT, **header):
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


@st.composite
def affines(draw):
    """Any rotation, any reflection, any spacing, any origin."""
    numbers = st.floats(-1, 1, width=32)
    q = np.array([1.5 + draw(numbers), *(draw(numbers) for _ in range(3))])
    w, x, y, z = q / np.linalg.norm(q)
    turn = np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip
    spacing = [draw(st.floats(0.1, 10)) * draw(st.sampled_from([-1, 1])) for _ in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = turn[:, draw(st.permutations(range(3)))] * spacing
    affine[:3, 3] = [draw(st.floats(-500, 500)) for _ in range(3)]
    return affine


@settings(max_examples=25)
@given(
    affines(),
    st.sampled_from(DTYPES).flatmap(
        lambda name: hnp.arrays(
            name,
            hnp.array_shapes(min_dims=3, max_dims=3, min_side=3, max_side=5),
            elements={"allow_nan": False, "allow_infinity": False} if "float" in name else None,
        )
    ),
    st.sampled_from([".nii", ".nii.gz"]),
)
def test_what_is_written_is_read(tmp_path_factory, affine, array, ending):
    path = tmp_path_factory.mktemp("round") / f"scan{ending}"
    written = volume(array, affine)
    write_image(written, path)
    read = read_scan(path, modality="MR").volume
    assert read.array.dtype == array.dtype
    np.testing.assert_array_equal(read.array, written.array)
    np.testing.assert_allclose(read.grid.affine, affine, rtol=1e-5, atol=1e-4)
    assert same_grid(written.grid, read.grid)


def test_both_transforms_of_a_written_header_agree(tmp_path):
    affine = np.array([[0, -2.0, 0, 5], [1, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    write_image(volume(body(), affine), tmp_path / "a.nii.gz", description="a body")
    header = nib.load(tmp_path / "a.nii.gz").header
    np.testing.assert_allclose(header.get_sform(), header.get_qform(), atol=1e-5)
    assert header["sform_code"] == header["qform_code"] == 1
    assert header.get_xyzt_units()[0] == "mm"
    assert header["descrip"] == b"a body"


def test_equal_volumes_are_written_as_equal_bytes(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_image(volume(body()), tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a.nii.gz", "b.nii.gz"]


def test_half_floats_and_truth_values_are_written_in_wider_types(tmp_path):
    write_image(volume(body().astype(np.float16)), tmp_path / "half.nii")
    write_image(volume(body() > 0), tmp_path / "bool.nii")
    assert read_image(tmp_path / "half.nii").array.dtype == np.float32
    assert read_label(tmp_path / "bool.nii").array.sum() == 216


def test_an_unknown_ending_is_not_written(tmp_path):
    with pytest.raises(DataError, match=r"\.nii\.gz"):
        write_image(volume(body()), tmp_path / "scan.png")


def test_channels_are_read_only_when_they_are_named(tmp_path):
    array = np.arange(2 * 4 * 5 * 6, dtype=np.int16).reshape(2, 4, 5, 6)
    write_image(volume(array), tmp_path / "two.nii.gz")
    scan = read_scan(tmp_path / "two.nii.gz", channels=("T1", "T2"))
    np.testing.assert_array_equal(scan.volume.array, array)
    assert scan.channels == ("T1", "T2")
    with pytest.raises(DataError, match="time series"):
        read_scan(tmp_path / "two.nii.gz")
    with pytest.raises(DataError, match="do not hold 3 channels"):
        read_scan(tmp_path / "two.nii.gz", channels=("a", "b", "c"))


def test_integers_stay_integers_and_a_slope_is_applied(tmp_path):
    array = body() + 1024
    save(tmp_path / "plain.nii", array)
    save(tmp_path / "whole.nii", array, scl_slope=1, scl_inter=-1024)
    save(tmp_path / "half.nii", array, scl_slope=0.5, scl_inter=0)
    # Saving resets the slope, so it is put into the files.
    for name, slope, inter in (("whole", 1, -1024), ("half", 0.5, 0)):
        content = bytearray((tmp_path / f"{name}.nii").read_bytes())
        content[112:120] = np.array([slope, inter], "<f4").tobytes()
        (tmp_path / f"{name}.nii").write_bytes(content)
    assert read_image(tmp_path / "plain.nii").array.dtype == np.int16
    whole, half = read_image(tmp_path / "whole.nii"), read_image(tmp_path / "half.nii")
    assert whole.array.dtype == np.int16
    np.testing.assert_array_equal(whole.array[0], body())
    assert half.array.dtype == np.float32
    np.testing.assert_array_equal(half.array[0], array / 2)


@given(
    hnp.arrays(st.sampled_from(["uint8", "int16", "uint16"]), 6),
    st.integers(-9, 9),
    st.integers(-40000, 40000),
)
def test_whole_rescaling_is_exact_and_never_wraps(raw, slope, intercept):
    result = rescaled(raw, float(slope), float(intercept))
    np.testing.assert_array_equal(result.astype(np.int64), raw.astype(np.int64) * slope + intercept)


def test_big_endian_numbers_arrive_in_native_order(tmp_path):
    image = nib.Nifti1Image(body(), UPRIGHT, nib.Nifti1Header(endianness=">"))
    nib.save(image, tmp_path / "big.nii")
    read = read_image(tmp_path / "big.nii").array
    assert read.dtype.isnative
    np.testing.assert_array_equal(read[0], body())


def test_nrrd_and_metaimage_lie_where_the_same_nifti_lies(tmp_path):
    affine = np.array([[0, -2.0, 0, 5], [1, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    write_image(volume(body(), affine), tmp_path / "a.nii")
    image = sitk.ReadImage(str(tmp_path / "a.nii"))
    for name in ("a.nrrd", "a.mha", "a.mhd"):
        sitk.WriteImage(image, str(tmp_path / name))
        read = read_image(tmp_path / name)
        np.testing.assert_allclose(read.grid.affine, affine, atol=1e-5)
        np.testing.assert_array_equal(read.array[0], body())
        assert read.array.dtype == np.int16


def test_header_and_voxels_in_two_files_are_one_image(tmp_path):
    nib.save(nib.Nifti1Pair(body(), UPRIGHT), tmp_path / "pair.hdr")
    for ending in (".hdr", ".img"):
        np.testing.assert_array_equal(read_image(tmp_path / f"pair{ending}").array[0], body())
    (tmp_path / "pair.img").unlink()
    with pytest.raises(DataError, match=r"pair\.img is not there"):
        read_image(tmp_path / "pair.hdr")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git lfs pull"),
        (b"/annex/objects/SHA256E-s5--00.nii.gz\n", "git annex get"),
        (b"not an image at all, but some text", "damaged"),
        (gzip.compress(b"no header", mtime=0), "damaged"),
    ],
)
def test_what_only_stands_for_a_file_is_named(tmp_path, content, reason):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_scan(path)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_file_that_was_cut_off_is_refused(tmp_path, ending, share):
    rng = np.random.default_rng(0)
    array = rng.integers(-1000, 1000, (20, 20, 20)).astype(np.int16)
    path = tmp_path / f"scan{ending}"
    if ending.startswith(".nii"):
        write_image(volume(array), path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=True)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError):
        read_scan(path)


def test_a_header_that_promises_more_than_fits_is_refused_before_memory_is_taken(tmp_path):
    path = save(tmp_path / "huge.nii", body())
    content = bytearray(path.read_bytes())
    content[40:56] = np.array([3, 30000, 30000, 30000, 1, 1, 1, 1], "<i2").tobytes()
    path.write_bytes(content)
    with pytest.raises(DataError, match="promises 54000000000000 bytes"):
        read_scan(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_refuses_a_scan(tmp_path, value):
    array = body().astype(np.float32)
    array[0, 0, 0] = value
    with pytest.raises(DataError, match=r"1 voxels .* are NaN or infinite"):
        read_scan(save(tmp_path / "scan.nii", array))


def test_doubles_beyond_single_precision_are_not_read_as_infinite(tmp_path):
    array = body().astype(np.float64)
    array[0, 0, 0] = 1e300
    with pytest.raises(DataError, match="infinite"):
        read_scan(save(tmp_path / "scan.nii", array))


def test_a_spacing_of_zero_is_refused(tmp_path):
    path = save(tmp_path / "scan.nii", body(), qform_code=0)
    content = bytearray(path.read_bytes())
    content[80:84] = np.array([0], "<f4").tobytes()
    path.write_bytes(content)
    with pytest.raises(DataError, match="spacing of 0, 2, 3 mm"):
        read_scan(path)


@pytest.mark.parametrize("read", [read_scan, read_label])
def test_a_file_without_voxels_is_refused(tmp_path, read):
    header = "ObjectType = Image\nNDims = 3\nDimSize = 4 0 4\nElementType = MET_SHORT\n"
    (tmp_path / "scan.mhd").write_text(f"{header}ElementDataFile = scan.raw\n")
    (tmp_path / "scan.raw").write_bytes(b"")
    with pytest.raises(DataError):
        read(tmp_path / "scan.mhd")


@pytest.mark.parametrize("shape", [(1, 1, 1), (40, 40, 2), (40, 40)])
def test_what_is_too_small_for_a_volume_is_refused(tmp_path, shape):
    with pytest.raises(DataError, match=r"needs at least 3|three axes"):
        read_scan(save(tmp_path / "scan.nii", np.zeros(shape, np.int16)))


@pytest.mark.skipif(find_spec("h5py") is not None, reason="h5py is installed: MINC 2 is read")
def test_a_minc_2_file_says_what_it_needs(tmp_path):
    (tmp_path / "scan.mnc").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(DataError, match="needs the package h5py"):
        read_scan(tmp_path / "scan.mnc")


def test_colours_are_refused(tmp_path):
    array = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(array, UPRIGHT), tmp_path / "rgb.nii")
    with pytest.raises(DataError, match="colour"):
        read_scan(tmp_path / "rgb.nii")
    colour = sitk.GetImageFromArray(np.zeros((4, 4, 4, 3), np.uint8), isVector=True)
    sitk.WriteImage(colour, str(tmp_path / "rgb.mha"))
    with pytest.raises(DataError, match="3 numbers per voxel"):
        read_scan(tmp_path / "rgb.mha")


def test_complex_numbers_are_refused(tmp_path):
    with pytest.raises(DataError, match="complex64"):
        read_scan(save(tmp_path / "scan.nii", np.zeros((4, 4, 4), np.complex64)))


def test_an_analyze_file_is_refused_for_its_unknown_side(tmp_path):
    nib.save(nib.Spm99AnalyzeImage(body(), None), tmp_path / "old.img")
    with pytest.raises(DataError, match="which side is left"):
        read_scan(tmp_path / "old.hdr")


def test_a_header_without_orientation_is_read_with_a_warning(tmp_path):
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(body(), None), path)
    assert "left and right" in read_scan(path).warnings[0]


def test_a_sheared_grid_is_read_with_a_warning_and_written_back(tmp_path):
    affine = UPRIGHT.copy()
    affine[0, 2] = 0.6
    write_image(volume(body(), affine), tmp_path / "scan.nii")
    scan = read_scan(tmp_path / "scan.nii")
    assert any("sheared" in warning for warning in scan.warnings)
    np.testing.assert_allclose(scan.volume.grid.affine, affine, atol=1e-6)


def test_transforms_that_disagree_are_told(tmp_path):
    image = nib.Nifti1Image(body(), UPRIGHT)
    moved = UPRIGHT.copy()
    moved[0, 3] = 40
    image.set_qform(moved, code=1)
    image.set_sform(UPRIGHT, code=1)
    nib.save(image, tmp_path / "scan.nii")
    scan = read_scan(tmp_path / "scan.nii")
    assert "sform and qform differ by up to 40 mm" in scan.warnings[0]
    np.testing.assert_allclose(scan.volume.grid.affine, UPRIGHT)


def test_metres_become_millimetres(tmp_path):
    image = nib.Nifti1Image(body(), np.diag([0.001, 0.002, 0.003, 1]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "scan.nii")
    scan = read_scan(tmp_path / "scan.nii")
    np.testing.assert_allclose(scan.volume.grid.spacing_mm, (1, 2, 3), rtol=1e-5)
    assert "metres" in scan.warnings[0]


def test_reading_says_nothing_on_its_own(tmp_path, caplog, capfd):
    path = save(tmp_path / "scan.nii", body())
    content = bytearray(path.read_bytes())
    content[80:84] = np.array([-1], "<f4").tobytes()
    path.write_bytes(content)
    with caplog.at_level(logging.DEBUG):
        read_scan(path)
    assert capfd.readouterr() == ("", "")
    assert not logging.getLogger("nibabel.global").disabled


def test_numbers_with_air_and_tissue_are_taken_for_ct(tmp_path):
    scan = read_scan(save(tmp_path / "scan.nii", body()))
    assert scan.modality == "CT"
    assert "taken for CT because" in scan.warnings[0]


@pytest.mark.parametrize(
    "array",
    [
        np.clip(body() + 1000, 0, 255).astype(np.uint8),
        body().astype(np.float32),
        body() * 0 + 40,
        np.random.default_rng(0).integers(-4096, 4096, (12, 12, 12)).astype(np.int16),
    ],
    ids=["scaled to 8 bits", "floats", "no air", "phases"],
)
def test_other_numbers_are_not_taken_for_ct(tmp_path, array):
    scan = read_scan(save(tmp_path / "scan.nii", array))
    assert scan.modality == "unknown"
    np.testing.assert_array_equal(scan.volume.array[0], array)


def test_a_ct_that_is_not_in_hu_is_not_believed(tmp_path):
    path = save(tmp_path / "head_ct.nii", np.clip(body() + 1000, 0, 255).astype(np.uint8))
    assert "not HU" in read_scan(path).warnings[0]
    told = read_scan(path, modality="CT")
    assert told.modality == "unknown"
    assert "said to be CT" in told.warnings[0]


def test_padding_of_a_ct_is_set_to_minus_1024(tmp_path):
    array = body()
    array[0] = -3024
    scan = read_scan(save(tmp_path / "scan.nii", array))
    assert scan.volume.array.min() == -1024
    assert scan.volume.array.dtype == np.int16
    assert "110 voxels from -3024" in scan.warnings[1]
    np.testing.assert_array_equal(scan.volume.array[0, 1:], array[1:])


def test_a_label_of_whole_floats_becomes_class_numbers(tmp_path):
    array = (body() > 0).astype(np.float32) * 3
    label = read_label(save(tmp_path / "label.nii", array))
    assert label.array.dtype == np.uint8
    np.testing.assert_array_equal(label.array[0], array)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(0.5, "not whole numbers"), (-1, "from -1 to"), (40000, "to 40000"), (np.nan, "NaN")],
)
def test_a_label_of_other_numbers_is_refused(tmp_path, value, reason):
    array = np.zeros((4, 4, 4), np.float32)
    array[0, 0, 0] = value
    with pytest.raises(DataError, match=reason):
        read_label(save(tmp_path / "label.nii", array))


def test_large_class_numbers_are_kept(tmp_path):
    array = np.zeros((4, 4, 4), np.int32)
    array[0, 0, 0] = 14175
    label = read_label(save(tmp_path / "label.nii", array)).array
    assert label.dtype == np.int16
    assert label.max() == 14175


@given(affines(), st.floats(0, 0.09), st.integers(0, 2))
def test_grids_that_differ_by_rounding_are_the_same(affine, share, axis):
    grid = Grid((5, 6, 7), affine)
    moved = affine.copy()
    moved[axis, 3] += share * min(grid.spacing_mm)
    assert same_grid(grid, Grid(grid.shape, moved))
    moved[axis, 3] += 0.11 * min(grid.spacing_mm)
    assert not same_grid(grid, Grid(grid.shape, moved))


def test_grids_that_differ_are_told_apart_and_why():
    grid = Grid((5, 6, 7), UPRIGHT)
    moved = UPRIGHT.copy()
    moved[2, 3] = 3
    assert "5 x 6 x 8 voxels against 5 x 6 x 7" in str(
        grid_difference(grid, Grid((5, 6, 8), UPRIGHT))
    )
    assert "3 mm apart" in str(grid_difference(grid, Grid((5, 6, 7), moved)))
    flipped = np.diag([-1.0, 2.0, 3.0, 1.0])
    flipped[0, 3] = 4
    assert not same_grid(grid, Grid((5, 6, 7), flipped))


def test_a_file_of_no_known_kind_is_refused_with_the_kinds_that_are(tmp_path):
    (tmp_path / "scan.xyz").write_text("something")
    with pytest.raises(DataError, match=r"\.nrrd"):
        read_scan(tmp_path / "scan.xyz")
    with pytest.raises(DataError, match="no such file"):
        read_scan(tmp_path / "absent.nii")
    (tmp_path / "link.nii").symlink_to(tmp_path / "gone.nii")
    with pytest.raises(DataError, match="a link to a file that is not there"):
        read_scan(tmp_path / "link.nii")


@settings(max_examples=80)
@given(
    st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(352, 2992),
)
def test_a_damaged_header_ends_in_a_volume_or_a_reason(tmp_path_factory, changes, length):
    path = tmp_path_factory.mktemp("fuzz") / "scan.nii"
    save(path, body())
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[place] = value
    path.write_bytes(content[:length])
    with suppress(DataError):
        scan = read_scan(path)
        assert scan.volume.array.ndim == 4
        assert min(scan.volume.grid.spacing_mm) > 0
        assert np.isfinite(scan.volume.array).all()


def test_a_gzip_file_of_several_streams_is_read_whole(tmp_path):
    path = save(tmp_path / "whole.nii.gz", body())
    content = gzip.decompress(path.read_bytes())
    parts = [content[:100], content[100:400], content[400:]]
    (tmp_path / "parts.nii.gz").write_bytes(b"".join(map(gzip.compress, parts)))
    whole, several = (read_image(tmp_path / f"{name}.nii.gz") for name in ("whole", "parts"))
    assert np.array_equal(whole.array, several.array)


@pytest.mark.parametrize("missing", [1, 4, 8])
def test_a_gzip_file_without_its_end_is_refused_though_all_voxels_are_there(tmp_path, missing):
    path = save(tmp_path / "scan.nii.gz", body())
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(DataError, match=r"(\d+) of \1 bytes of voxels, then it breaks off"):
        read_image(path)


def test_a_damaged_stream_never_gives_other_voxels(tmp_path):
    path = save(tmp_path / "scan.nii.gz", body())
    whole, content, draw = read_image(path).array, path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(draw.choice((1, 2, 5))):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            assert np.array_equal(read_image(path).array, whole)
        except DataError:
            refused += 1
    assert refused > 150


def test_a_wrong_checksum_is_noticed(tmp_path):
    path = save(tmp_path / "scan.nii.gz", body())
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # the first of the four bytes of the checksum
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged or cut off"):
        read_image(path)
