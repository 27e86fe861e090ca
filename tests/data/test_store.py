"""The store on disk."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voco.data.arrays import read_array, write_array
from voco.data.store import Case, Preprocessing, Store, append_lines
from voco.errors import StoreError


def case_of(name="a", shape=(4, 5, 6), **facts):
    eye = tuple(tuple(map(float, row)) for row in np.eye(4))
    given_facts = {
        "id": name, "source": f"/{name}.nii", "source_sha256": "0", "shape": shape,
        "spacing_mm": (1.0, 1.0, 1.0), "affine": eye, "source_shape": shape,
        "source_affine": eye, "source_orientation": "RAS",
    }  # fmt: skip
    return Case(**(given_facts | facts))


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "store", Preprocessing())


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 120)] * 3),
    channels=st.integers(1, 2),
    places=st.tuples(*[st.floats(0, 0.999)] * 6),
)
def test_any_box_reads_as_it_was_written(tmp_path_factory, shape, channels, places):
    file = tmp_path_factory.mktemp("arrays") / "a.b2nd"
    array = np.arange(channels * np.prod(shape)).astype(np.int16).reshape(channels, *shape)
    write_array(file, array)
    start = tuple(int(place * n) for place, n in zip(places[:3], shape, strict=True))
    stop = tuple(
        a + 1 + int(place * (n - a)) for place, a, n in zip(places[3:], start, shape, strict=True)
    )
    x, y, z = map(slice, start, stop)
    assert np.array_equal(read_array(file, (start, stop)), array[:, x, y, z])
    assert np.array_equal(read_array(file), array)


def test_equal_arrays_give_equal_files(tmp_path):
    array = np.random.default_rng(0).integers(0, 99, (100, 40, 30)).astype(np.int16)
    first = write_array(tmp_path / "a", array)
    assert first == write_array(tmp_path / "b", np.asfortranarray(array))


def test_a_case_exists_once_it_is_added(store):
    image = np.arange(120, dtype=np.int16).reshape(1, 4, 5, 6)
    label = (image[0] > 50).astype(np.uint8)
    case = store.write(case_of(class_voxels={0: 51, 1: 69}), image, label)
    assert "a" not in Store(store.path).cases
    store.add([case])
    again = Store(store.path)
    assert again.cases["a"] == case
    assert np.array_equal(again.read("a"), image)
    assert np.array_equal(again.read_label("a", ((1, 1, 1), (3, 4, 5))), label[1:3, 1:4, 1:5])


def test_a_box_outside_is_refused(store):
    store.write(case_of(), np.zeros((1, 4, 5, 6), np.int16))
    with pytest.raises(StoreError, match="not inside"):
        store.read("a", ((0, 0, 0), (4, 5, 7)))


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_a_damaged_array_says_how_to_repair_it(store, keep):
    store.write(case_of(), np.zeros((1, 4, 5, 6), np.int16))
    file = store.image_file("a")
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(StoreError, match="--repair"):
        store.read("a")


def test_a_missing_array_says_how_to_repair_it(store):
    with pytest.raises(StoreError, match=r"missing .*--repair"):
        store.read("a")


def test_a_line_that_was_being_written_is_no_case_and_gives_way_to_the_next(store):
    store.add([case_of("a")])
    file = store.path / "cases.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"id": "b", "sour')
    assert list(Store(store.path).cases) == ["a"]
    store.add([case_of("c")])
    assert list(Store(store.path).cases) == ["a", "c"]


def test_a_damaged_line_is_not_skipped(store):
    store.add([case_of("a"), case_of("b")])
    file = store.path / "cases.jsonl"
    file.write_text("{" + file.read_text())
    with pytest.raises(StoreError, match="line 1: damaged"):
        _ = Store(store.path).cases


def test_parts_are_seen_and_can_be_merged(store):
    store.add([case_of("a")])
    store.add([case_of("b", revision=1, split="test")], part="2-of-2")
    store.add([case_of("b")], part="1-of-2")
    store.add([case_of("c", gone=True)], part="1-of-2")
    before = store.cases
    assert set(before) == {"a", "b"}
    assert before["b"].split == "test"
    store.merge()
    assert [file.name for file in store.path.glob("cases*")] == ["cases.jsonl"]
    assert store.cases == before
    assert set(store.gone) == {"c"}


def test_another_preprocessing_is_refused_with_a_way_out(store):
    with pytest.raises(StoreError, match="--overwrite"):
        Store.create(store.path, Preprocessing(foreground=True))
    assert Store.create(store.path, Preprocessing()).path == store.path


def test_a_folder_that_is_no_store_is_told_apart(tmp_path):
    with pytest.raises(StoreError, match="voco prepare"):
        Store(tmp_path)


def test_a_store_of_another_format_is_refused(store):
    head = store.path / "store.json"
    head.write_text(head.read_text().replace('"format": 1', '"format": 0'))
    with pytest.raises(StoreError, match="format 0"):
        Store(store.path)


def test_counts_are_in_the_head_and_change_nothing_else(store):
    image = np.zeros((1, 4, 5, 6), np.int16)
    store.add([store.write(case_of(), image)])
    store.write_counts()
    again = Store(store.path)
    assert again.preprocessing == store.preprocessing
    assert '"voxels": 120' in (store.path / "store.json").read_text()


def test_the_digest_depends_on_content_and_preprocessing_but_not_on_order(tmp_path):
    def digest(name, cases, **preprocessing):
        made = Store.create(tmp_path / name, Preprocessing(**preprocessing))
        made.add(cases)
        return made.digest

    first = digest("1", [case_of("a"), case_of("b")])
    assert digest("2", [case_of("b"), case_of("a")]) == first
    assert digest("3", [case_of("a"), case_of("b", source_sha256="1")]) != first
    assert digest("4", [case_of("a"), case_of("b")], foreground=True) != first


@given(st.lists(st.text(alphabet="ab", max_size=3), max_size=4), st.integers(0, 20))
def test_appending_after_a_tear_keeps_the_whole_lines(tmp_path_factory, lines, cut):
    file = tmp_path_factory.mktemp("lines") / "lines"
    content = "".join(line + "\n" for line in lines).encode()[:cut]
    file.write_bytes(content)
    append_lines(file, "new\n")
    assert file.read_bytes() == content[: content.rfind(b"\n") + 1] + b"new\n"
