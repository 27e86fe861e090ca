"""The command line, in process: what it prints, and its exit statuses."""

import subprocess
import sys

import pytest
import torch
import yaml

from voco.cli import COMMANDS, DONE, INCOMPLETE, USAGE, main

TAKE_A_RECIPE = {"pretrain", "finetune", "compare"}
"""Their help shows a recipe's settings, so it needs one."""


def test_help_names_every_command(capsys):
    assert main(["--help"]) == DONE
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)


def test_no_command_is_wrong_usage_and_shows_the_commands(capsys):
    assert main([]) == USAGE
    assert "prepare" in capsys.readouterr().out


def test_a_misspelt_command_gets_the_nearest_one(capsys):
    assert main(["pretrian"]) == USAGE
    assert "Did you mean 'pretrain'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", [n for n in COMMANDS if n not in TAKE_A_RECIPE])
def test_every_command_has_help(name, capsys):
    assert main([name, "--help"]) == DONE
    assert "usage: voco" in capsys.readouterr().out


def test_help_is_light():
    code = "import sys, voco.cli; voco.cli.main(['--help']); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "False"


def test_a_missing_recipe_lists_those_that_come_along(capsys):
    assert main(["pretrain"]) == USAGE
    assert "smoke" in capsys.readouterr().err


def test_an_unknown_recipe_gets_the_nearest_one(capsys):
    assert main(["pretrain", "smokee"]) == USAGE
    assert "Did you mean 'smoke'?" in capsys.readouterr().err


def test_help_after_a_recipe_shows_its_own_settings(capsys):
    assert main(["pretrain", "smoke", "--help"]) == DONE
    printed = capsys.readouterr().out
    assert "--method.variant" in printed
    assert "(default: 30)" in printed


def test_an_unknown_key_in_a_recipe_gets_the_nearest_one(tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        yaml.safe_dump({"method": {"name": "voco"}, "backbone": {"name": "unet"}, "step": 3})
    )
    assert main(["pretrain", str(recipe), "--data", "s", "--out", "o"]) == USAGE
    assert "unknown key 'step'; did you mean 'steps'?" in capsys.readouterr().err


def test_a_value_out_of_range_names_the_flag(capsys):
    words = ["pretrain", "smoke", "--data", "s", "--out", "o", "--steps", "-1"]
    assert main(words) == USAGE
    assert "--steps: Input should be greater than 0 (got -1)" in capsys.readouterr().err


def test_an_unknown_flag_is_named_in_plain_words_and_gets_the_nearest_one(capsys):
    words = ["pretrain", "smoke", "--data", "s", "--out", "o", "--stps", "4"]
    assert main(words) == USAGE
    said = capsys.readouterr().err
    assert said.startswith("voco: Unrecognized options: --stps")
    assert "Perhaps you meant: --steps" in said
    assert "│" not in said


def test_what_must_be_given_is_named(capsys):
    assert main(["pretrain", "smoke"]) == USAGE
    said = capsys.readouterr().err
    assert "--data" in said
    assert "--out" in said
    assert main(["prepare", "--help"]) == DONE
    assert "(default: )" not in capsys.readouterr().out


def test_help_of_settings_is_plain_text_in_whole_lines(capsys):
    assert main(["pretrain", "smoke", "--help"]) == DONE
    printed = capsys.readouterr().out
    assert "``" not in printed
    assert "looked at: health figures on them" in " ".join(printed.replace("│", "").split())


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m voco pretrain smoke --help | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: voco pretrain smoke")
    assert done.stderr == ""


def test_a_folder_that_is_no_store_says_how_to_make_one(tmp_path, capsys):
    words = ["pretrain", "smoke", "--data", str(tmp_path), "--out", str(tmp_path / "run")]
    assert main(words) == INCOMPLETE
    printed = capsys.readouterr().err
    assert "voco prepare" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("shard", ["3", "0/4", "5/4", "a/b"])
def test_a_shard_out_of_range_is_wrong_usage(shard, tmp_path, capsys):
    words = ["prepare", str(tmp_path), "--out", str(tmp_path / "s"), "--shard", shard]
    assert main(words) == USAGE
    assert "i/n" in capsys.readouterr().err


def test_a_gpu_without_memory_is_no_fault_of_the_program_and_the_way_out_is_named(
    monkeypatch, capsys
):
    def full(_words):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setitem(COMMANDS, "pretrain", ("", full))
    assert main(["pretrain"]) == INCOMPLETE
    said = capsys.readouterr().err
    assert "(CUDA out of memory. Tried to allocate 2.00 GiB). Set a smaller batch_size" in said
    assert "report it" not in said


def test_keys_of_a_comparison_are_options_and_help_lists_them(capsys):
    assert main(["compare", "compare-smoke", "--help"]) == DONE
    printed = capsys.readouterr().out
    assert "--dry_run" in printed
    assert "--pretraining_seed\n" in printed
    words = ["compare", "compare-smoke", "--out", "nowhere", "--dry_run", "--labels", "[3, 5, 9]"]
    assert main([*words, "--seeds=7", "--handover", "encoder"]) == DONE
    printed = capsys.readouterr().out
    assert "scratch  unet  none               3 jobs: 3 waiting" in printed
    assert "full" not in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seeds", "[1"], "--seeds: not a value as YAML has it"),
        (["--seeds"], "--seeds: a value is missing"),
        (["--pretraining.stpes", "3"], "unknown key 'methods.voco.stpes'; did you mean 'steps'"),
        (["--seed", "3"], "seed"),
    ],
)
def test_a_wrong_key_of_a_comparison_is_named(words, said, capsys):
    assert main(["compare", "compare-smoke", "--out", "nowhere", *words]) == USAGE
    assert said in " ".join(capsys.readouterr().err.split())
