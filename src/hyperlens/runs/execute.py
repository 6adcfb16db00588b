"""A study run: drawn, measured shard by shard, resumed where it was stopped, and summed up."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from hyperlens.errors import ChangedModelError, HyperLensWarning, InputError, MemoryLimitError, ModelError
from hyperlens.runs.opening import begin
from hyperlens.runs.run import Run, list_refused, open_run, sum_up
from hyperlens.runs.spec import Study, read_study
from hyperlens.runs.store import Shard, Store, sources_differ
from hyperlens.tasks import Drawn, Sample, draw_given, draw_task
from hyperlens.tasks.spec import HARNESS

if TYPE_CHECKING:
    from hyperlens.models import Model

POLL_SECONDS = 0.5
"""How often one looks whether another process has finished the shards that it works on."""


def run_study(
    study: Study | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    models: Mapping[str, Model] | None = None,
    samples: Mapping[str, Sequence[Sample]] | None = None,
    workers: int = 0,
    ray_address: str | None = None,
    restart: bool = False,
) -> Run:
    """Measure a study (or the TOML file of one) into the folder `out`, `runs/NAME` by default; gives the finished run.

    Where the folder holds the same study, finished shards are kept and the others are measured: a run that was killed goes on
    to the same result, to the last digit, and several processes may work on one folder. `models` are models already loaded and
    `samples` one's own samples, by their names in the study. With `workers`, so many processes share the work through Ray, on
    this machine or the cluster at `ray_address`. `restart` discards what the folder's run has measured. A model that cannot be
    loaded or proved is left out and reported. Raises HyperLensError.
    """
    study = study if isinstance(study, Study) else read_study(study)
    given = samples or {}
    _check_settings(study, models or {}, given, workers, ray_address)
    store = begin(out or Path("runs") / study.name, study, lambda number: draw_samples(study, number, given), restart)
    pending = _find_pending(store)
    _check_models(store, pending, models or {})
    with _progress(store, pending) as advance:
        if workers:
            from hyperlens.runs.cluster import measure_with_workers

            measure_with_workers(store, pending, workers, ray_address, advance)
        else:
            for number, shards in _by_model(pending):
                _measure_model(store, number, shards, (models or {}).get(store.study.models[number].name), advance)
    return _finish(store)


def _check_settings(
    study: Study,
    models: Mapping[str, Model],
    samples: Mapping[str, Sequence[Sample]],
    workers: int,
    ray_address: str | None,
) -> None:
    """That what is asked for fits the processes that are to do it. Raises InputError."""
    if workers < 0:
        raise InputError(f"there are {workers} workers; give a number from 1 up, or 0 to measure in this process")
    for kind, given, known in (("model", models, study.models), ("task", samples, study.tasks)):
        if unknown := set(given) - {one.name for one in known}:
            names = ", ".join(one.name for one in known)
            raise InputError(f'the study has no {kind} "{min(unknown)}" that was given; it has {names}')
    if ray_address and not workers:
        raise InputError(
            f"the Ray cluster at {ray_address} has nothing to do; say how many workers it is to run with --workers"
        )
    if workers and models:
        raise InputError("models that are loaded already cannot be sent to workers; give their sources in the study")
    cut = next((model.name for model in study.models if model.tensor_parallel > 1 and model.name not in models), None)
    if cut is not None and not workers:
        raise InputError(f'model "{cut}" is cut over several processes, which workers are; add --workers 1 (or more)')


def draw_samples(study: Study, number: int, given: Mapping[str, Sequence[Sample]] | None = None) -> Drawn:
    """The samples of task `number`: those `given` by its name, those of a harness, or from where its table says."""
    given = given or {}
    spec = study.tasks[number]
    if spec.name in given:
        return draw_given(spec, given[spec.name])
    if spec.name.startswith(HARNESS):
        from hyperlens.runs.harness import draw_harness

        return draw_harness(spec, study.limit, study.seed, study.root)
    return draw_task(spec, study.limit, study.seed, study.locate(study.data), study.root)


def _find_pending(store: Store) -> list[Shard]:
    """The shards that are still to be measured; says which were damaged."""
    states = {shard: store.check_shard(shard) for shard in store.shards}
    if damaged := [shard for shard, state in states.items() if state == "damaged"]:
        files = ", ".join(str(store.file(shard, "tokens").relative_to(store.folder)) for shard in damaged[:3])
        warnings.warn(
            f"{len(damaged)} shards were damaged on disk and are measured again ({files})", HyperLensWarning, stacklevel=4
        )
    pending = [shard for shard, state in states.items() if state != "done"]
    if pending:
        store.reopen()
    return pending


def _by_model(shards: Iterable[Shard]) -> Iterator[tuple[int, list[Shard]]]:
    grouped: dict[int, list[Shard]] = {}
    for shard in shards:
        grouped.setdefault(shard.cell.model, []).append(shard)
    yield from grouped.items()


def _measure_model(
    store: Store, number: int, shards: Sequence[Shard], given: Model | None, advance: Callable[[Shard], None]
) -> None:
    """Measure the shards of one model, but for those that another process works on; then wait for these. A model that cannot
    be measured is put down as refused."""
    from hyperlens.runs.measure import measure_shard, open_reader, refuse_model

    try:
        reader = open_reader(store, number, given)
        samples: dict[int, list[Sample]] = {}
        left = list(shards)
        while left:
            busy = []
            for shard in left:
                with store.claim(shard) as mine:
                    if mine and store.entry(shard) is None:
                        task = shard.cell.task
                        samples = samples if task in samples else {task: store.samples(task)}
                        measure_shard(reader, shard, samples[task])
                (advance if mine else busy.append)(shard)
            left = busy
            if left:
                time.sleep(POLL_SECONDS)
    except (InputError, ModelError, MemoryLimitError) as error:
        if isinstance(error, ChangedModelError):
            raise
        refuse_model(store, number, error)


def _check_models(store: Store, pending: Sequence[Shard], models: Mapping[str, Model]) -> None:
    """That models of which nothing is left to measure are still those that were measured. Raises ModelError."""
    open_ones = {shard.cell.model for shard in pending}
    for number, spec in enumerate(store.study.models):
        known, given = store.model(number), models.get(spec.name)
        if number in open_ones or known is None:
            continue
        if given is not None or sources_differ(store.study, number, known.get("files")):
            from hyperlens.runs.measure import open_reader

            open_reader(store, number, given)


def _finish(store: Store) -> Run:
    """Sum up a run of which nothing is left to measure. Raises the reason where no model could be measured."""
    refused = {number: reason for number in range(len(store.study.models)) if (reason := store.refused(number))}
    if len(refused) == len(store.study.models):
        raise ModelError(refused[0])
    for name, reason in list_refused(store).items():
        warnings.warn(f"{name} was left out: {reason}", HyperLensWarning, stacklevel=3)
    while not (store.complete and store.results):
        with store.claim() as mine:
            if mine:
                store.finish(sum_up(store))
        if not mine:
            time.sleep(POLL_SECONDS)
    return open_run(store.folder)


@contextmanager
def _progress(store: Store, pending: Sequence[Shard]) -> Iterator[Callable[[Shard], None]]:
    """A bar over samples on the terminal's error stream; nothing where that is no terminal."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        total, left = (sum(len(shard.samples) for shard in shards) for shards in (store.shards, pending))
        task = bar.add_task("reading samples", total=total, completed=total - left)
        yield lambda shard: bar.advance(task, len(shard.samples))
