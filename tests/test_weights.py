import hashlib
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import voco
from voco.backbone import Backbone, BackboneConfig
from voco.backbones.resenc_unet import ResEncUNetConfig
from voco.backbones.swin_unetr import SwinUNETRConfig
from voco.backbones.unet import UNetConfig
from voco.backbones.unetr import UNETRConfig
from voco.data.intensity import WindowIntensity
from voco.data.store import Preprocessing
from voco.errors import WeightsError
from voco.weights import (
    Handover,
    TrainingData,
    account,
    export,
    load,
    load_backbone,
    load_weights,
    read_handover,
    read_tensors,
    task_tensors,
    transfer,
)

SMALL = ResEncUNetConfig(features=(2, 4), blocks=(1, 1))
NOT_ENCODER = ("decoder.",)


def built(config: BackboneConfig = SMALL, seed: int = 0, out_channels: int = 2) -> Backbone:
    torch.manual_seed(seed)
    return config.build(out_channels)


def exported(folder: Path, backbone: Backbone | None = None, **changes: Any) -> Handover:
    facts: dict[str, Any] = {
        "kind": "pretraining",
        "trained": ("encoder",),
        "step": 30,
        "seed": 5,
        "preprocessing": Preprocessing(spacing_mm=(1.5, 1.5, 2.0)),
        "intensity": WindowIntensity(low=-100, high=240),
        "method": {"name": "voco", "grid": [4, 4, 1]},
        "data": (TrainingData(digest="abc", cases=24),),
        **changes,
    }
    return export(folder, backbone or built(), **facts)


def state(backbone: Backbone) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in backbone.network.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# --- writing and reading back -----------------------------------------------------------------


def test_what_is_exported_is_what_is_read(tmp_path: Path):
    backbone = built()
    written = exported(tmp_path, backbone)
    assert read_handover(tmp_path) == written
    assert read_handover(tmp_path / "weights.safetensors") == written
    assert written.preprocessing.spacing_mm == (1.5, 1.5, 2.0)
    assert written.intensity == WindowIntensity(low=-100, high=240)
    assert written.backbone == SMALL
    assert written.data == (TrainingData(digest="abc", cases=24),)
    tensors = read_tensors(tmp_path)
    assert same(tensors, {k: v for k, v in state(backbone).items() if k.startswith("encoder.")})
    assert same(tensors, read_tensors(tmp_path / "weights.safetensors"))


def test_the_file_holds_the_trained_parts_and_no_others(tmp_path: Path):
    exported(tmp_path, trained=("encoder", "head"))
    names = read_tensors(tmp_path)
    assert {name.split(".")[0] for name in names} == {"encoder", "decoder"}
    assert all(n.startswith(("encoder.", "decoder.seg_layers.")) for n in names)


def test_equal_runs_give_equal_bytes_and_leave_nothing_else_behind(tmp_path: Path):
    exported(tmp_path / "a")
    exported(tmp_path / "b")
    exported(tmp_path / "b")
    for name in ("weights.safetensors", "handover.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert {file.name for file in (tmp_path / "b").iterdir()} == {
        "weights.safetensors",
        "handover.json",
    }


def test_the_weight_file_says_by_itself_which_network_it_is_for(tmp_path: Path):
    exported(tmp_path)
    with safetensors.safe_open(tmp_path / "weights.safetensors", "pt") as file:
        about = json.loads(file.metadata()["voco"])
    assert about["format"] == 1
    assert about["backbone"]["name"] == "resenc_unet"


def test_the_library_rebuilds_the_network_without_voco_from_the_two_files(tmp_path: Path):
    from monai.networks.nets.basic_unet import BasicUNet

    backbone = built(UNetConfig(features=(2, 2, 2, 2, 2, 2)))
    exported(tmp_path, backbone, trained=("encoder", "decoder", "head"))
    handover = json.loads((tmp_path / "handover.json").read_text())
    assert handover["library"] == "monai.networks.nets.basic_unet.BasicUNet"
    network = BasicUNet(**handover["library_arguments"])
    network.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    volumes = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(volumes), backbone(volumes))


