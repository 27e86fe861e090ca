import pytest
from hypothesis import given
from hypothesis import strategies as st

from voco.data.labelled import (
    Labelled,
    label_classes,
    labelled_cases,
    split_cases,
    target_classes,
)
from voco.data.store import Case, Preprocessing, Store
from voco.errors import ConfigError, StoreError

ALONE = {"validation": 0.2, "split_seed": 0, "labels": None, "labels_seed": 0}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store.create(tmp_path_factory.mktemp("store"), Preprocessing())


def made(store, name, **facts):
    eye = tuple(tuple(float(a == b) for b in range(4)) for a in range(4))
    case = Case(
        id=name,
        source=name,
        source_sha256=name,
        shape=(4, 4, 4),
        spacing_mm=(1, 1, 1),
        affine=eye,
        source_shape=(4, 4, 4),
        source_affine=eye,
        source_orientation="RAS",
        **({"classes": {0: "background", 1: "liver"}, "class_voxels": {0: 60, 1: 4}} | facts),
    )
    return Labelled(store, case)


def names(cases):
    return {one.case.id for one in cases}


@given(few=st.integers(1, 10), more=st.integers(1, 10), seed=st.integers(0, 99))
def test_fewer_labels_are_among_more(store, few, more, seed):
    cases = [made(store, f"c{n}") for n in range(15)]
    few, more = sorted((few, more))
    small, large = (
        split_cases(cases, **ALONE | {"labels": count, "labels_seed": seed})
        for count in (few, more)
    )
    assert len(small.train) == few
    assert names(small.train) <= names(large.train)
    assert names(small.validation) == names(large.validation)


@given(st.integers(0, 99))
def test_every_case_is_used_once(store, seed):
    cases = [made(store, f"c{n}", split="test" if n == 3 else None) for n in range(12)]
    split = split_cases(cases, **ALONE | {"split_seed": seed, "labels": 0.5})
    parts = [names(part) for part in split]
    assert set.union(*parts) == names(cases)
    assert sum(map(len, parts)) == 12
    assert "c3" in parts[2]


@given(st.integers(0, 99))
def test_a_group_is_never_split_up(store, seed):
    cases = [made(store, f"c{n}", group=f"patient{n // 3}") for n in range(15)]
    split = split_cases(cases, **ALONE | {"split_seed": seed, "validation": 4})
    groups = [{one.case.group for one in part} for part in split[:2]]
    assert not groups[0] & groups[1]
    assert len(split.validation) == 6


def test_the_splits_of_the_store_count(store):
    kinds = ["train", "validation", "test", None]
    cases = [made(store, kind or "none", split=kind) for kind in kinds]
    split = split_cases(cases, **ALONE)
    assert [names(part) for part in split] == [{"train", "none"}, {"validation"}, {"test"}]


def test_a_group_in_two_splits_is_refused(store):
    cases = [made(store, kind, split=kind, group="p") for kind in ("train", "validation")]
    with pytest.raises(StoreError, match="group p"):
        split_cases(cases, **ALONE)


def test_targets_keep_their_shares_in_every_part(store):
    cases = [made(store, f"c{n}", target=int(n % 4 == 0)) for n in range(40)]
    split = split_cases(cases, **ALONE | {"validation": 8, "labels": 12})
    assert sum(one.case.target for one in split.validation) == 2
    assert sum(one.case.target for one in split.train) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": 9}, "labels: 9 cases asked for, 8"),
        ({"labels": 0}, "labels: 0"),
        ({"labels": 1.5}, "labels: a share"),
        ({"validation": 10}, "none is left"),
        ({"validation": 11}, "validation: 11"),
    ],
)
def test_amounts_that_cannot_be_are_refused(store, changes, said):
    with pytest.raises(ConfigError, match=said):
        split_cases([made(store, f"c{n}") for n in range(10)], **ALONE | changes)


def test_nothing_need_be_held_out(store):
    split = split_cases([made(store, "a")], **ALONE | {"validation": 0})
    assert (names(split.train), split.validation) == ({"a"}, ())


def test_classes_are_sorted_and_start_with_the_background(store):
    cases = [
        made(store, "a", classes={420: "atrium"}, class_voxels={0: 1, 420: 1}),
        made(store, "b", classes={205: "muscle"}, class_voxels={0: 1, 205: 1}),
    ]
    assert label_classes(cases) == {0: "background", 205: "muscle", 420: "atrium"}


def test_the_background_may_have_another_name(store):
    assert label_classes([made(store, "a", classes={0: "air", 1: "liver"})])[0] == "air"


def test_a_value_of_two_names_is_refused(store):
    cases = [made(store, "a"), made(store, "b", classes={1: "spleen"})]
    with pytest.raises(StoreError, match="'liver' in case 'a' and 'spleen' in case 'b'"):
        label_classes(cases)


def test_a_value_without_a_name_is_refused(store):
    with pytest.raises(StoreError, match=r"case 'a'.*\[7\]"):
        label_classes([made(store, "a", class_voxels={0: 1, 7: 1})])


def test_targets_are_sorted(store):
    assert target_classes([made(store, n, target=n) for n in "cab"]) == ("a", "b", "c")


def test_one_target_alone_is_nothing_to_tell_apart(store):
    with pytest.raises(StoreError, match="nothing to tell apart"):
        target_classes([made(store, n, target="x") for n in "ab"])


def test_stores_that_share_a_name_are_refused(tmp_path):
    stores = [Store.create(tmp_path / name, Preprocessing()) for name in "ab"]
    for store in stores:
        store.add([made(store, "twin").case])
    with pytest.raises(StoreError, match="'twin'"):
        labelled_cases(stores, "label")


def test_a_store_without_labels_is_refused(tmp_path):
    store = Store.create(tmp_path / "a", Preprocessing())
    store.add([made(store, "bare", classes={}, class_voxels={}).case])
    with pytest.raises(StoreError, match="no case has a label"):
        labelled_cases([store], "label")
