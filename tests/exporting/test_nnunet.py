import importlib
from pathlib import Path

import pytest
import torch
from handed import RESENC, SMALL, pretrained, segmenting

import voco
from voco.backbone import Backbone
from voco.errors import WeightsError
from voco.weights import load_backbone


@pytest.fixture
def made(tmp_path: Path) -> tuple[Backbone, Path]:
    pretrained(tmp_path / "run", RESENC, trained=("encoder", "decoder"))
    voco.export(tmp_path / "run", "nnunet", tmp_path / "voco.pth", size=(16, 24, 32))
    return load_backbone(tmp_path / "run").eval(), tmp_path / "voco.pth"


def test_the_file_holds_what_nnunet_reads_and_no_objects(made):
    _, file = made
    content = torch.load(file, weights_only=True)
    plan = content["nnssl_adaptation_plan"]
    configuration = next(iter(plan["pretrain_plan"]["configurations"].values()))
    # nnU-Net has z, y, x where voco has x, y, z.
    assert configuration == {"spacing": [2.0, 1.5, 1.0], "patch_size": [32, 24, 16]}
    assert plan["recommended_downstream_patchsize"] == [32, 24, 16]
    assert plan["pretrain_num_input_channels"] == 1
    assert content["voco"]["trained"] == ["encoder", "decoder"]


def test_with_turned_kernels_the_network_gives_the_same_of_a_turned_scan(made):
    backbone, file = made
    tensors = torch.load(file, weights_only=True)["network_weights"]
    turned = RESENC.build(1).eval()
    names = turned.network.state_dict()
    assert set(names) < set(tensors)
    turned.network.load_state_dict({name: tensors[name] for name in names})
    volumes = torch.rand(1, 1, 16, 24, 32)
    with torch.no_grad():
        ours = backbone(volumes)
        theirs = turned(volumes.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
        untouched = backbone(volumes.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, untouched, atol=1e-2)


def test_tensors_of_several_names_are_written_once(made):
    _, file = made
    tensors = torch.load(file, weights_only=True)["network_weights"]
    own = {tensor.data_ptr() for tensor in tensors.values()}
    assert len(own) == len(RESENC.build(1).network.state_dict())


def network_of_nnunet(file: Path, classes: int) -> torch.nn.Module:
    """The network that nnU-Net builds from the file, with weights of its own."""
    pytest.importorskip("dynamic_network_architectures")
    plan = torch.load(file, weights_only=True)["nnssl_adaptation_plan"]["architecture_plans"]
    home, _, name = plan["arch_class_name"].rpartition(".")
    arguments = dict(plan["arch_kwargs"])
    for key in plan["arch_kwargs_requiring_import"]:
        if arguments[key] is not None:
            module, _, what = arguments[key].rpartition(".")
            arguments[key] = getattr(importlib.import_module(module), what)
    kind = getattr(importlib.import_module(home), name)
    return kind(input_channels=1, num_classes=classes, deep_supervision=False, **arguments)


def test_nnunets_own_network_loads_every_tensor(made):
    backbone, file = made
    network = network_of_nnunet(file, 1).eval()
    network.load_state_dict(torch.load(file, weights_only=True)["network_weights"])
    volumes = torch.rand(1, 1, 16, 24, 32)
    with torch.no_grad():
        theirs = network(volumes.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
        assert torch.allclose(theirs, backbone(volumes), atol=1e-5)


def test_nnunets_loader_takes_all_but_the_output_layers(made):
    load = pytest.importorskip("nnunetv2.run.load_pretrained_weights").load_pretrained_weights
    _, file = made
    network = network_of_nnunet(file, 3)
    load(network, file)
    wanted = torch.load(file, weights_only=True)["network_weights"]
    loaded = [n for n, t in network.state_dict().items() if torch.equal(t, wanted[n])]
    assert {n for n in wanted if n not in loaded} == {n for n in wanted if ".seg_layers." in n}


def test_nnunets_loader_of_foreign_checkpoints_takes_stem_and_encoder(made):
    home = pytest.importorskip("nnunetv2.training.nnUNetTrainer.pretraining.pretrainedTrainer")
    _, file = made
    network = network_of_nnunet(file, 3)
    plan = torch.load(file, weights_only=True)["nnssl_adaptation_plan"]
    home.PretrainedTrainer.load_pretrained_weights(
        network,
        str(file),
        pt_input_channels=1,
        downstream_input_channels=1,
        pt_input_patchsize=plan["recommended_downstream_patchsize"],
        downstream_input_patchsize=plan["recommended_downstream_patchsize"],
        pt_key_to_encoder=plan["key_to_encoder"],
        pt_key_to_stem=plan["key_to_stem"],
        pt_keys_to_in_proj=tuple(plan["keys_to_in_proj"]),
        pt_key_to_lpe=plan["key_to_lpe"],
    )
    wanted = torch.load(file, weights_only=True)["network_weights"]
    encoder = [name for name in wanted if name.startswith("encoder.")]
    state = network.state_dict()
    assert len(encoder) > 20
    assert all(torch.equal(state[name], wanted[name]) for name in encoder)


def test_a_network_that_nnunet_has_not_is_refused_with_the_formats_that_fit(tmp_path):
    segmenting(tmp_path / "run", SMALL)
    with pytest.raises(WeightsError, match=r"no network of the kind 'unet'.*--to monai"):
        voco.export(tmp_path / "run", "nnunet", tmp_path / "voco.pth")
    assert not (tmp_path / "voco.pth").exists()


def test_other_intensities_than_nnunets_are_said(tmp_path):
    pretrained(tmp_path / "run", RESENC)
    done = voco.export(tmp_path / "run", "nnunet", tmp_path / "voco.pth")
    assert "these weights have seen 'window' intensities" in str(done)
