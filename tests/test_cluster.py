from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from loading import needs
from sentences import is_one_sentence

from hyperlens.errors import HyperLensWarning, InputError, MemoryLimitError, ModelError
from hyperlens.models import Model
from hyperlens.runs import LensSpec, ModelSpec, Run, Study, TaskSpec, draw_samples, run_study
from hyperlens.runs.cluster import measure_with_workers, schedule
from hyperlens.runs.cluster.schedule import OUT_OF_MEMORY, choose_shard, explain_death, find_patience
from hyperlens.runs.opening import begin
from hyperlens.runs.store import Cell, Shard, Store

LENSES = (LensSpec(focal_depths=(0, 2)),)
STUDY = Study(tasks=(TaskSpec("logic"), TaskSpec("knowledge")), lenses=LENSES, limit=6, shard_samples=8)
MODELS = Study(
    models=(ModelSpec("missing"), ModelSpec(), ModelSpec(name="cut", tensor_parallel=2)),
    tasks=STUDY.tasks[:1],
    lenses=LENSES,
    limit=2,
)
RAYS_OWN = ("raylet", "gcs_server", "ray::")


@pytest.fixture(scope="module")
def alone(reference: Model, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The study, in this process."""
    return run_study(STUDY, tmp_path_factory.mktemp("alone") / "run", {"reference": reference})


@pytest.fixture
def untouched() -> Iterator[None]:
    """That what a test does leaves no process, no variable and no handler of a signal behind."""
    before = look_around()
    yield
    assert look_around() == before
    assert find_rays() == []


def look_around() -> tuple[dict[str, str], Any]:
    """The environment, but for what pytest itself writes there, and who listens to SIGTERM."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    return environment, signal.getsignal(signal.SIGTERM)


def find_rays() -> list[psutil.Process]:
    """The processes that Ray started for us."""
    return [child for child in psutil.Process().children(recursive=True) if child.name().startswith(RAYS_OWN)]


def begin_study(study: Study, folder: Path) -> Store:
    return begin(folder, study, lambda number: draw_samples(study, number))


def hold_the_same(store: Store, expected: Store, model: str) -> bool:
    """Whether both hold the same shards of a model, their tables to the last byte."""
    files, wanted = (
        {file.relative_to(one.folder) for file in one.folder.glob(f"shards/*-{model}-*/*")} for one in (store, expected)
    )
    tables = [file for file in wanted if file.suffix == ".parquet"]
    return (
        bool(tables)
        and files == wanted
        and all((store.folder / file).read_bytes() == (expected.folder / file).read_bytes() for file in tables)
    )


@pytest.mark.slow
@needs("ray")
@pytest.mark.usefixtures("untouched")
def test_workers_give_what_one_process_gives_for_models_whole_and_cut_and_leave_out_what_cannot_be_had(
    reference: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with pytest.warns(HyperLensWarning, match="missing was left out: there is no folder missing"):
        run = run_study(MODELS, tmp_path / "workers", workers=2)
    with pytest.warns(HyperLensWarning, match="missing was left out"):
        expected = run_study(MODELS, tmp_path / "process", {"reference": reference, "cut": reference})
    assert hold_the_same(run.store, expected.store, "reference")
    done = [entry for shard in run.store.shards if (entry := run.store.entry(shard))]
    assert len(done) == 2 and os.getpid() not in {entry["process"] for entry in done}
    assert list(run.models) == ["reference", "cut"] and run.results["refused"] == expected.results["refused"]
    assert run.models["cut"]["fingerprint"] == run.models["reference"]["fingerprint"]
    for name in ("effort@0", "effort@2"):
        np.testing.assert_allclose(run.samples()[name], expected.samples()[name], atol=1e-5)


class Accidents:
    """Kills the one of two workers that is at work while the other is done with a shard, stops the other one for good, and
    interrupts us once all is done; an `advance` of `measure_with_workers`."""

    def __init__(self, store: Store) -> None:
        self.store, self.done = store, []
        self.killed: int | None = None
        self.stopped: int | None = None

    def __call__(self, shard: Shard) -> None:
        entry = self.store.entry(shard)
        assert entry is not None
        self.done.append((shard.place, entry["process"]))
        if len({process for _, process in self.done}) == 1:
            time.sleep(2.0)  # on a busy machine the other one may need longer to start than all shards take
        if self.killed is None and len({process for _, process in self.done}) == 2:
            self.stopped = entry["process"]
            (self.killed,) = {process for _, process in self.done} - {self.stopped}
            os.kill(self.killed, signal.SIGKILL)
            os.kill(self.stopped, signal.SIGSTOP)
        if len(self.done) == len(self.store.shards):
            raise KeyboardInterrupt


@pytest.mark.slow
@needs("ray")
@pytest.mark.usefixtures("untouched")
def test_a_killed_worker_and_one_that_hangs_are_replaced_and_nothing_is_lost_or_double(
    alone: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(schedule, "STRAGGLER_SECONDS", 1.0)
    store = begin_study(STUDY, tmp_path / "run")
    advance = Accidents(store)
    with pytest.raises(KeyboardInterrupt):
        measure_with_workers(store, store.shards, 2, None, advance, threads=1)
    places = [place for place, _ in advance.done]
    assert sorted(places) == [shard.place for shard in store.shards] and hold_the_same(store, alone.store, "reference")
    others = {process for _, process in advance.done} - {advance.killed, advance.stopped}
    assert advance.killed and advance.stopped and others
    assert not any(map(psutil.pid_exists, {process for _, process in advance.done}))
    assert "".join(capfd.readouterr()) == ""
    assert run_study(STUDY, store.folder).results == alone.results


# Without Ray.


def refused(call: Callable[[], Any], kind: type[Exception] = InputError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert is_one_sentence(str(caught.value)), caught.value
    return str(caught.value)


def test_missing_ray_is_refused(alone: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    message = refused(lambda: measure_with_workers(alone.store, alone.store.shards, 2, None, print))
    assert message == "--workers needs Ray; install it with: pip install 'hyperlens[ray]'"
    assert "1 up" in refused(lambda: measure_with_workers(alone.store, alone.store.shards, 0, None, print))


@needs("ray")
@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "nowhere.invalid:6379", "auto", "6379", "ray://head:10001", "127.0.0.1:99999999"]
)
def test_a_cluster_that_does_not_answer_is_refused(alone: Run, address: str) -> None:
    message = refused(lambda: measure_with_workers(alone.store, alone.store.shards, 2, address, print))
    assert f'"{address}"' in message and ("start one with ray start" in message or "give HOST:PORT" in message)


@needs("ray")
@pytest.mark.usefixtures("untouched")
def test_the_last_cluster_of_this_machine_that_is_gone_is_refused(alone: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray._private.utils.read_ray_address", lambda: "127.0.0.1:1")
    message = refused(lambda: measure_with_workers(alone.store, alone.store.shards, 2, "auto", print))
    assert message.startswith('no Ray cluster answers at "auto" (Connection refused)')


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (ModelSpec(tensor_parallel=2, gpus=1.0), "give gpus = 2, or none"),
        (ModelSpec(tensor_parallel=2, dtype="int8"), "give device_map"),
        (ModelSpec(gpus=1.0), 'give it device = "cuda"'),
        (ModelSpec(gpus=1.5, device="cuda"), "a fraction below 1"),
    ],
)
def test_a_model_that_no_replica_can_hold_is_refused(alone: Run, model: ModelSpec, said: str) -> None:
    store = Store(alone.store.folder, Study(models=(model,), tasks=STUDY.tasks, lenses=LENSES))
    assert said in refused(lambda: measure_with_workers(store, alone.store.shards, 2, None, print))


def test_more_gpus_than_there_are_are_refused_and_too_few_for_all_workers_are_said() -> None:
    ray = SimpleNamespace(cluster_resources=lambda: {"CPU": 2.0, "GPU": 1.0})
    assert "a model takes 2 GPUs, and Ray finds 1" in refused(
        lambda: schedule.check_resources(ray, [schedule.Needs(1, 2.0)], 1)
    )
    assert "has cores (2)" in refused(lambda: schedule.check_resources(ray, [schedule.Needs(3, 0.0)], 1))
    with pytest.warns(HyperLensWarning, match="GPUs for 2 of the 3 workers"):
        schedule.check_resources(ray, [schedule.Needs(1, 0.5)], 3)
    schedule.check_resources(ray, [schedule.Needs(1, 0.5)], 2)


def make_shards(*models: int) -> list[Shard]:
    return [Shard(Cell(model, model, 0, 0), place, place, ()) for place, model in enumerate(models)]


def test_a_worker_stays_with_its_model_and_else_helps_where_fewest_are() -> None:
    queue = make_shards(0, 0, 1, 2)
    assert choose_shard(queue, 1, {0: 1, 1: 1}) is queue[2]
    assert choose_shard(queue, 5, {0: 1, 1: 1}) is queue[3]
    assert choose_shard(queue[:3], None, {0: 2, 1: 1}) is queue[2]
    assert choose_shard([], 1, {}) is None


def test_a_shard_has_taken_too_long_by_what_its_model_takes() -> None:
    assert find_patience({}, 0) == float("inf")
    assert find_patience({0: [10.0, 20.0, 90.0], 1: [1.0]}, 0) == 40
    assert find_patience({0: [10.0, 20.0, 90.0], 1: [1.0]}, 1) == schedule.STRAGGLER_SECONDS
    assert find_patience({0: [10.0, 20.0, 90.0], 1: [1.0]}, 2) == 180


def test_a_shard_over_which_three_workers_died_has_its_model_left_out(alone: Run) -> None:
    runtime = SimpleNamespace(get_node_id=lambda: "here")
    ray = SimpleNamespace(get_runtime_context=lambda: runtime)
    for reason, kind in ((OUT_OF_MEMORY, MemoryLimitError), ("it crashed", ModelError)):
        mine = schedule.Schedule(ray, alone.store, alone.store.shards, 1, 1, print)
        for death in range(3):
            assert not mine.refused
            shard = mine.queue.pop(0)
            one = schedule.Replica(schedule.Needs(1, 0.0), 0, [], None, [], shard=shard)
            mine.replicas.append(one)
            mine._bury(one, reason)
            assert death == 2 or mine.queue[0] is shard
        assert not mine.left and not mine.queue and not mine.replicas
        error = mine.refused[0]
        assert type(error) is kind and is_one_sentence(str(error))
        assert f"3 workers died over shard 0 of task logic (the last one: {reason})" in str(error)


def test_why_a_worker_died_is_said_as_far_as_ray_knows() -> None:
    assert (
        explain_death(RuntimeError("The actor died\nTask was killed due to the node running low on memory.")) == OUT_OF_MEMORY
    )
    assert "was killed" in explain_death(
        RuntimeError("x\nWorker unexpectedly exits with a connection error code 2. End of file.")
    )
    creation = (
        "The actor died because of an error raised in its creation task\nModuleNotFoundError: No module named 'hyperlens'"
    )
    assert explain_death(RuntimeError(creation)).endswith("'hyperlens'; every node needs hyperlens[ray]")
