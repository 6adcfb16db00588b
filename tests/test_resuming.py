"""A run that was stopped, killed, damaged or begun by two goes on to the same; what is of another study is left alone."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from studied import OWN, STUDY, TASKS, contents

import hyperlens as hl
from hyperlens.artefact import place_json
from hyperlens.errors import ArtefactError, HyperLensWarning, InputError, ModelError
from hyperlens.models import REFERENCE_FOLDER
from hyperlens.runs.opening import begin, open_store
from hyperlens.runs.store import Store
from hyperlens.tasks import draw_task


@pytest.fixture(scope="module")
def run(reference, tmp_path_factory):
    return hl.run_study(STUDY, tmp_path_factory.mktemp("run") / "two", {"reference": reference})


# going on


def test_the_same_study_is_not_measured_again(run, reference):
    before = {file: file.stat().st_mtime_ns for file in run.folder.rglob("*") if file.is_file()}
    again = hl.run_study(STUDY, run.folder, {"reference": reference})
    after = {file: file.stat().st_mtime_ns for file in run.folder.rglob("*") if file.is_file()}
    assert before == after and again.results == run.results


def test_a_shard_that_is_missing_or_damaged_is_measured_again_to_the_same(run, reference, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "copy")
    expected = contents(folder)
    store = open_store(folder)
    damaged, missing, torn = store.shards[0], store.shards[1], store.shards[2]
    file = store.file(damaged, "tokens")
    file.write_bytes(file.read_bytes()[:-100] + bytes(100))
    store.file(missing, "samples").with_name(f"{missing.number:05d}.json").unlink()
    store.file(torn, "samples").unlink()
    with pytest.warns(HyperLensWarning, match="2 shards were damaged on disk and are measured again .*00000.tokens.parquet"):
        hl.run_study(STUDY, folder, {"reference": reference})
    assert contents(folder) == expected


def test_damage_is_seen_when_a_run_is_read(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "copy")
    file = open_store(folder).file(open_store(folder).shards[0], "tokens")
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 255
    file.write_bytes(data)
    with pytest.raises(ArtefactError, match="cannot be read"):
        hl.open_run(folder).trajectory()


def test_a_run_without_its_marker_is_not_finished(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "copy")
    (folder / "COMPLETE").unlink()
    with pytest.raises(ArtefactError, match="was not finished; give the command that began it again"):
        hl.open_run(folder)


KILLED = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
import hyperlens as hl
from hyperlens.runs import run_study
folder, kills = sys.argv[1], int(sys.argv[2])
tasks, lenses = (hl.TaskSpec("logic"), hl.TaskSpec("code")), (hl.LensSpec(focal_depths=(0, 2)),)
study = hl.Study("killed", tasks=tasks, lenses=lenses, limit=8, shard_samples=2)
models = {"reference": hl.load_model("reference")}
started = time.perf_counter()
run_study(study, folder + "/whole", models)
length = time.perf_counter() - started
rng, killed, runs = random.Random(0), 0, 0
while killed < kills:
    place = f"{folder}/killed{runs}"
    child = os.fork()
    if not child:
        run_study(study, place, models)
        os._exit(0)
    time.sleep(rng.uniform(0.0, 2.2 * length / kills))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):  # it was finished before the kills were: go on with another one
        runs += 1
        continue
    killed += 1
    print(len([name for _, _, names in os.walk(place + "/shards") for name in names if name.endswith(".json")]))
for number in range(runs + 1):
    run_study(study, f"{folder}/killed{number}", models)
"""


@pytest.mark.slow
def test_a_run_killed_at_20_random_moments_is_the_same_to_the_last_digit(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), "20"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    progress = [int(line) for line in done.stdout.split()]
    assert len(progress) == 20 and max(progress) > 10, progress
    for place in tmp_path.glob("killed*"):
        assert contents(place) == contents(tmp_path / "whole")
        assert [file.name for file in place.rglob("*") if file.name.endswith(".partial")] == []


TOGETHER = """
import os, sys
import torch
torch.set_num_threads(1)
import hyperlens as hl
study = hl.Study("two", tasks=(hl.TaskSpec("logic"),), lenses=(hl.LensSpec(focal_depths=(0, 2)),), limit=30, shard_samples=5)
models, children = {"reference": hl.load_model("reference")}, []
for _ in range(2):
    children.append(os.fork())
    if not children[-1]:
        print(len(hl.run_study(study, sys.argv[1], models).samples()), flush=True)
        os._exit(0)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
"""


@pytest.mark.slow
def test_two_processes_on_one_folder_share_the_work(tmp_path, reference):
    done = subprocess.run([sys.executable, "-c", TOGETHER, str(tmp_path / "run")], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["150", "150"]), done.stderr
    entries = [json.loads(file.read_text()) for file in (tmp_path / "run").glob("shards/*/*.json")]
    assert len(entries) == 30 and len({entry["process"] for entry in entries}) == 2
    study = open_store(tmp_path / "run").study
    alone = hl.run_study(study, tmp_path / "alone", {"reference": reference})
    assert contents(tmp_path / "run") == contents(alone.folder)


