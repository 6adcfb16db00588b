"""What a run holds: each sample measured once, as `trace` reads it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
from studied import OWN, STUDY, TASKS, ask
from transformers import PreTrainedTokenizerFast

import hyperlens as hl
from hyperlens.errors import HyperLensWarning, InputError, ModelError
from hyperlens.tasks import GRADED, draw_task


@pytest.fixture(scope="module")
def run(reference, tmp_path_factory):
    return hl.run_study(STUDY, tmp_path_factory.mktemp("run") / "two", {"reference": reference})


def test_each_sample_of_each_task_is_measured_once(run):
    samples = run.samples()
    assert len(samples) == 2 * 12 + 2 * 6 and not samples.duplicated(["model", "lens", "task", "sample"]).any()
    assert {"effort@0", "effort@2", "commit@2", "struggle@0", "confidence", "correct", "tokens", "read"} <= set(samples)
    assert samples.groupby(["task", "level"], observed=True).size().tolist() == [12, 12, 6, 6]
    assert run.results["drawn"] == {"logic": 24, "knowledge:plain": 12} and run.results["skipped"]["samples"] == 0


def test_what_a_run_holds_is_what_trace_reads(run, reference):
    drawn = draw_task(TASKS[0], 12, 0)
    traced = hl.trace(reference, drawn.samples, hl.HyperLens((0, 2)), reference="output")
    kept = run.trajectory("logic")
    assert kept.samples["id"].tolist() == [sample.id for sample in drawn.samples]
    assert kept.samples["text"].tolist() == traced.samples["text"].tolist()
    np.testing.assert_allclose(kept.to_numpy(), traced.to_numpy(), atol=1e-5)
    assert (kept.data["token_text"].values == traced.data["token_text"].values).all()
    assert kept.samples["correct"].tolist() == traced.samples["correct"].tolist()
    pooled = hl.pool_effort(kept)["mean"].values
    mine = run.samples().query("task == 'logic'")
    np.testing.assert_allclose(mine[["effort@0", "effort@2"]].to_numpy(), pooled, atol=1e-12)


def test_the_groups_are_those_of_the_samples(run):
    assert [(group["task"], group["level"], group["n"]) for group in run.results["groups"]] == [
        ("logic", 1, 12),
        ("logic", 3, 12),
        ("knowledge:plain", 1, 6),
        ("knowledge:plain", 2, 6),
    ]
    samples = run.samples()
    for group in run.results["groups"]:
        mine = samples[(samples["task"] == group["task"]) & (samples["level"] == group["level"])]
        assert group["effort"]["2"]["mean"] == pytest.approx(mine["effort@2"].mean(), abs=1e-12)
        assert group["accuracy"] == pytest.approx(mine["correct"].astype(float).mean())


def test_a_run_is_read_without_torch_by_numpy_pandas_xarray_polars_and_duckdb(run):
    script = """
        import sys
        import hyperlens as hl
        run = hl.open_run(sys.argv[1])
        whole = run.trajectory()
        assert whole.to_numpy().shape == (36, 2, 17) and whole.data.sizes["token"] == 36
        assert len(run.samples(texts=True)["prompt"].unique()) == 36
        rows = run.query("select task, count(*) n, avg(\\"effort@2\\") e from samples group by task order by task").fetchall()
        assert [(task, count) for task, count, _ in rows] == [("knowledge:plain", 12), ("logic", 24)]
        assert run.query("select count(*) from tokens").fetchall() == [(36,)]
        assert run.scan().collect().shape[0] == 36 and run.scan("samples").collect().shape[0] == 36
        assert "torch" not in sys.modules and "transformers" not in sys.modules
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), str(run.folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_run_says_how_it_came_to_be(run, reference):
    manifest, model = run.manifest, run.models["reference"]
    assert manifest["kind"] == "study" and manifest["study"] == STUDY.describe()
    assert {"hyperlens", "torch", "transformers", "numpy"} <= set(manifest["versions"])
    assert model["fingerprint"] == reference.fingerprint and model["certificate"]["certified"] and model["layers"] == 16
    assert model["lenses"]["jump"]["focal_depths"] == [0, 2] and run.results["largest_error"] <= 1e-5
    entries = [json.loads(file.read_text()) for file in run.folder.glob("shards/*/*.json")]
    assert sum(entry["samples"] for entry in entries) == 36 and all(len(entry["files"]["tokens"]) == 64 for entry in entries)


def test_a_depth_chosen_by_resolution_is_chosen_once_for_all_tasks(reference, tmp_path):
    study = hl.Study(tasks=TASKS, limit=4, lenses=(hl.LensSpec(), hl.LensSpec("every", "sweep", "cached")))
    run = hl.run_study(study, tmp_path / "run", {"reference": reference})
    lenses = run.models["reference"]["lenses"]
    auto = lenses["jump"]["auto"]
    assert lenses["jump"]["focal_depths"] == auto["beside"] and auto["positions"] == 64 and 0 in auto["beside"]
    assert lenses["every"]["focal_depths"] == [0, 1, 2, 4, 8]
    assert {group["lens"] for group in run.results["groups"]} == {"jump", "every"}
    assert run.trajectory(lens="every").focal_depths == (0, 1, 2, 4, 8)
    with pytest.raises(InputError, match="this run has 2 lenses; choose from jump, every"):
        run.trajectory()


def test_the_reference_model_answers_what_it_was_trained_for(reference, tmp_path):
    study = hl.Study(tasks=tuple(hl.TaskSpec(name, levels=(1, 2, 3)) for name in GRADED), lenses=OWN.lenses, limit=60, seed=1)
    run = hl.run_study(study, tmp_path / "run", {"reference": reference})
    accuracies = {(group["task"], group["level"]): group["accuracy"] for group in run.results["groups"]}
    assert min(accuracies.values()) >= 0.95, accuracies
    assert not any(trend["rho"] is None for trend in run.results["trends"])


def test_groups_come_in_the_order_of_tasks_and_levels(reference, tmp_path):
    pairs = (("b", 2), ("a", 1), ("b", 1))
    samples = [hl.Sample("Ada's friend is", " Ben", task=task, level=level) for task, level in pairs]
    run = hl.run_study(OWN, tmp_path / "run", {"reference": reference}, {"mine": samples})
    assert [(group["task"], group["level"]) for group in run.results["groups"]] == [("b", 1), ("b", 2), ("a", 1)]


def test_tasks_that_are_read_in_different_ways_are_not_joined(reference, tmp_path):
    study = hl.Study(
        tasks=(hl.TaskSpec("logic", levels=(1,)), hl.TaskSpec("code", levels=(1,), read="generated")),
        lenses=OWN.lenses,
        limit=2,
    )
    run = hl.run_study(study, tmp_path / "run", {"reference": reference})
    with pytest.raises(InputError, match="were read in different ways"):
        run.trajectory()
    assert len(run.trajectory("code").samples) == 2


def test_an_answer_keeps_the_token_that_ends_it_and_begins_what_stops_it(reference, monkeypatch):
    from hyperlens.tracing.labels import cut_answer
    from hyperlens.tracing.traces import _find_stop

    pieces = ("Q", "so", " {5", "}\n\n", "And")
    tokenizer = SimpleNamespace(decode=lambda ids: "".join(pieces[number] for number in ids))
    monkeypatch.setattr(PreTrainedTokenizerFast, "decode", lambda self, ids: tokenizer.decode(ids))
    assert _find_stop(reference, [0, 1, 2, 3, 4], 1, ("\n\n",)) == 4 and cut_answer("so {5}\n\nAnd", ("\n\n",)) == "so {5}"
    assert _find_stop(reference, [0, 1, 2, 3, 4], 1, ("so",)) == 2 and _find_stop(reference, [0, 1, 2], 1, ("x",)) == 3


def test_an_answer_that_has_no_room_is_left_out(reference, tmp_path):
    task = hl.TaskSpec("mine", read="generated", max_new_tokens=4)
    study = hl.Study("own", tasks=(task,), lenses=OWN.lenses)
    samples = ask(("Ada " * 254 + "is", " Ben"), ("Ada's boss is", " Ben"))
    run = hl.run_study(study, tmp_path / "run", {"reference": reference}, {"mine": samples})
    assert len(run.samples()) == 1 and "leaves no room for 4 more in 256" in run.results["skipped"]["first"][0]["reason"]


def test_samples_without_answers_are_left_out_counted_and_listed(reference, tmp_path):
    samples = ask(("Ada's friend is", " Ben"), ("Ben's boss is", None), ("Cleo's boss is", " Ada"))
    run = hl.run_study(OWN, tmp_path / "run", {"reference": reference}, {"mine": samples})
    assert run.results["drawn"] == {"mine": 2} and run.results["skipped"]["rows"] == 1
    assert run.results["skipped"]["first"][0]["reason"] == "without an answer"
    assert [(group["task"], group["level"], group["n"]) for group in run.results["groups"]] == [("mine", None, 2)]
    with pytest.raises(InputError, match='"mine" is an empty data set: none of the 1 rows'):
        hl.run_study(OWN, tmp_path / "none", {"reference": reference}, {"mine": samples[1:2]})
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("policy", ["skip", "truncate"])
def test_texts_longer_than_the_context_are_left_out_or_cut_and_counted(reference, tmp_path, policy):
    long = "Ada's friend is Ben . " * 100
    samples = ask(("Ada's friend is", " Ben"), (long + "Cleo's boss is", " Ada"))
    study = hl.Study("own", tasks=OWN.tasks, lenses=OWN.lenses, too_long=policy)
    run = hl.run_study(study, tmp_path / "run", {"reference": reference}, {"mine": samples})
    rows = run.samples()
    if policy == "skip":
        assert len(rows) == 1 and run.results["skipped"]["samples"] == 1 and run.results["cut"] == 0
        assert "this model's context holds 256" in run.results["skipped"]["first"][0]["reason"]
    else:
        assert rows["tokens"].tolist()[1] == 256 and rows["cut"].tolist()[0] == 0 and rows["cut"].tolist()[1] > 0
        assert run.results["cut"] == 1 and run.results["skipped"]["samples"] == 0


def test_the_models_own_answers_are_read_and_graded(reference, tmp_path):
    study = hl.Study(
        tasks=(hl.TaskSpec("logic", levels=(1,), read="generated", max_new_tokens=6), hl.TaskSpec("knowledge", levels=(1,))),
        lenses=OWN.lenses,
        limit=5,
    )
    run = hl.run_study(study, tmp_path / "run", {"reference": reference})
    rows = run.samples(texts=True)
    mine = rows[rows["task"] == "logic"]
    for said, target, right in zip(mine["generated"], mine["target"], mine["correct"], strict=True):
        assert bool(right) == (said.split()[: len(target.split())] == target.split())
    assert mine["correct"].astype(float).mean() >= 0.8 and rows[rows["task"] == "knowledge"]["generated"].isna().all()


def test_solved_examples_stand_before_the_prompt(reference, tmp_path):
    study = hl.Study(tasks=(hl.TaskSpec("knowledge", levels=(1,), few_shot=2),), lenses=OWN.lenses, limit=3)
    run = hl.run_study(study, tmp_path / "run", {"reference": reference})
    alone = hl.run_study(
        hl.Study(tasks=(hl.TaskSpec("knowledge", levels=(1,)),), lenses=OWN.lenses, limit=3),
        tmp_path / "alone",
        {"reference": reference},
    )
    assert (run.samples()["tokens"] > 1.5 * alone.samples()["tokens"]).all()


def test_a_chat_template_is_what_the_model_reads(plain):
    turns = "{% for turn in messages %}<{{ turn.role }}> {{ turn.content }} {% endfor %}"
    template = turns + "{% if add_generation_prompt %}<assistant> {% endif %}"
    sample = hl.Sample("w15 w16", " w17", shots=(("w11 w12", " w13"),), chat=True)
    with pytest.raises(InputError, match="has no chat template"):
        hl.trace(plain, sample, hl.LogitLens())
    plain.tokenizer.chat_template = template
    try:
        read = hl.trace(plain, sample, hl.LogitLens())
    finally:
        plain.tokenizer.chat_template = None
    assert read.samples["text"].tolist() == ["<user> w11 w12 <assistant> w13 <user> w15 w16 <assistant> w17"]
    assert read.data["reference_text"].values.tolist() == ["w17"]


def test_a_model_that_cannot_be_measured_does_not_stop_the_others(reference, tmp_path):
    study = hl.Study(
        models=(hl.ModelSpec(str(tmp_path / "none"), "lost"), hl.ModelSpec()), tasks=TASKS[:1], limit=2, lenses=OWN.lenses
    )
    with pytest.warns(HyperLensWarning, match="lost was left out: there is no folder"):
        run = hl.run_study(study, tmp_path / "run", {"reference": reference})
    assert list(run.models) == ["reference"] and "lost" in run.results["refused"] and len(run.samples()) == 4
    alone = hl.Study(models=study.models[:1], tasks=TASKS[:1], limit=2, lenses=OWN.lenses)
    with pytest.raises(ModelError, match="there is no folder"):
        hl.run_study(alone, tmp_path / "alone")


def test_a_batch_that_memory_does_not_suffice_for_is_made_smaller_and_counted(reference, tmp_path, monkeypatch):
    from hyperlens.runs import measure

    real = measure.trace_encoded

    def scarce(model, encoded, lens, positions, name, readings, limits):
        if limits.batch_tokens > 1024:
            raise hl.errors.MemoryLimitError("memory did not suffice")
        return real(model, encoded, lens, positions, name, readings, limits)

    monkeypatch.setattr(measure, "trace_encoded", scarce)
    study = hl.Study(tasks=TASKS[:1], limit=2, lenses=OWN.lenses)
    run = hl.run_study(study, tmp_path / "run", {"reference": reference})
    assert run.results["smaller_batches"] == 1 and len(run.samples()) == 4
    entry = json.loads(next(run.folder.glob("shards/*/*.json")).read_text())
    assert entry["batch_tokens"] == 1024
    monkeypatch.setattr(measure, "SMALLEST_BATCH", 2048)
    with pytest.raises(ModelError, match="memory did not suffice"):
        hl.run_study(study, tmp_path / "other", {"reference": reference})
