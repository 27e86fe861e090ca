import pytest
from protocols import protocol, raw_protocol

from voco.comparison.plan import Place, plan
from voco.errors import ConfigError


def places(config, kind="finetuning"):
    return {job.place for job in plan(config).jobs if job.kind == kind}


def test_every_row_is_run_with_every_number_of_labels_and_every_seed(tmp_path):
    config = protocol(tmp_path, labels=[1, 2], seeds=[0, 7])
    rows = {("voco", "encoder", "0"), ("fusion", "encoder", "0"), ("fusion", "full", "0")}
    rows.add(("scratch", "none", ""))
    assert places(config) == {
        Place(method, "small", handover, labels, given, seed)
        for method, handover, given in rows
        for labels in ("1", "2")
        for seed in ("0", "7")
    }
    assert len(plan(config).jobs) == 2 + 4 * 2 * 2


def test_a_method_is_pretrained_once_or_with_each_seed(tmp_path):
    once = places(protocol(tmp_path, seeds=[0, 7], pretraining_seed=3), "pretraining")
    assert {place.pretraining_seed for place in once} == {"3"}
    assert len(once) == 2
    config = protocol(tmp_path, seeds=[0, 7], pretraining_seed="each")
    assert {p.pretraining_seed for p in places(config, "pretraining")} == {"0", "7"}
    assert all(p.seed == p.pretraining_seed for p in places(config) if p.method != "scratch")


def test_what_a_job_needs_comes_before_it(tmp_path):
    done = set()
    for job in plan(protocol(tmp_path, seconds=5, pretraining_seed="each")).jobs:
        assert set(job.needs) <= done
        done.add(job.id)


def test_all_rows_share_the_recipe_of_fine_tuning_but_what_they_take_over(tmp_path):
    jobs = [job for job in plan(protocol(tmp_path)).jobs if job.kind == "finetuning"]
    changed = {"transfer", "seed"}
    recipes = {
        job.config.model_copy(update=dict.fromkeys(changed)).model_dump_json() for job in jobs
    }
    assert len(recipes) == 1
    assert {(job.place.handover, job.config.transfer) for job in jobs} == {
        ("encoder", "encoder"),
        ("full", "all"),
        ("none", "all"),
    }


def test_a_method_that_does_not_fit_is_told_with_its_own_reason(tmp_path):
    methods = raw_protocol(tmp_path)["methods"] | {"mae": {"method": {"name": "mae3d"}}}
    planned = plan(protocol(tmp_path, methods=methods))
    ((place, reason),) = planned.misfits
    assert (place.method, place.backbone) == ("mae", "small")
    assert "token" in reason
    assert all(job.place.method != "mae" for job in planned.jobs)


def test_without_a_trained_decoder_there_is_no_full_handover(tmp_path):
    planned = plan(protocol(tmp_path, handover="full"))
    assert {misfit.place.method for misfit in planned.misfits} == {"voco"}
    assert "trains no decoder" in planned.misfits[0].reason


def test_a_network_that_cannot_be_fine_tuned_is_refused(tmp_path):
    backbones = {"deep": {"name": "resenc_unet", "features": [4] * 6, "blocks": [1] * 6}}
    with pytest.raises(ConfigError, match="finetuning does not fit the backbone 'deep'"):
        plan(protocol(tmp_path, backbones=backbones))


def test_a_plan_is_a_function_of_the_recipe(tmp_path):
    first, second = (plan(protocol(tmp_path)) for _ in range(2))
    assert first == second
    assert [job.settings for job in first.jobs] == [job.settings for job in second.jobs]
    assert len({job.id for job in first.jobs}) == len(first.jobs)


def test_what_a_result_depends_on_is_in_its_hash_and_nothing_else(tmp_path):
    def settings(**changes):
        return {job.id: job.settings for job in plan(protocol(tmp_path, **changes)).jobs}

    raw = raw_protocol(tmp_path)
    quiet = {"finetuning": raw["finetuning"] | {"log_every": 1, "checkpoint_every": 2}}
    assert settings(**quiet) == settings()
    longer = settings(finetuning=raw["finetuning"] | {"steps": 9})
    changed = {name for name, value in settings().items() if longer[name] != value}
    assert changed == {name for name in longer if name.endswith("finetuning")}
    more = settings(seeds=[0, 1, 2], labels=[2, 3])
    assert settings().items() <= more.items()
