import json
import re
import sys

import numpy as np
import pytest
import torch
from blobs import blob
from handed import CLASSES, GENESIS, RESENC, SMALL, classifying, pretrained, segmenting
from monai.bundle import ConfigParser, run
from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unetr import UNETR

import voco
from voco.backbones.swin_unetr import SwinUNETRConfig
from voco.backbones.unetr import UNETRConfig
from voco.data.imageio import read_label, write_image
from voco.data.intensity import PercentileIntensity
from voco.data.store import Preprocessing
from voco.errors import WeightsError
from voco.geometry import Grid
from voco.volume import Volume
from voco.workflows.predict import predict

SMALL_UNETR = UNETRConfig(
    size=(32, 32, 32), feature_size=4, hidden_size=24, mlp_dim=16, num_heads=2
)


@pytest.fixture
def imports(monkeypatch):
    """What a bundle changes in the interpreter is taken back."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield
    for name in ("voco_transforms", "voco_merging"):
        sys.modules.pop(name, None)


NETWORKS = {
    "unet": (SMALL, lambda: BasicUNet(3, 1, 3, (2, 2, 2, 2, 2, 2)), (32, 32, 48)),
    "unetr": (SMALL_UNETR, lambda: UNETR(1, 3, (32, 32, 32), 4, 24, 16, 2), (32, 32, 32)),
    "swin_unetr": (
        SwinUNETRConfig(feature_size=12),
        lambda: SwinUNETR(1, 3, feature_size=12, use_v2=True),
        (64, 32, 32),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_monais_own_class_loads_every_tensor_and_computes_the_same(tmp_path, name):
    config, build, size = NETWORKS[name]
    task = {"name": "segmentation", "roi": [32 if name != "swin_unetr" else 64] * 3}
    backbone = segmenting(tmp_path / "run", config, task=task).eval()
    voco.export(tmp_path / "run", "monai", tmp_path / "bundle")
    network = build().eval()
    network.load_state_dict(torch.load(tmp_path / "bundle/models/model.pt", weights_only=True))
    volumes = torch.rand(1, 1, *size)
    with torch.no_grad():
        # Our way through Swin UNETR adds the same numbers in another order.
        torch.testing.assert_close(network(volumes), backbone(volumes), rtol=1e-4, atol=1e-4)


def test_of_a_pretrained_network_all_but_the_output_layer_is_there(tmp_path):
    backbone = pretrained(tmp_path / "run")
    done = voco.export(tmp_path / "run", "monai", tmp_path / "bundle")
    tensors = torch.load(tmp_path / "bundle/models/model.pt", weights_only=True)
    missing, unexpected = BasicUNet(3, 1, 14, (2, 2, 2, 2, 2, 2)).load_state_dict(
        tensors, strict=False
    )
    assert set(missing) == {"final_conv.weight", "final_conv.bias"}
    assert not unexpected
    for name, tensor in backbone.network.state_dict().items():
        if name.startswith(backbone.encoder_prefixes):
            assert torch.equal(tensor, tensors[name])
    assert "nothing was learnt by the decoder and output layer" in str(done)
    assert "nothing to run" in str(done)
    assert not (tmp_path / "bundle/configs/inference.json").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")  # MONAI misses a decoder that nothing needs
@pytest.mark.usefixtures("imports")
def test_the_configuration_of_a_pretrained_network_builds_it(tmp_path):
    pretrained(tmp_path / "run")
    voco.export(tmp_path / "run", "monai", tmp_path / "bundle")
    parser = ConfigParser()
    parser.read_config(tmp_path / "bundle/configs/network.json")
    network = parser.get_parsed_content("network_def")
    assert isinstance(network, BasicUNet)
    sys.path.insert(0, str(tmp_path / "bundle"))
    assert len(parser.get_parsed_content("preprocessing").transforms) == 3


@pytest.mark.filterwarnings("ignore::UserWarning")  # MONAI says that configurations are code
@pytest.mark.usefixtures("imports")
@pytest.mark.parametrize("foreground", [False, True])
def test_the_bundle_segments_as_predict_does(tmp_path, foreground):
    segmenting(
        tmp_path / "run",
        preprocessing=Preprocessing(spacing_mm=(1.0, 1.5, 1.2), foreground=foreground),
        intensity=PercentileIntensity(),
    )
    (tmp_path / "scans").mkdir()
    affine = np.array([[0, -1.3, 0, 40], [-0.7, 0, 0, -25], [0, 0, 1.1, 7], [0, 0, 0, 1]])
    for number, shape in ((1, (20, 36, 45)), (2, (40, 50, 22))):
        image, _ = blob(number, shape)
        write_image(Volume(image, Grid(shape, affine)), tmp_path / f"scans/scan{number}.nii.gz")
    done = predict(tmp_path / "run", [tmp_path / "scans"], tmp_path / "masks", modality="MR")
    voco.export(tmp_path / "run", "monai", tmp_path / "bundle")
    run(
        config_file=str(tmp_path / "bundle/configs/inference.json"),
        bundle_root=str(tmp_path / "bundle"),
        dataset_dir=str(tmp_path / "scans"),
        output_dir=str(tmp_path / "theirs"),
        device="$torch.device('cpu')",
    )
    assert len(done.files) == 2
    for file in done.files:
        ours, theirs = read_label(file), read_label(tmp_path / "theirs" / file.name)
        assert set(np.unique(ours.array)) <= set(CLASSES)
        assert len(np.unique(ours.array)) > 1
        assert np.allclose(ours.grid.affine, theirs.grid.affine, atol=1e-5)
        assert (ours.array == theirs.array).mean() > 0.9999


def test_the_metadata_says_what_the_network_takes_and_gives(tmp_path):
    segmenting(tmp_path / "run")
    voco.export(tmp_path / "run", "monai", tmp_path / "bundle")
    metadata = json.loads((tmp_path / "bundle/configs/metadata.json").read_text())
    data = metadata["network_data_format"]
    assert data["inputs"]["image"]["spatial_shape"] == [32, 32, 32]
    assert data["inputs"]["image"]["modality"] == "MR"
    assert data["outputs"]["pred"]["channel_def"] == {
        "0": "background",
        "1": "liver",
        "2": "spleen",
    }
    assert metadata["voco"]["preprocessing"]["spacing_mm"] == [1.0, 1.5, 2.0]


def test_a_classifier_is_said_to_stay_behind(tmp_path):
    classifying(tmp_path / "run")
    done = voco.export(tmp_path / "run", "monai", tmp_path / "bundle")
    assert "its classifier is not part of MONAI's network" in str(done)


@pytest.mark.usefixtures("imports")
def test_a_network_of_the_older_merging_brings_its_class_along(tmp_path):
    config = SwinUNETRConfig(feature_size=12, merging="legacy")
    task = {"name": "segmentation", "roi": [64] * 3}
    backbone = segmenting(tmp_path / "run", config, task=task).eval()
    done = voco.export(tmp_path / "run", "monai", tmp_path / "bundle")
    assert any("MONAI up to 1.4" in note for note in done.notes)
    sys.path.insert(0, str(tmp_path / "bundle"))
    parser = ConfigParser()
    parser.read_config(tmp_path / "bundle/configs/inference.json")
    network = parser.get_parsed_content("network_def").eval()
    assert type(network).__module__ == "voco_merging"
    tensors = torch.load(tmp_path / "bundle/models/model.pt", weights_only=True)
    network.load_state_dict(tensors)
    volumes = torch.rand(1, 1, 64, 32, 32, dtype=torch.float64)
    today = SwinUNETR(1, 3, feature_size=12, use_v2=True).eval()
    today.load_state_dict(tensors)
    for each in (network, today, backbone):
        each.double()
    with torch.no_grad():
        torch.testing.assert_close(network(volumes), backbone(volumes))
        assert not torch.allclose(today(volumes), backbone(volumes), atol=1e-2)


def test_a_network_that_monai_has_not_is_refused_with_the_formats_that_fit(tmp_path):
    pretrained(tmp_path / "run", RESENC)
    with pytest.raises(WeightsError, match=r"no network of the kind 'resenc_unet'.*--to nnunet"):
        voco.export(tmp_path / "run", "monai", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_network_that_neither_has_is_sent_to_the_formats_that_take_all(tmp_path):
    pretrained(tmp_path / "run", GENESIS)
    for other in ("monai", "nnunet"):
        with pytest.raises(WeightsError, match="no network of the kind 'genesis_unet'") as refusal:
            voco.export(tmp_path / "run", other, tmp_path / "out")
        assert set(re.findall(r"--to \w+", str(refusal.value))) == {
            "--to onnx",
            "--to huggingface",
        }