def test_tensors_of_the_task_travel_along_and_stay_apart(tmp_path: Path):
    classifier = {"linear.weight": torch.randn(3, 4), "linear.bias": torch.randn(3)}
    exported(tmp_path, kind="classification", task_tensors=classifier)
    tensors = read_tensors(tmp_path)
    assert same(task_tensors(tensors), classifier)
    accounting = load_weights(built(seed=1), tensors, new=NOT_ENCODER)
    assert set(accounting.unused) == {"task.linear.weight", "task.linear.bias"}


def test_a_diverged_network_is_not_exported(tmp_path: Path):
    backbone = built()
    with torch.no_grad():
        next(backbone.network.parameters())[0] = torch.nan
    with pytest.raises(WeightsError, match="is not finite: the run diverged"):
        exported(tmp_path, backbone)
    assert not list(tmp_path.iterdir())


def test_a_network_of_which_nothing_was_trained_is_not_exported(tmp_path: Path):
    with pytest.raises(WeightsError, match="nothing to hand on"):
        exported(tmp_path, trained=())


# --- files that are not what they should be ---------------------------------------------------


def test_a_changed_weight_file_is_refused(tmp_path: Path):
    exported(tmp_path)
    file = tmp_path / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match="its sha256 is"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("left", [0, 7, 200, -5])
def test_a_truncated_weight_file_is_refused_with_and_without_its_handover(
    tmp_path: Path, left: int
):
    exported(tmp_path)
    file = tmp_path / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(WeightsError, match="incomplete"):
        read_tensors(tmp_path)
    (tmp_path / "handover.json").unlink()
    with pytest.raises(WeightsError, match="damaged or incomplete"):
        read_tensors(tmp_path)


def _set(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda values: values.__setitem__(key, value)


@pytest.mark.parametrize(
    ("tamper", "complaint"),
    [
        (_set("format", 2), "format 2, this version reads 1"),
        (_set("step", -1), "step"),
        (_set("stpe", 1), "unknown key 'stpe'; did you mean 'step'"),
        (_set("trained", ["neck"]), "trained"),
        (_set("backbone", {"name": "resnet"}), "backbone"),
        (lambda values: values.pop("preprocessing"), "key 'preprocessing' is missing"),
    ],
)
def test_a_handover_that_was_edited_wrongly_is_refused_by_key(
    tmp_path: Path, tamper: Callable[[dict[str, Any]], None], complaint: str
):
    exported(tmp_path)
    file = tmp_path / "handover.json"
    values = json.loads(file.read_text())
    tamper(values)
    file.write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=complaint):
        load_backbone(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"1"])
def test_a_handover_that_is_not_one_is_refused(tmp_path: Path, content: bytes):
    exported(tmp_path)
    (tmp_path / "handover.json").write_bytes(content)
    with pytest.raises(WeightsError, match=r"handover\.json"):
        load_backbone(tmp_path)


def test_the_class_named_in_a_handover_is_never_imported(tmp_path: Path):
    exported(tmp_path)
    file = tmp_path / "handover.json"
    values = json.loads(file.read_text())
    values["library"] = "no_such_package.Network"
    file.write_text(json.dumps(values))
    assert load_backbone(tmp_path).config == SMALL


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"weights\.safetensors: no such file"):
        read_tensors(tmp_path)
    with pytest.raises(WeightsError, match=r"has no handover\.json"):
        load_backbone(tmp_path)


def test_an_unknown_kind_of_file_is_refused_with_the_known_ones(tmp_path: Path):
    file = tmp_path / "weights.h5"
    file.touch()
    with pytest.raises(WeightsError, match=r"\.safetensors, \.pt"):
        read_tensors(file)


def test_a_handover_speaks_for_its_own_weight_file_only(tmp_path: Path):
    exported(tmp_path)
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.ones(1)}, other)
    assert set(read_tensors(other)) == {"a"}


# --- files of torch.save ----------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"state_dict": t, "epoch": 3}])
def test_tensors_of_torch_save_are_found_at_the_top_or_under_one_key(tmp_path: Path, wrap: Any):
    tensors = state(built())
    torch.save(wrap(tensors), tmp_path / "weights.pth")
    assert same(read_tensors(tmp_path / "weights.pth"), tensors)


