from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import hyperlens as hl
from hyperlens.errors import ArtefactError, InputError
from hyperlens.runs import find_trends, group_effort


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model = hl.load_model("reference")
    return hl.run_study(model, hl.Study(limit=12, focal_depths=(0, 2)), tmp_path_factory.mktemp("run") / "study")


def test_each_task_and_level_is_a_group_with_an_interval_around_its_mean(run):
    cells = [(group["task"], group["level"]) for group in run.groups]
    assert cells == [("knowledge", level) for level in (1, 2, 3)] + [("arithmetic", level) for level in (1, 2, 3, 4)]
    for group in run.groups:
        assert group["n"] == 12 and 0 <= group["accuracy"] <= 1 and 0 < group["confidence"] <= 1
        assert group["correct"]["n"] == round(12 * group["accuracy"])
        for depth in ("0", "2"):
            effort = group["effort"][depth]
            assert 0 <= effort["low"] <= effort["mean"] <= effort["high"] <= 1


def test_each_task_and_depth_has_a_trend(run):
    assert [(trend["task"], trend["depth"]) for trend in run.trends] == [
        ("knowledge", 0),
        ("knowledge", 2),
        ("arithmetic", 0),
        ("arithmetic", 2),
    ]
    assert all(-1 <= trend["low"] <= trend["rho"] <= trend["high"] <= 1 for trend in run.trends)


def test_a_run_is_read_again_without_torch_and_groups_to_the_same(run):
    script = """
        import json, sys
        import hyperlens as hl
        from hyperlens.runs import find_trends, group_effort
        run = hl.open_run(sys.argv[1])
        assert group_effort(run.trajectory) == run.groups and find_trends(run.trajectory) == run.trends
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
    samples = [sample for task in hl.Study().tasks for sample in _samples(task)]
    trajectory = hl.trace(hl.load_model("reference"), samples, hl.LogitLens(), reference="output")
    groups = {(group["task"], group["level"]): group["accuracy"] for group in group_effort(trajectory)}
    for cell in (("knowledge", 1), ("knowledge", 2), ("arithmetic", 1)):
        assert groups[cell] >= 0.9, groups
    assert not any(np.isnan(trend["rho"]) for trend in find_trends(trajectory))


def _samples(task):
    from hyperlens.tasks import GRADED

    return GRADED[task].samples(60, 1)


def test_own_samples_need_answers_and_may_have_no_level(tmp_path):
    model = hl.load_model("reference")
    own = (hl.Sample("Ada's friend is", " Ben", task="mine"), hl.Sample("Ben's boss is", " Ada", task="mine"))
    run = hl.run_study(model, hl.Study(samples=own, focal_depths=(0,)), tmp_path / "own")
    assert [(group["task"], group["level"], group["n"]) for group in run.groups] == [("mine", None, 2)] and run.trends == []
    with pytest.raises(InputError, match=r"sample 2 .* has no target"):
        hl.run_study(model, hl.Study(samples=(own[0], hl.Sample("Hm"))), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_study_of_nothing_there_is_refused(tmp_path):
    with pytest.raises(InputError, match='there is no task "chess"; choose from knowledge, arithmetic'):
        hl.Study(tasks=("chess",))
    with pytest.raises(InputError, match="limit is 0"):
        hl.Study(limit=0)
    trajectory = hl.trace(hl.load_model("reference"), "Ada's friend is", hl.LogitLens())
    with pytest.raises(ArtefactError, match="not a study"):
        hl.open_run(trajectory.save(tmp_path / "t"))
