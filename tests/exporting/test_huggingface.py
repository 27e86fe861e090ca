import json
import subprocess
import sys

import pytest
import torch
from handed import GENESIS, RESENC, classifying, pretrained, segmenting

import voco
from voco.errors import WeightsError
from voco.exporting.network import read_network


@pytest.fixture
def hub():
    pytest.importorskip("huggingface_hub")
    from voco.exporting.hub import HubNetwork

    return HubNetwork


def same(one, two):
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_segmentation_comes_back_and_computes_the_same(tmp_path, hub):
    backbone = segmenting(tmp_path / "run").eval()
    voco.export(tmp_path / "run", "huggingface", tmp_path / "hub", licence="cc-by-4.0")
    network = hub.from_pretrained(str(tmp_path / "hub"))
    volumes = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(volumes), backbone(volumes))
    assert not network.training


def test_a_classification_comes_back_with_its_classifier(tmp_path, hub):
    classifying(tmp_path / "run")
    voco.export(tmp_path / "run", "huggingface", tmp_path / "hub")
    volumes = torch.rand(2, 1, 32, 32, 32)
    with torch.no_grad():
        expected = read_network(tmp_path / "run")(volumes)
        assert torch.equal(hub.from_pretrained(str(tmp_path / "hub"))(volumes), expected)


@pytest.mark.parametrize("config", [RESENC, GENESIS], ids=lambda config: config.name)
def test_a_pretrained_network_comes_back_and_gives_the_same_features(tmp_path, hub, config):
    backbone = pretrained(tmp_path / "run", config).eval()
    voco.export(tmp_path / "run", "huggingface", tmp_path / "hub")
    volumes = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        levels = hub.from_pretrained(str(tmp_path / "hub"))(volumes)
        assert same(levels, backbone.encode(volumes))


def test_a_changed_file_is_not_loaded(tmp_path, hub):
    segmenting(tmp_path / "run")
    voco.export(tmp_path / "run", "huggingface", tmp_path / "hub")
    file = tmp_path / "hub/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match="its sha256 is"):
        hub.from_pretrained(str(tmp_path / "hub"))


def test_the_weights_are_the_runs_own_bytes(tmp_path):
    segmenting(tmp_path / "run")
    voco.export(tmp_path / "run/weights.safetensors", "huggingface", tmp_path / "hub")
    ours = (tmp_path / "run/weights.safetensors").read_bytes()
    assert (tmp_path / "hub/model.safetensors").read_bytes() == ours
    config = json.loads((tmp_path / "hub/config.json").read_text())
    assert config["handover"] == json.loads((tmp_path / "run/handover.json").read_text())


def test_the_card_says_what_the_run_knows(tmp_path):
    segmenting(tmp_path / "run")
    voco.export(tmp_path / "run", "huggingface", tmp_path / "hub", licence="cc-by-4.0")
    card = (tmp_path / "hub/README.md").read_text()
    for fact in (
        'license: "cc-by-4.0"',
        "0 background, 3 liver, 7 spleen",
        "1 x 1.5 x 2 mm",
        "`window` (low -100, high 240)",
        "24 cases of 1 data sets",
        "30 steps, seed 5",
        "HubNetwork.from_pretrained",
    ):
        assert fact in card


def test_a_card_without_a_licence_says_so(tmp_path):
    pretrained(tmp_path / "run")
    done = voco.export(tmp_path / "run", "huggingface", tmp_path / "hub")
    assert "No licence is named yet" in (tmp_path / "hub/README.md").read_text()
    assert "--licence does" in str(done)


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    code = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "from voco.errors import UsageError\n"
        "try:\n    import voco.exporting.hub\n"
        "except UsageError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert "pip install 'voco[huggingface]'" in done.stdout