def test_two_sets_of_tensors_in_one_file_are_not_guessed_at(tmp_path: Path):
    torch.save({"student": state(built()), "teacher": state(built())}, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=r"several sets of tensors.*student.*teacher"):
        read_tensors(tmp_path / "weights.pt")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, 5])
def test_a_file_of_torch_save_without_tensors_is_refused(tmp_path: Path, content: object):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=r"not tensors by name|no set of tensors"):
        read_tensors(tmp_path / "weights.pt")


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("trapped"),))


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": state(built()), "optimizer": _Trap()}, "weights.pt")
    with pytest.raises(WeightsError, match="could run code"):
        read_tensors(Path("weights.pt"))
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Trap(), protocol=2))
    with pytest.raises(WeightsError, match=r"plain\.pt: damaged"):
        read_tensors(Path("plain.pt"))
    assert not Path("trapped").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@given(content=st.binary(max_size=60))
def test_whatever_a_file_holds_reading_it_gives_tensors_or_says_why_not(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes
):
    file = tmp_path_factory.getbasetemp() / f"anything{suffix}"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match="anything"):
        read_tensors(file)


@pytest.mark.parametrize("left", [0, 10, 1000])
def test_a_truncated_file_of_torch_save_is_refused(tmp_path: Path, left: int):
    file = tmp_path / "weights.pt"
    torch.save(state(built()), file)
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(WeightsError, match=r"weights\.pt: damaged"):
        read_tensors(file)


# --- loading ----------------------------------------------------------------------------------


def test_every_tensor_is_loaded_and_counted():
    source, target = built(seed=1), built(seed=2)
    accounting = load_weights(target, state(source))
    assert same(state(target), state(source))
    encoder = [n for n in state(source) if n.startswith("encoder.")]
    assert accounting.tensors == (len(encoder), len(encoder))
    assert accounting.share == 1.0
    assert set(accounting.loaded) == set(state(source))
    assert accounting.new == accounting.unused == accounting.refused == ()
    assert str(accounting).startswith(
        f"{len(encoder)} of {len(encoder)} tensors, 100 % of the encoder"
    )


def test_what_is_new_keeps_its_values_and_is_named():
    source, target = built(seed=1), built(seed=2)
    before = state(target)
    accounting = load_weights(target, state(source), new=("decoder.seg_layers.",))
    for name, tensor in state(target).items():
        fresh = name.startswith("decoder.seg_layers.")
        assert torch.equal(tensor, before[name] if fresh else state(source)[name])
    assert accounting.new == accounting.unused
    assert "new: decoder.seg_layers.0.weight" in str(accounting)


FAULTS: dict[str, Callable[[dict[str, Tensor], str], object]] = {
    "1 missing": lambda tensors, name: tensors.pop(name),
    "1 unknown": lambda tensors, name: tensors.__setitem__(f"{name}.more", torch.ones(1)),
    "1 of another shape": lambda tensors, name: tensors.__setitem__(name, torch.ones(7)),
    "1 of another type": lambda tensors, name: tensors.__setitem__(name, tensors[name].int()),
    "1 not finite": lambda tensors, name: tensors.__setitem__(name, tensors[name] / 0),
}


@pytest.mark.parametrize("fault", list(FAULTS))
@given(data=st.data())
def test_one_fault_in_any_tensor_loads_nothing_and_is_named(fault: str, data: st.DataObject):
    tensors, target = state(SOURCE), TARGET
    name = data.draw(st.sampled_from(list(tensors)))
    FAULTS[fault](tensors, name)
    before = state(target)
    with pytest.raises(WeightsError, match=f"{fault}: {name}"):
        load_weights(target, tensors)
    assert same(state(target), before)


SOURCE, TARGET = built(seed=1), built(seed=2)


