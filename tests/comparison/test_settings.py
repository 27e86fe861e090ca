import pytest
import yaml
from protocols import protocol, raw_protocol

from voco.comparison.settings import ComparisonConfig, merged, read_comparison
from voco.config import parse, read_yaml, to_yaml
from voco.errors import ConfigError


def read(values, **recipes):
    """A recipe that may name others, given as mappings."""

    def find(name):
        file = recipes["folder"] / f"{name}.yaml"
        file.write_text(yaml.safe_dump(recipes[name]))
        return file

    return read_comparison(values, find, "mine.yaml")


def test_a_methods_recipe_is_overruled_by_what_holds_for_all_and_that_by_its_own(tmp_path):
    values = raw_protocol(tmp_path)
    common = values["pretraining"] | {"optimizer": {"lr": 0.02}}
    own = {"recipe": "theirs", "optimizer": {"warmup_steps": 7}}
    theirs = {
        **values["methods"]["voco"],
        "steps": 9,
        "optimizer": {"lr": 0.5, "warmup_steps": 5, "weight_decay": 0.3},
        "backbone": {"name": "unet"},
    }
    values |= {"pretraining": common, "methods": {"a": own, "voco": "theirs"}}
    config = read(values, folder=tmp_path, theirs=theirs)
    optimizer = config.methods["a"].optimizer
    assert (optimizer.lr, optimizer.warmup_steps, optimizer.weight_decay) == (0.02, 7, 0.3)
    assert config.methods["voco"].optimizer.warmup_steps == 5
    assert config.methods["a"].steps == 3
    assert config.methods["a"].backbone.name == "resenc_unet"


def test_the_complete_recipe_reads_as_itself(tmp_path):
    config = protocol(tmp_path)
    (tmp_path / "comparison.yaml").write_text(to_yaml(config))
    values = read_yaml(tmp_path / "comparison.yaml")
    assert read_comparison(values, lambda _: pytest.fail("names a file"), "again") == config
    assert parse(ComparisonConfig, values, "again") == config


def test_settings_that_change_their_kind_leave_the_old_ones_behind():
    base = {"intensity": {"name": "window", "low": 0, "high": 1}, "steps": 1}
    other = {"intensity": {"name": "percentile"}}
    assert merged(base, other) == {"intensity": {"name": "percentile"}, "steps": 1}
    assert merged(base, {"intensity": {"low": -1}})["intensity"]["high"] == 1


def test_one_value_stands_for_a_list(tmp_path):
    config = protocol(tmp_path, labels=5, seeds=3, handover="encoder")
    assert (config.labels, config.seeds, config.handover) == ((5,), (3,), ("encoder",))
    assert config.data == (str(tmp_path),)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"against": "nobody"}, "'nobody' is no row"),
        ({"seeds": [1, 1]}, "given twice"),
        ({"pretraining": {"backbone": {"name": "unet"}}}, "set 'backbones' instead"),
        ({"pretraining": {"seed": 1}}, "set 'pretraining_seed' instead"),
        ({"lables": 3}, "did you mean 'labels'"),
        ({"finetuning": 7}, "finetuning: expected keys and values"),
        ({"labels": 0}, "greater than 0"),
        ({"backbones": {}}, "backbones"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        protocol(tmp_path, **changes)


def test_scratch_is_no_name_for_a_method(tmp_path):
    methods = {"scratch": raw_protocol(tmp_path)["methods"]["voco"]}
    with pytest.raises(ConfigError, match="without pre-training"):
        protocol(tmp_path, methods=methods, against=None)


@pytest.mark.parametrize("key", ["steps", "holdout"])
def test_methods_get_the_same_budget_and_the_same_cases(tmp_path, key):
    values = raw_protocol(tmp_path)
    values["methods"]["voco"][key] = 0.5 if key == "holdout" else 5
    with pytest.raises(ConfigError, match=f"{key} differs .*Set pretraining.{key}"):
        protocol(tmp_path, methods=values["methods"])


def test_seconds_are_a_budget_whatever_the_steps(tmp_path):
    methods = raw_protocol(tmp_path)["methods"]
    methods["voco"]["steps"] = 5
    assert protocol(tmp_path, methods=methods, seconds=60).seconds == 60
