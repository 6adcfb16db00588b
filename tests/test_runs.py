from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import hyperlens as hl
from hyperlens.errors import ArtefactError, InputError
from hyperlens.runs import find_trends, group_effort
from hyperlens.tasks import GRADED


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model = hl.load_model("reference")
    return hl.run_study(model, hl.Study(limit=12, levels=(1, 3), focal_depths=(0, 2)), tmp_path_factory.mktemp("run") / "study")


def test_each_task_and_level_is_a_group_with_an_interval_around_its_mean(run):
    cells = [(group["task"], group["level"]) for group in run.groups]
    assert cells == [(task, level) for task in GRADED for level in (1, 3)]
    for group in run.groups:
        assert group["n"] == 12 and 0 <= group["accuracy"] <= 1 and 0 < group["confidence"] <= 1
        assert group["correct"]["n"] == round(12 * group["accuracy"])
        for depth in ("0", "2"):
            effort = group["effort"][depth]
            assert 0 <= effort["low"] <= effort["mean"] <= effort["high"] <= 1
            for measure in ("struggle", "commit"):
                layers = group[measure][depth]
                assert 0 <= layers["low"] <= layers["mean"] <= layers["high"] <= 16


def test_each_task_and_depth_has_a_trend(run):
    assert [(trend["task"], trend["depth"]) for trend in run.trends] == [(task, depth) for task in GRADED for depth in (0, 2)]
    for trend in run.trends:
        for row in (trend, *trend["partial"].values(), trend["matched"]["length"]):
            assert -1 <= row["low"] <= row["rho"] <= row["high"] <= 1 and row["n"] <= 24
        assert set(trend["partial"]) == {"confidence", "length", "both"} and set(trend["matched"]) == {"confidence", "length"}


def test_each_task_has_a_depth_that_was_chosen_with_labels_and_measured_on_other_samples(run):
    assert [choice["task"] for choice in run.choices] == list(GRADED)
    for choice in run.choices:
        assert choice["chosen"] in (0, 2) and set(choice["calibration"]) == {"0", "2"}
        assert choice["calibration"][str(choice["chosen"])] == max(choice["calibration"].values())
        assert choice["held_out"]["n"] == choice["logit"]["n"] == 12


def test_a_sweep_reads_all_depths_and_tables_show_the_chosen_one_beside_the_logit_lens(tmp_path):
    study = hl.Study(tasks=("knowledge:plain",), levels=(1,), limit=8, focal_depths="sweep")
    run = hl.run_study(hl.load_model("reference"), study, tmp_path / "sweep")
    assert run.manifest["lens"]["focal_depths"] == [0, 1, 2, 4, 8]
    assert len(run.headline_depths) == 2 and run.headline_depths[0] == 0
    assert {run.manifest["lens"]["auto"]["chosen"], 0} <= set(run.headline_depths)
    assert [group["task"] for group in run.groups] == ["knowledge:plain"] and run.trends == [] == run.choices


def test_a_run_is_read_again_without_torch_and_groups_to_the_same(run):
    script = """
        import json, sys
        import hyperlens as hl
        from hyperlens.runs import choose_depths, find_trends, group_effort
        run = hl.open_run(sys.argv[1])
        assert group_effort(run.trajectory) == run.groups and find_trends(run.trajectory) == run.trends
        assert choose_depths(run.trajectory) == run.choices
        assert "torch" not in sys.modules
        print(json.dumps(run.groups))
    """
    lines = "\n".join(line.strip() for line in script.strip().splitlines())
    done = subprocess.run([sys.executable, "-c", lines, str(run.folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == run.groups


def test_the_manifest_says_how_the_run_came_to_be(run):
    manifest = run.manifest
    assert manifest["kind"] == "study" and manifest["seed"] == 0 and manifest["study"]["limit"] == 12
    assert manifest["positions"] == "answer" and manifest["reference"] == "output" and manifest["smallest"] == 0
    assert len(manifest["model"]["fingerprint"]) == 64 and manifest["model"]["certificate"]["certified"]
    assert manifest["lens"] == {"name": "hyper", "focal_depths": [0, 2], "context": "jump", "auto": None}
    assert manifest["largest_error_in_run"] <= 1e-5
    assert {"hyperlens", "torch", "transformers", "numpy", "python"} <= set(manifest["versions"])


def test_the_reference_model_answers_what_it_was_trained_for():
    samples = [sample for task in GRADED.values() for sample in task.samples(60, 1, levels=(1, 2, 3))]
    trajectory = hl.trace(hl.load_model("reference"), samples, hl.LogitLens(), reference="output")
    groups = {(group["task"], group["level"]): group["accuracy"] for group in group_effort(trajectory)}
    assert min(groups.values()) >= 0.95, groups
    assert not any(np.isnan(trend["rho"]) for trend in find_trends(trajectory))


def test_the_same_task_and_level_are_measured_once():
    study = hl.Study(tasks=("logic", "logic:matched", "logic"), levels=(3, 1, 3), limit=2)
    assert study.tasks == ("logic",) and study.levels == (1, 3) and len(study.draw_samples()) == 4


def test_groups_come_in_the_order_of_tasks_and_levels(tmp_path):
    own = tuple(hl.Sample("Ada's friend is", " Ben", task=task, level=level) for task, level in (("b", 2), ("a", 1), ("b", 1)))
    run = hl.run_study(hl.load_model("reference"), hl.Study(samples=own, focal_depths=(0,)), tmp_path / "run")
    assert [(group["task"], group["level"]) for group in run.groups] == [("b", 1), ("b", 2), ("a", 1)]


def test_a_run_of_an_older_version_is_refused(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "old")
    (folder / "results.json").write_text('{"groups": [], "trends": []}')
    with pytest.raises(ArtefactError, match="written by another version, without choices; run the study again"):
        hl.open_run(folder)
    (folder / "results.json").write_text("{")
    with pytest.raises(ArtefactError, match=r"results.json cannot be read"):
        hl.open_run(folder)


def test_own_samples_need_answers_and_may_have_no_level(tmp_path):
    model = hl.load_model("reference")
    own = (hl.Sample("Ada's friend is", " Ben", task="mine"), hl.Sample("Ben's boss is", " Ada", task="mine"))
    run = hl.run_study(model, hl.Study(samples=own, focal_depths=(0,)), tmp_path / "own")
    assert [(group["task"], group["level"], group["n"]) for group in run.groups] == [("mine", None, 2)] and run.trends == []
    with pytest.raises(InputError, match=r"sample 2 .* has no target"):
        hl.run_study(model, hl.Study(samples=(own[0], hl.Sample("Hm"))), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_study_of_nothing_there_is_refused(tmp_path):
    with pytest.raises(InputError, match='there is no task "chess"; choose from mathematics, code, logic, knowledge'):
        hl.Study(tasks=("chess",))
    with pytest.raises(InputError, match="no level 9; choose from 1, 2, 3, 4, 5"):
        hl.Study(levels=(1, 9))
    with pytest.raises(InputError, match="limit is 0"):
        hl.Study(limit=0)
    trajectory = hl.trace(hl.load_model("reference"), "Ada's friend is", hl.LogitLens())
    with pytest.raises(ArtefactError, match="not a study"):
        hl.open_run(trajectory.save(tmp_path / "t"))
