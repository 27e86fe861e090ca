"""Phantoms: reproducible, different from each other, and anatomically right."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy.ndimage import label as components

from voco.data.phantom import CLASSES, Organ, Torso, torso
from voco.data.phantom.patient import PROTOCOLS

SEED = 20
SPACING_MM = 8.0

ORGANS = tuple(organ for organ in Organ if organ is not Organ.BACKGROUND)

NOT_IN_VIEW = {
    "chest-abdomen-pelvis": set(),
    "abdomen-pelvis": set(),
    "chest-abdomen": {Organ.BLADDER, Organ.PELVIS},
    "chest": {Organ.BLADDER, Organ.PELVIS, Organ.KIDNEY_RIGHT, Organ.KIDNEY_LEFT},
}
"""Organs that a scan of each part may miss; all others must be there."""


@pytest.fixture(scope="module")
def torsos() -> list[Torso]:
    """One of each part of the body and of each contrast phase; the first two are whole torsos."""
    return [torso(SEED, case, SPACING_MM) for case in (0, 1, 2, 4, 7)]


def middle_mm(case: Torso, organ: Organ) -> np.ndarray:
    """Centre of mass in world coordinates: right, anterior, superior."""
    voxels = np.argwhere(case.label.array[0] == organ)
    assert len(voxels), f"no {organ.name} in a {case.patient.protocol}"
    return case.label.grid.affine[:3] @ [*voxels.mean(axis=0), 1]


def voxels_of(case: Torso, organ: Organ) -> np.ndarray:
    return case.image.array[case.label.array == organ].astype(float)


def test_the_same_seed_gives_the_same_bits(torsos):
    again = torso(SEED, 1, SPACING_MM)
    assert_array_equal(again.image.array, torsos[1].image.array)
    assert_array_equal(again.label.array, torsos[1].label.array)
    assert_array_equal(again.image.grid.affine, torsos[1].image.grid.affine)


def test_another_seed_gives_another_patient_with_other_voxels(torsos):
    other = torso(SEED + 1, 0, SPACING_MM)
    assert other.patient != torsos[0].patient
    assert other.image.array.tobytes() != torsos[0].image.array.tobytes()


def test_no_two_cases_are_alike(torsos):
    assert len({case.image.array.tobytes() for case in torsos}) == len(torsos)
    assert len({case.patient.fat_mm for case in torsos}) == len(torsos)


def test_image_and_label_lie_on_one_ras_grid(torsos):
    for case in torsos:
        assert case.image.grid is case.label.grid
        assert case.image.grid.orientation == "RAS"
        assert case.image.grid.spacing_mm == pytest.approx((SPACING_MM,) * 3)
        assert case.image.array.dtype == np.int16
        assert case.label.array.dtype == np.uint8


def test_there_are_at_least_twelve_classes_named_for_people():
    assert len(CLASSES) >= 13
    assert CLASSES[0] == "background"
    assert {"lung_left", "lung_right", "kidney_left", "kidney_right"} <= set(CLASSES.values())


def test_every_organ_in_the_field_of_view_is_there(torsos):
    for case in torsos:
        found = set(np.unique(case.label.array))
        missing = {o for o in ORGANS if o not in found} - NOT_IN_VIEW[case.patient.protocol]
        assert not missing, (case.patient.protocol, missing)


def test_every_protocol_occurs(torsos):
    assert set(PROTOCOLS) == set(NOT_IN_VIEW)
    assert {case.patient.protocol for case in torsos} == set(NOT_IN_VIEW)
    assert {case.patient.phase for case in torsos} == {"native", "arterial", "portal", "late"}


@pytest.mark.parametrize(
    ("right", "left"),
    [
        (Organ.LUNG_RIGHT, Organ.LUNG_LEFT),
        (Organ.KIDNEY_RIGHT, Organ.KIDNEY_LEFT),
        (Organ.LIVER, Organ.STOMACH),
        (Organ.STOMACH, Organ.SPLEEN),
        (Organ.INFERIOR_VENA_CAVA, Organ.AORTA),
    ],
)
def test_right_is_right_in_the_world(torsos, right, left):
    for case in torsos[:3]:
        assert middle_mm(case, right)[0] > middle_mm(case, left)[0] + 5


@pytest.mark.parametrize(
    ("front", "back"),
    [
        (Organ.HEART, Organ.VERTEBRAE),
        (Organ.STOMACH, Organ.KIDNEY_LEFT),
        (Organ.AORTA, Organ.VERTEBRAE),
        (Organ.STOMACH, Organ.SPLEEN),
    ],
)
def test_front_is_in_front(torsos, front, back):
    for case in torsos[:3]:
        assert middle_mm(case, front)[1] > middle_mm(case, back)[1]


@pytest.mark.parametrize(
    ("above", "below"),
    [
        (Organ.LUNG_RIGHT, Organ.LIVER),
        (Organ.HEART, Organ.STOMACH),
        (Organ.SPLEEN, Organ.KIDNEY_LEFT),
        (Organ.KIDNEY_RIGHT, Organ.BLADDER),
    ],
)
def test_above_is_above(torsos, above, below):
    for case in torsos[:3]:
        assert middle_mm(case, above)[2] > middle_mm(case, below)[2] + 10


@pytest.mark.parametrize(
    ("organ", "low_ml", "high_ml"),
    [
        (Organ.LUNG_RIGHT, 1200, 4000),
        (Organ.LUNG_LEFT, 1000, 3700),
        (Organ.HEART, 300, 1200),
        (Organ.LIVER, 700, 2500),
        (Organ.SPLEEN, 30, 350),
        (Organ.KIDNEY_RIGHT, 60, 300),
        (Organ.KIDNEY_LEFT, 60, 300),
        (Organ.BLADDER, 40, 500),
        (Organ.AORTA, 100, 500),
    ],
)
def test_organs_have_the_volume_of_an_adults(torsos, organ, low_ml, high_ml):
    for case in torsos:
        if case.patient.protocol == "chest-abdomen-pelvis":
            volume_ml = (case.label.array == organ).sum() * SPACING_MM**3 / 1000
            assert low_ml < volume_ml < high_ml


def test_hu_are_those_of_ct(torsos):
    for case in torsos:
        assert case.image.array.min() >= -1024
        assert case.image.array.max() <= 3071
        assert np.median(case.image.array[..., -1, :]) < -900  # air in front of the patient
        assert -900 < np.median(voxels_of(case, Organ.LUNG_RIGHT)) < -700
        assert 20 < np.median(voxels_of(case, Organ.LIVER)) < 150
        assert 150 < np.median(voxels_of(case, Organ.VERTEBRAE)) < 600


def test_organs_without_contrast_cannot_be_told_apart_by_hu(torsos):
    native = torsos[0]
    assert native.patient.phase == "native"
    organs = (Organ.LIVER, Organ.SPLEEN, Organ.KIDNEY_LEFT, Organ.AORTA)
    ranges = [np.percentile(voxels_of(native, organ), (10, 90)) for organ in organs]
    assert max(low for low, _ in ranges) < min(high for _, high in ranges)


def test_portal_liver_and_spleen_cannot_be_told_apart_by_hu(torsos):
    portal = torsos[1]
    assert portal.patient.phase == "portal"
    liver, spleen = (
        np.percentile(voxels_of(portal, organ), (10, 90)) for organ in (Organ.LIVER, Organ.SPLEEN)
    )
    assert max(liver[0], spleen[0]) < min(liver[1], spleen[1])


def test_contrast_medium_brightens_the_aorta(torsos):
    for case in torsos:
        blood = np.median(voxels_of(case, Organ.AORTA))
        low, high = {
            "native": (20, 70),
            "arterial": (150, 450),
            "portal": (85, 260),
            "late": (60, 190),
        }[case.patient.phase]
        assert low < blood < high


def test_organs_lie_in_the_body(torsos):
    for case in torsos:
        image, label = case.image.array[0], case.label.array[0]
        pieces, _ = components(image > -400)
        body = pieces == np.bincount(pieces[image > -400]).argmax()
        soft = np.isin(label, [Organ.LIVER, Organ.SPLEEN, Organ.HEART, Organ.AORTA, Organ.BLADDER])
        assert body[soft].mean() > 0.99
        lungs = np.isin(label, [Organ.LUNG_RIGHT, Organ.LUNG_LEFT])
        # A lung never touches the front, back or side of the scan: there is a wall around it.
        assert not lungs[0].any()
        assert not lungs[-1].any()
        assert not lungs[:, 0].any()
        assert not lungs[:, -1].any()


@pytest.mark.parametrize("organ", [Organ.LIVER, Organ.HEART, Organ.LUNG_LEFT, Organ.KIDNEY_RIGHT])
def test_an_organ_is_one_piece(torsos, organ):
    for case in torsos[:3]:
        pieces, _ = components(case.label.array[0] == organ, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel())[1:]
        assert sizes.max() > 0.9 * sizes.sum()


def test_smaller_voxels_show_the_same_patient(torsos):
    fine = torso(SEED, 0, 6.0)
    assert fine.patient == torsos[0].patient
    for organ in (Organ.LIVER, Organ.LUNG_LEFT, Organ.PELVIS):
        coarse_ml = (torsos[0].label.array == organ).sum() * SPACING_MM**3
        fine_ml = (fine.label.array == organ).sum() * 6.0**3
        assert fine_ml == pytest.approx(coarse_ml, rel=0.12)


def test_gas_in_the_stomach_lies_above_the_fluid(torsos):
    """Gravity acts towards the back, because the patient lies on it."""
    seen = 0
    for case in torsos:
        stomach = case.label.array[0] == Organ.STOMACH
        gas = np.argwhere(stomach & (case.image.array[0] < -600))
        rest = np.argwhere(stomach & (case.image.array[0] > -100))
        if len(gas) > 10:
            seen += 1
            assert gas[:, 1].mean() > rest[:, 1].mean() + 1
    assert seen >= 1