def test_a_full_disk_loses_nothing_that_was_saved(reference, tmp_path, monkeypatch):
    study = hl.Study("full", tasks=(hl.TaskSpec("logic"),), lenses=OWN.lenses, limit=8, shard_samples=8)
    add, (least, most) = Store.add_shard, resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, shard, tables, entry):
        if shard.number == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, most))
        add(self, shard, tables, entry)

    monkeypatch.setattr(Store, "add_shard", fill)
    try:
        with pytest.raises(ArtefactError, match="what was saved before is intact"):
            hl.run_study(study, tmp_path / "r", {"reference": reference})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))
    store = open_store(tmp_path / "r")
    assert [store.check_shard(shard) for shard in store.shards] == ["done", "done", "open", "open", "open"]


def test_a_restart_that_is_killed_never_mixes_what_was_measured_with_what_is_drawn(run, reference, tmp_path, monkeypatch):
    from hyperlens.runs import opening as room

    folder = shutil.copytree(run.folder, tmp_path / "copy")
    real, order = shutil.rmtree, []

    def stop_at(place, *rest):
        order.append(place.name)
        if place.name == "models":
            raise KeyboardInterrupt
        real(place, *rest)

    monkeypatch.setattr(room.shutil, "rmtree", stop_at)
    with pytest.raises(KeyboardInterrupt):
        hl.run_study(STUDY, folder, {"reference": reference}, restart=True)
    monkeypatch.undo()
    assert order == ["shards", "models"]
    assert contents(hl.run_study(STUDY, folder, {"reference": reference}).folder) == contents(run.folder)


def test_what_another_process_still_measures_does_not_enter_a_run_begun_anew(run, reference, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "copy")
    store, shard = open_store(folder), open_store(folder).shards[0]
    assert store.run and store.entry(shard)
    other = hl.Study("two", tasks=TASKS[:1], lenses=STUDY.lenses, limit=2)
    hl.run_study(other, folder, {"reference": reference}, restart=True)
    with pytest.raises(ArtefactError, match="was begun anew by another process"):
        store.add_shard(shard, {}, {"skipped": [], "cut": 0})
    entry = json.loads(next(folder.glob("shards/*/*.json")).read_text())
    place_json(next(folder.glob("shards/*/*.json")), {**entry, "run": store.run})
    assert open_store(folder).entry(open_store(folder).shards[0]) is None


def test_a_model_that_is_refused_first_is_measured_and_counted_when_it_can_be(reference, plain, tmp_path):
    place = tmp_path / "late"
    study = hl.Study(models=(hl.ModelSpec(str(place)), hl.ModelSpec()), tasks=TASKS[:1], limit=2, lenses=OWN.lenses)
    with pytest.warns(HyperLensWarning, match="late was left out"):
        run = hl.run_study(study, tmp_path / "run", {"reference": reference})
    assert list(run.models) == ["reference"] == list(run.results["models"]) and len(run.samples()) == 4
    shutil.copytree(REFERENCE_FOLDER, place)
    run = hl.run_study(study, tmp_path / "run", {"reference": reference})
    assert list(run.models) == ["late", "reference"] == list(run.results["models"]) and run.results["refused"] == {}
    assert len(run.samples()) == 8 and {group["model"] for group in run.results["groups"]} == {"late", "reference"}


def test_who_sums_up_may_die_and_results_that_are_damaged_are_made_anew(run, reference, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "copy")
    expected = contents(folder)
    (folder / "results.json").write_text("{")
    with pytest.raises(ArtefactError, match="no results that can be read"):
        hl.open_run(folder)
    assert contents(hl.run_study(STUDY, folder, {"reference": reference}).folder) == expected
    (folder / "COMPLETE").unlink()
    (folder / "results.json").unlink()
    assert contents(hl.run_study(STUDY, folder, {"reference": reference}).folder) == expected


@pytest.mark.parametrize("damage", ["{}", "[]", "[" * 5000, "null", "\x00"])
def test_whatever_stands_in_the_ledger_is_measured_again(run, reference, tmp_path, damage):
    folder = shutil.copytree(run.folder, tmp_path / "copy")
    expected = contents(folder)
    next(folder.glob("shards/*/00000.json")).write_text(damage)
    next(folder.glob("tasks/*.json")).write_text(damage)
    next(folder.glob("tasks/*.parquet")).write_bytes(b"x")
    with pytest.warns(HyperLensWarning, match="1 shards were damaged"):
        hl.run_study(STUDY, folder, {"reference": reference})
    assert contents(folder) == expected


