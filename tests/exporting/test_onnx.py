import json
from pathlib import Path

import numpy as np
import pytest
import torch
from handed import GENESIS, SMALL, classifying, pretrained, segmenting

import voco
from voco.errors import UsageError, WeightsError
from voco.exporting.network import read_network
from voco.exporting.onnx import compared

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    backbone = segmenting(folder / "run")
    return backbone.eval(), voco.export(folder / "run", "onnx", folder / "net.onnx")


def session(file: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("shape", [(1, 1, 32, 32, 32), (3, 1, 48, 32, 64)])
def test_onnxruntime_gives_the_same_for_any_batch_and_size(made, shape):
    backbone, done = made
    volumes = torch.rand(shape)
    with torch.no_grad():
        expected = backbone(volumes).numpy()
    (found,) = session(done.files[0]).run(["logits"], {"volumes": volumes.numpy()})
    assert np.allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_the_file_says_how_scans_are_prepared_and_what_the_channels_are(made):
    facts = session(made[1].files[0]).get_modelmeta().custom_metadata_map
    assert json.loads(facts["voco.preprocessing"])["spacing_mm"] == [1.0, 1.5, 2.0]
    assert json.loads(facts["voco.intensity"]) == {"name": "window", "low": -100, "high": 240}
    assert json.loads(facts["voco.classes"]) == {"0": "background", "3": "liver", "7": "spleen"}
    assert json.loads(facts["voco.window"]) == [32, 32, 32]
    assert json.loads(facts["voco.any_size_divisible_by"]) == 16


def test_how_near_the_two_are_is_said_and_nothing_else_is_left(made):
    _, done = made
    assert [file.name for file in done.files] == ["net.onnx"]
    assert {file.name for file in done.files[0].parent.iterdir()} == {"run", "net.onnx"}
    assert "onnxruntime and torch differ by" in str(done)


def test_a_graph_that_computes_something_else_is_refused(made, tmp_path):
    _, done = made
    segmenting(tmp_path, SMALL.model_copy(update={"features": (2, 2, 2, 2, 2, 4)}))
    with pytest.raises(
        WeightsError, match=r"gives another 'logits' than torch.*Nothing is written"
    ):
        compared(read_network(tmp_path), done.files[0], ((32, 32, 32),))


def test_of_a_pretrained_network_the_levels_are_given_by_name(tmp_path):
    pretrained(tmp_path / "run")
    network = read_network(tmp_path / "run")
    assert network.outputs == tuple(f"level{n}_stride{2**n}" for n in range(5))
    with torch.no_grad():
        levels = network(torch.rand(1, 1, 32, 32, 32))
    assert [tuple(level.shape[2:]) for level in levels] == [(32 // 2**n,) * 3 for n in range(5)]


def test_a_network_with_batch_norm_gives_the_same_for_any_batch_and_size(tmp_path):
    task = {"name": "segmentation", "roi": [16, 16, 16]}
    backbone = segmenting(tmp_path / "run", GENESIS, task=task).eval()
    done = voco.export(tmp_path / "run", "onnx", tmp_path / "net.onnx")
    volumes = torch.rand(3, 1, 24, 16, 32) * torch.tensor([1, 50, 200]).view(3, 1, 1, 1, 1)
    with torch.no_grad():
        expected = backbone(volumes).numpy()
    (found,) = session(done.files[0]).run(["logits"], {"volumes": volumes.numpy()})
    assert np.allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_a_classifier_takes_its_own_size_only(tmp_path):
    classifying(tmp_path / "run")
    with pytest.raises(UsageError, match=r"classifies volumes of \(32, 32, 32\) voxels"):
        voco.export(tmp_path / "run", "onnx", tmp_path / "net.onnx", size=(64, 64, 64))