def test_a_network_of_another_name_altogether_is_refused_with_counts():
    # A whole training state read as if it were weights once loaded nothing and said nothing.
    with pytest.raises(WeightsError) as error:
        load_weights(built(), state(built(UNetConfig(features=(2, 2, 2, 2, 2, 2)))))
    lines = str(error.value).splitlines()
    assert lines[0] == "The weights do not fit the network:"
    assert lines[1].startswith(f"  {len(state(built()))} missing: encoder.stem.convs.0.conv.weight")
    assert " unknown: conv_0." in lines[2]
    assert lines[2].endswith("…")


def test_accounting_alone_changes_nothing():
    target = built(seed=2)
    before = state(target)
    accounting = account(target, {"odd": torch.ones(1)})
    assert accounting.share == 0
    assert [refusal for refusal in accounting.refused if refusal.reason == "unknown"]
    assert same(state(target), before)


def test_too_small_a_share_of_the_encoder_loads_nothing():
    target = built(seed=2)
    before = state(target)
    with pytest.raises(WeightsError, match=r"Only .* % of the encoder's parameters .* 90 %"):
        load_weights(
            target, state(built(seed=1)), new=("encoder.stages.", "decoder."), expected_share=0.9
        )
    assert same(state(target), before)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_the_prefix_of_a_wrapper_comes_off_and_that_is_said(prefix: str):
    source, target = built(seed=1), built(seed=2)
    wrapped = {f"{prefix}{name}": tensor for name, tensor in state(source).items()}
    accounting = load_weights(target, wrapped)
    assert same(state(target), state(source))
    assert f"'{prefix}' taken off every name" in str(accounting)


def test_a_prefix_on_some_names_only_is_not_taken_off():
    tensors = state(built())
    tensors["module.odd"] = torch.ones(1)
    with pytest.raises(WeightsError, match=r"1 unknown: module\.odd"):
        load_weights(built(), tensors)


def test_a_plain_network_is_accounted_for_as_a_whole():
    torch.manual_seed(0)
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    accounting = load_weights(target, source.state_dict())
    assert torch.equal(target.weight, source.weight)
    assert str(accounting) == "2 of 2 tensors, 100 % of the network (0.0 M of 0.0 M parameters)"


def test_tables_of_indices_may_be_left_out_but_not_running_means():
    norm = nn.BatchNorm1d(2)
    tensors = norm.state_dict()
    del tensors["num_batches_tracked"]
    load_weights(norm, tensors)
    del tensors["running_mean"]
    with pytest.raises(WeightsError, match="1 missing: running_mean"):
        load_weights(norm, tensors)


def test_half_precision_is_loaded_into_single():
    target = nn.Linear(2, 3)
    load_weights(target, {"weight": torch.ones(3, 2).half(), "bias": torch.ones(3).bfloat16()})
    assert target.weight.dtype == torch.float32
    assert torch.equal(target.weight, torch.ones(3, 2))


# --- from run to run --------------------------------------------------------------------------


def test_a_run_becomes_its_backbone_again(tmp_path: Path):
    config = SwinUNETRConfig(feature_size=12, depths=(1, 1, 1, 1))
    backbone = built(config)
    exported(tmp_path, backbone, trained=("encoder", "decoder", "head"))
    again = load_backbone(tmp_path)
    assert again.config == config
    assert again.out_channels == 2
    assert same(state(again), state(backbone))