# what cannot be


def test_the_folder_of_another_study_is_refused_with_what_differs(run):
    other = hl.Study("two", tasks=TASKS, lenses=STUDY.lenses, limit=13, shard_samples=8)
    with pytest.raises(InputError, match=r"holds the run of another study: limit is 12 there and 13 here; choose another"):
        hl.run_study(other, run.folder)
    assert hl.open_run(run.folder).results == run.results


def test_a_restart_discards_the_run_that_was_there(run, reference, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "copy")
    (folder / "notes.txt").write_text("mine")
    other = hl.Study("two", tasks=TASKS[:1], lenses=STUDY.lenses, limit=2)
    before = contents(folder)
    with pytest.raises(ArtefactError, match=r"holds notes\.txt, which HyperLens did not write; nothing was removed"):
        hl.run_study(other, folder, {"reference": reference}, restart=True)
    lost = hl.Study("two", tasks=(hl.TaskSpec("q", path="nowhere.jsonl"),))
    with pytest.raises(InputError, match=r"nowhere\.jsonl"):
        hl.run_study(lost, run.folder, restart=True)
    assert contents(folder) == before == contents(run.folder)
    folder = shutil.copytree(run.folder, tmp_path / "other")
    assert len(hl.run_study(other, folder, {"reference": reference}, restart=True).samples()) == 4


def test_folders_that_hold_something_else_are_left_alone(reference, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtefactError, match="does not hold results of HyperLens"):
        hl.run_study(STUDY, tmp_path, {"reference": reference})
    traced = hl.trace(reference, "Ada's friend is", hl.LogitLens()).save(tmp_path / "trace")
    with pytest.raises(ArtefactError, match="holds other results of HyperLens"):
        hl.run_study(STUDY, traced, {"reference": reference})
    with pytest.raises(ArtefactError, match="holds a trajectory, not a study"):
        hl.open_run(traced)
    with pytest.raises(ArtefactError, match="does not exist"):
        hl.open_run(tmp_path / "none")


def test_changed_data_and_changed_models_are_not_mixed_with_what_was_measured(plain, reference, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "w1 w2", "target": " w3"}\n{"prompt": "w5 w2", "target": " w3"}\n')
    study = hl.Study(
        "mine", (hl.ModelSpec(name="mine"),), (hl.TaskSpec("q", path=str(file)),), (hl.LensSpec(focal_depths=(0,)),)
    )
    hl.run_study(study, tmp_path / "run", {"mine": plain})
    with pytest.raises(ModelError, match=r'model "mine" is not the one with which the run in .* began'):
        hl.run_study(study, tmp_path / "run", {"mine": reference})
    file.write_text('{"prompt": "w1 w2", "target": " w4"}\n')
    with pytest.raises(InputError, match=r'the data of task "q" changed since the run in .* began'):
        hl.run_study(study, tmp_path / "run", {"mine": plain})


def test_a_run_goes_on_where_its_data_can_no_longer_be_reached(plain, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "w11 w12", "target": " w13"}\n')
    study = hl.Study("mine", (hl.ModelSpec(name="mine"),), (hl.TaskSpec("q", path=str(file)),), OWN.lenses)
    run = hl.run_study(study, tmp_path / "run", {"mine": plain})
    expected = contents(run.folder)
    next(run.folder.glob("shards/*/00000.json")).unlink()
    file.unlink()
    with pytest.warns(HyperLensWarning, match="goes on with the samples that it began with"):
        hl.run_study(study, tmp_path / "run", {"mine": plain})
    assert contents(run.folder) == expected
    with pytest.raises(InputError, match="does not exist"):
        hl.run_study(study, tmp_path / "new", {"mine": plain})


def test_an_unknown_task_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match='there is no task "chess"'):
        hl.run_study(hl.Study(tasks=(hl.TaskSpec("chess"),)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_killed_start_leaves_a_folder_that_can_be_begun(reference, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f".manifest.json.{platform.node()}.{2**22 + 1}.2.partial").write_text("{")
    assert len(hl.run_study(STUDY, tmp_path / "run", {"reference": reference}).samples()) == 36
    assert [name for name in os.listdir(tmp_path / "run") if name.endswith(".partial")] == []


def test_samples_are_dealt_to_shards_by_the_study_alone(run, tmp_path):
    store = begin(tmp_path / "again", STUDY, lambda number: draw_task(STUDY.tasks[number], 12, 0))
    assert [(shard.place, shard.samples) for shard in store.shards] == [
        (shard.place, shard.samples) for shard in run.store.shards
    ]
    for cell in store.cells:
        dealt = [sample for shard in store.shards if shard.cell == cell for sample in shard.samples]
        assert sorted(dealt) == list(range(len(dealt)))
    assert isinstance(run.samples(), pd.DataFrame)
