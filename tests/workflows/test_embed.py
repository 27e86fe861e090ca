import json
from itertools import product

import numpy as np
import pytest
import torch
from blobs import blob, blob_store
from hypothesis import given
from hypothesis import strategies as st
from pretraining import recipe

import voco
from voco.cli import DONE, INCOMPLETE, USAGE, main
from voco.data.imageio import write_image
from voco.data.intake import digest_source
from voco.data.intensity import WindowIntensity
from voco.data.patches import scaling
from voco.data.preprocess import prepare_volume
from voco.data.source import Source
from voco.data.store import Preprocessing
from voco.errors import ConfigError, DataError, UsageError
from voco.geometry import Grid
from voco.recipes import EmbedConfig
from voco.volume import Volume
from voco.weights import load_backbone, weights_digest
from voco.workflows.embed import crop_grid, embed
from voco.workflows.pretrain import pretrain

SHAPE = (20, 36, 26)
SMALL = EmbedConfig(window=(16, 16, 16))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed")
    return pretrain(recipe(steps=2), [blob_store(folder / "store", 3)], folder / "run")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two scans, obliquely placed, of which the second has a twin under another name."""
    folder = tmp_path_factory.mktemp("scans")
    affine = np.diag([-1.3, -0.7, 1.0, 1.0])
    affine[:3, 3] = (40, -25, 7)
    for name, number in (("a", 100), ("b", 101), ("twin", 101)):
        image, _ = blob(number, SHAPE)
        write_image(Volume(image, Grid(SHAPE, affine)), folder / f"{name}.nii.gz")
    return folder


def prepared(file):
    from voco.data.imageio import read_image

    return prepare_volume(read_image(file), Preprocessing(spacing_mm=(1, 1, 1)), modality="MR")


def by_hand(run, file):
    """Features of the crops of a scan, with nothing of the workflow: padded, scaled, averaged."""
    ready = prepared(file)
    gain, bias = scaling(ready, WindowIntensity(low=-200, high=200))
    whole = (torch.from_numpy(ready.image).float() * gain.view(-1, 1, 1, 1) + bias).clamp(0, 1)
    network = load_backbone(run).eval()
    starts, stops = ready.foreground
    axes = []
    for low, high in zip(starts, stops, strict=True):
        last = high - low - 16
        places = [*range(0, last, 16), last] if last >= 0 else [-((1 - last) // 2)]
        axes.append([low + place for place in places])
    rows = []
    for x, y, z in product(*axes):
        crop = torch.full((1, 16, 16, 16), float(whole.min()))
        for i, j, k in np.ndindex(16, 16, 16):
            where = np.array((x + i, y + j, z + k))
            if (where >= 0).all() and (where < whole.shape[1:]).all():
                crop[0, i, j, k] = whole[0, where[0], where[1], where[2]]
        with torch.no_grad():
            pyramid = network.encode(crop[None])
        levels = [pyramid[level][0].flatten(1).mean(1) for level in network.embedding_levels]
        rows.append(torch.cat(levels).numpy())
    corners = np.array(list(product(*axes)))
    return corners, np.array(rows)


def test_vectors_are_the_pooled_features_of_the_network(run, scans):
    corners, expected = by_hand(run, scans / "a.nii.gz")
    crops = SMALL.model_copy(update={"of": "crops"})
    rows = embed(run, [scans / "a.nii.gz"], config=crops, modality="MR").rows
    assert np.array_equal(rows.box[:, 0], corners)
    assert len(rows.vectors) > 1
    assert np.allclose(rows.vectors, expected, atol=1e-5)
    assert rows.vectors.std(axis=0).max() > 0
    (whole,) = embed(run, [scans / "a.nii.gz"], config=SMALL, modality="MR").rows.vectors
    assert np.allclose(whole, expected.mean(axis=0), atol=1e-5)


def test_a_scan_has_one_vector_whatever_its_name_and_whatever_lies_beside_it(run, scans):
    rows = embed(run, [scans], config=SMALL, modality="MR").rows
    assert rows.scan == ("a", "b", "twin")
    assert np.array_equal(rows.vectors[1], rows.vectors[2])
    assert rows.sha256[1] == rows.sha256[2] != rows.sha256[0]
    assert not np.allclose(rows.vectors[0], rows.vectors[1])
    alone = embed(run, [scans / "b.nii.gz"], config=SMALL, modality="MR").rows
    assert np.array_equal(alone.vectors[0], rows.vectors[1])


def test_positions_of_crops_are_where_they_lie_in_the_world(run, scans):
    crops = SMALL.model_copy(update={"of": "crops", "overlap": 0.5})
    rows = embed(run, [scans / "a.nii.gz"], config=crops, modality="MR").rows
    affine = prepared(scans / "a.nii.gz").grid.affine
    for box, centre in zip(rows.box, rows.centre_mm, strict=True):
        corners = np.array([box[0] - 0.5, box[1] - 0.5])  # edges of voxels, not their middles
        edges = corners @ affine[:3, :3].T + affine[:3, 3]
        assert np.allclose(edges.mean(axis=0), centre)
    assert (rows.box[:, 1] - rows.box[:, 0] == 16).all()
    assert rows.crops.tolist() == [1] * len(rows.box)


def test_the_file_holds_the_vectors_and_what_made_them(run, scans, tmp_path):
    done = embed(run, [scans], tmp_path / "new" / "v.npz", SMALL, modality="MR")
    with np.load(tmp_path / "new" / "v.npz", allow_pickle=False) as file:
        assert np.array_equal(file["vectors"], done.rows.vectors)
        assert file["vectors"].dtype == np.float32
        assert file["scan"].tolist() == ["a", "b", "twin"]
        assert file["source"][0] == str(scans / "a.nii.gz")
        assert file["sha256"][0] == digest_source(Source("a", (scans / "a.nii.gz",)))
        assert file["box"].shape == (3, 2, 3)
        about = json.loads(str(file["provenance"]))
    assert about["weights_sha256"] == weights_digest(run)
    assert about["method"]["name"] == "voco"
    assert about["preprocessing"]["spacing_mm"] == [1, 1, 1]
    assert about["settings"]["window"] == [16, 16, 16]
    assert about["levels"] == "1/1, 1/2"


def test_equal_calls_give_equal_bytes(run, scans, tmp_path):
    for name in ("one", "two"):
        embed(run, [scans], tmp_path / f"{name}.npz", SMALL, modality="MR")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_parquet_holds_the_same(run, scans, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = embed(run, [scans], tmp_path / "v.parquet", SMALL, modality="MR").rows
    table = parquet.read_table(tmp_path / "v.parquet")
    columns = table.to_pydict()
    assert columns["scan"] == list(rows.scan)
    assert np.array_equal(np.array(columns["vector"], np.float32), rows.vectors)
    assert np.array_equal(np.array(columns["stop_voxel"]), rows.box[:, 1])
    assert np.allclose(columns["centre_mm"], rows.centre_mm)
    assert json.loads(table.schema.metadata[b"voco"]) == rows.provenance


def test_a_missing_package_is_named_before_anything_is_computed(run, scans, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'voco\[parquet\]'"):
        embed(run, [scans], tmp_path / "v.parquet", SMALL)


def test_one_bad_scan_is_named_and_the_others_are_written(run, scans, tmp_path, capsys):
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes((scans / "a.nii.gz").read_bytes()[:2000])
    words = ["embed", str(run), str(bad), str(scans / "b.nii.gz"), "--out", str(tmp_path / "v.npz")]
    words += ["--modality", "MR", "--window", "16", "16", "16"]
    assert main(words) == INCOMPLETE
    printed = capsys.readouterr().out
    assert "1 scans embedded, 1 not: 1 vectors of" in printed
    assert str(bad) in printed
    with np.load(tmp_path / "v.npz") as file:
        assert file["scan"].tolist() == ["b"]
    assert main(words) == USAGE
    assert "exists. Give another file, or --overwrite." in capsys.readouterr().err
    assert main([*words[:2], *words[3:], "--overwrite"]) == DONE


def test_no_scan_at_all_writes_nothing(run, scans, tmp_path):
    with pytest.raises(DataError, match="its modality is unknown, the network was trained on MR"):
        embed(run, [scans / "a.nii.gz"], tmp_path / "v.npz", SMALL)
    assert not (tmp_path / "v.npz").exists()


def test_a_file_of_another_kind_is_refused(run, scans, tmp_path):
    with pytest.raises(UsageError, match=r"written as \.npz or \.parquet"):
        embed(run, [scans], tmp_path / "v.csv", SMALL)


def test_a_window_that_the_network_cannot_take_is_refused(run, scans):
    with pytest.raises(ConfigError, match="nearest size that fits"):
        embed(run, [scans], config=EmbedConfig(window=(15, 16, 16)))


def test_without_a_window_it_is_what_the_weights_were_trained_on(run, scans):
    rows = embed(run, [scans / "a.nii.gz"], modality="MR").rows
    assert rows.provenance["settings"]["window"] == [8, 8, 8]


def test_of_a_transformer_trained_alone_its_own_map_is_pooled(run):
    """The convolutions beside it are random, so they must not count."""
    from tiny import TinyMaskedConfig

    from voco.weights import read_handover
    from voco.workflows.embed import _pool

    backbone = TinyMaskedConfig().build()
    handover = read_handover(run).model_copy(update={"trained": ("tokens",)})
    words, pool = _pool(backbone, handover, EmbedConfig())
    crops = torch.randn(2, 1, 8, 8, 8)
    before = pool(crops)
    with torch.no_grad():
        for name, parameter in backbone.network.named_parameters():
            if not name.startswith(backbone.token_prefixes):
                parameter.add_(1)
    assert words == "tokens"
    assert torch.equal(pool(crops), before)


spans = st.tuples(*[st.tuples(st.integers(0, 9), st.integers(1, 40))] * 3)


@given(spans=spans, window=st.sampled_from([(8, 8, 8), (16, 4, 12)]), overlap=st.floats(0, 0.9))
def test_crops_cover_the_body_and_only_small_bodies_are_exceeded(spans, window, overlap):
    low, high = [s[0] for s in spans], [s[0] + s[1] for s in spans]
    corners = np.array(crop_grid((tuple(low), tuple(high)), window, overlap))
    for axis, side in enumerate(window):
        firsts = sorted(set(corners[:, axis]))
        covered = {first + offset for first in firsts for offset in range(side)}
        assert covered >= set(range(low[axis], high[axis]))
        if high[axis] - low[axis] >= side:
            assert min(covered) >= low[axis]
            assert max(covered) < high[axis]
        else:
            assert len(firsts) == 1
    assert len(np.unique(corners, axis=0)) == len(corners)


def test_embed_is_a_function_of_the_package():
    assert voco.embed is embed