def test_loading_neither_depends_on_nor_changes_the_state_of_chance(tmp_path: Path):
    exported(tmp_path)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = load_backbone(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(state(one), state(load_backbone(tmp_path)))


def test_load_gives_the_librarys_network_and_says_what_is_random(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    backbone = built()
    exported(tmp_path, backbone)
    with caplog.at_level(logging.WARNING):
        network = voco.load(str(tmp_path))
    assert type(network) is type(backbone.network)
    assert "100 % of the encoder" in caplog.text
    assert "new: decoder." in caplog.text
    caplog.clear()
    exported(tmp_path, backbone, trained=("encoder", "decoder", "head"))
    load(tmp_path)
    assert not caplog.text


def test_fine_tuning_starts_from_what_was_trained(tmp_path: Path):
    source, target = built(seed=1), built(seed=2, out_channels=5)
    exported(tmp_path, source)
    before = state(target)
    accounting = transfer(target, tmp_path)
    assert accounting.share == 1.0
    for name, tensor in state(target).items():
        origin = state(source) if name.startswith("encoder.") else before
        assert torch.equal(tensor, origin[name])


def test_a_trained_head_is_left_behind_unless_asked_for(tmp_path: Path):
    source, target = built(seed=1), built(seed=2)
    exported(tmp_path, source, trained=("encoder", "decoder", "head"))
    transfer(target, tmp_path)
    head = "decoder.seg_layers.0.bias"
    weight = "decoder.seg_layers.0.weight"
    assert not torch.equal(state(target)[weight], state(source)[weight])
    assert torch.equal(
        state(target)["decoder.transpconvs.0.weight"],
        state(source)["decoder.transpconvs.0.weight"],
    )
    transfer(target, tmp_path, fresh=())
    assert torch.equal(state(target)[weight], state(source)[weight])
    assert head in state(target)


def test_a_bare_file_has_trained_the_parts_that_it_holds(tmp_path: Path):
    source, target = built(seed=1), built(seed=2)
    encoder = {f"module.{n}": t for n, t in state(source).items() if n.startswith("encoder.")}
    save_file(encoder, tmp_path / "bare.safetensors")
    accounting = transfer(target, tmp_path / "bare.safetensors")
    assert accounting.share == 1.0
    assert all(name.startswith("decoder.") for name in accounting.new)


def test_a_bare_file_with_half_an_encoder_is_refused(tmp_path: Path):
    half = {n: t for n, t in state(built()).items() if n.startswith("encoder.stem.")}
    save_file(half, tmp_path / "bare.safetensors")
    with pytest.raises(WeightsError, match=r"missing: encoder\.stages\."):
        transfer(built(), tmp_path / "bare.safetensors")


def test_a_file_that_has_nothing_of_the_encoder_is_refused(tmp_path: Path):
    save_file({"decoder.seg_layers.0.bias": torch.ones(2)}, tmp_path / "bare.safetensors")
    with pytest.raises(WeightsError, match="Only 0 %"):
        transfer(built(), tmp_path / "bare.safetensors")


def test_weights_of_another_backbone_are_refused_by_setting(tmp_path: Path):
    exported(tmp_path)
    other = built(ResEncUNetConfig(features=(2, 4), blocks=(1, 2)))
    with pytest.raises(WeightsError, match=r"blocks is \(1, 1\), asked for is \(1, 2\)"):
        transfer(other, tmp_path)


def test_settings_without_a_trace_in_the_shapes_are_compared_too(tmp_path: Path):
    config = UNETRConfig(size=(32, 32, 32), feature_size=2, hidden_size=4, mlp_dim=4, num_heads=2)
    exported(tmp_path, built(config))
    with pytest.raises(WeightsError, match="num_heads is 2, asked for is 4"):
        transfer(built(config.model_copy(update={"num_heads": 4})), tmp_path)
    transfer(built(config.model_copy(update={"dropout_rate": 0.1})), tmp_path)


def test_a_method_that_trains_tokens_only_hands_on_tokens_only(tmp_path: Path):
    config = UNETRConfig(size=(32, 32, 32), feature_size=2, hidden_size=4, mlp_dim=4, num_heads=2)
    exported(tmp_path, built(config, seed=1), trained=("tokens",))
    assert all(name.startswith("vit.") for name in read_tensors(tmp_path))
    accounting = transfer(built(config, seed=2), tmp_path, expected_share=1.0)
    assert {name.split(".")[0] for name in accounting.new} >= {"encoder1", "encoder4", "decoder5"}
    # What it says it trained is all there: of the encoder it would be less.
    assert (accounting.part, accounting.share) == ("transformer", 1.0)
    new = ("encoder", "decoder", "out")
    whole = account(built(config), read_tensors(tmp_path), new=new)
    assert whole.part == "encoder"
    assert 0.5 < whole.share < 1


def test_the_digest_in_the_handover_is_that_of_the_file(tmp_path: Path):
    handover = exported(tmp_path)
    content = (tmp_path / "weights.safetensors").read_bytes()
    assert handover.weights_sha256 == hashlib.sha256(content).hexdigest()
