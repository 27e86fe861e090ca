"""`voco inspect`: what it prints, and its exit statuses."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_weights import built, exported, state

import voco
from voco.backbones.resenc_unet import repeated_names
from voco.cli import DONE, INCOMPLETE, USAGE, main
from voco.errors import UsageError


@pytest.fixture
def published(tmp_path: Path) -> Path:
    file = tmp_path / "openmind.pth"
    content = {"network_weights": repeated_names(state(built())), "current_epoch": 7}
    torch.save(content, file)
    return file


def test_a_published_file_is_described_in_words(
    published: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["inspect", str(published)]) == DONE
    printed = capsys.readouterr().out
    assert "residual encoder U-Net of nnU-Net, nnssl or OpenMind" in printed
    assert "under 'network_weights'" in printed
    assert "current_epoch 7" in printed
    assert "--backbone.name resenc_unet --backbone.features 2 4 --backbone.blocks 1 1" in printed
    assert "100 % of the encoder" in printed


def test_programs_get_json(published: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(published), "--json"]) == DONE
    found = json.loads(capsys.readouterr().out)
    assert found["layout"] == "resenc"
    assert found["fits"][0]["share"] == 1.0


def test_a_run_of_ours_shows_how_it_was_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    exported(tmp_path)
    assert main(["inspect", str(tmp_path)]) == DONE
    printed = capsys.readouterr().out
    for fact in ("voco", "30, seed 5", "24 cases", "1.5 x 1.5 x 2.0 mm", "low -100", "encoder"):
        assert fact in printed


def test_a_weight_file_of_ours_is_known_without_its_handover(tmp_path: Path):
    exported(tmp_path)
    file = (tmp_path / "weights.safetensors").rename(tmp_path / "sent.safetensors")
    found = voco.inspect(file)
    assert (found.kind, found.backbone, found.fits[0].fits) == ("ours", "resenc_unet", True)
    assert type(voco.load(file)) is type(built().network)


def test_a_backbone_that_does_not_fit_gives_status_1(
    published: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["inspect", str(published), "--against", "unet", "unetr"]) == INCOMPLETE
    assert "not unetr: the file is of 'resenc_unet'" in capsys.readouterr().out
    assert main(["inspect", str(published), "--against", "unet", "resenc_unet"]) == DONE


def test_an_unknown_layout_gives_status_1_only_if_a_backbone_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    save_file({"fc.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    assert main(["inspect", str(tmp_path / "a.safetensors")]) == DONE
    assert "a layout that is not known" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "a.safetensors"), "--against", "unet"]) == INCOMPLETE


def test_a_backbone_that_is_not_there_is_wrong_usage(published: Path):
    with pytest.raises(UsageError, match=r"no backbone 'vit'\. The backbones are: swin_unetr"):
        voco.inspect(published, ["vit"])
    assert main(["inspect", str(published), "--against", "vit"]) == USAGE


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(tmp_path / "none.pt")]) == INCOMPLETE
    assert "none.pt: no such file" in capsys.readouterr().err
