import pytest
from handed import pretrained, segmenting

import voco
from voco.cli import main
from voco.errors import UsageError, WeightsError


@pytest.fixture
def run(tmp_path):
    segmenting(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("to", "option", "complaint"),
    [
        ("monai", {"opset": 18}, "--opset says nothing about monai; it is for onnx"),
        ("onnx", {"licence": "mit"}, "--licence says nothing about onnx; it is for huggingface"),
        ("huggingface", {"size": (32, 32, 32)}, "--size says nothing about huggingface"),
    ],
)
def test_an_option_of_another_format_is_refused(run, tmp_path, to, option, complaint):
    with pytest.raises(UsageError, match=complaint):
        voco.export(run, to, tmp_path / "out", **option)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["monai", "huggingface"])
def test_what_is_there_is_not_replaced_unasked(run, tmp_path, to):
    first = voco.export(run, to, tmp_path / "out")
    with pytest.raises(UsageError, match=r"out: exists.*--overwrite"):
        voco.export(run, to, tmp_path / "out")
    assert voco.export(run, to, tmp_path / "out", overwrite=True).files == first.files


def test_a_file_is_not_written_where_a_folder_is(run, tmp_path):
    with pytest.raises(UsageError, match="is a folder; this format is one file"):
        voco.export(run, "nnunet", tmp_path)
    with pytest.raises(UsageError, match="is a file; this format is a folder"):
        voco.export(run, "monai", run / "handover.json")


def test_weights_without_a_handover_are_refused(run, tmp_path):
    (run / "handover.json").unlink()
    with pytest.raises(WeightsError, match=r"has no handover\.json"):
        voco.export(run, "monai", tmp_path / "out")


def test_files_and_notes_are_printed(tmp_path, capsys):
    pretrained(tmp_path / "run")
    out = tmp_path / "bundle"
    assert main(["export", str(tmp_path / "run"), "--to", "monai", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert str(out / "models" / "model.pt") in printed
    assert (
        "note: trained were encoder: nothing was learnt by the decoder and output layer" in printed
    )


def test_an_unknown_format_is_wrong_usage(run, tmp_path, capsys):
    assert main(["export", str(run), "--to", "keras", "--out", str(tmp_path / "k")]) == 2
    assert "monai" in capsys.readouterr().err


def test_a_network_that_the_format_has_not_is_no_wrong_usage(run, tmp_path, capsys):
    assert main(["export", str(run), "--to", "nnunet", "--out", str(tmp_path / "n.pth")]) == 1
    assert "nnU-Net has no network of the kind 'unet'" in capsys.readouterr().err
