"""The runs that are shown: each as it was when its folder last changed, with what was read of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from hyperlens.errors import ArtefactError, HyperLensError, InputError
from hyperlens.report.gather import find_floors
from hyperlens.runs import Comparison, Run, compare_runs, open_run
from hyperlens.runs.caveats import find_caveats
from hyperlens.runs.opening import open_store
from hyperlens.runs.run import cell_names, read_entries, sum_up
from hyperlens.runs.store import Shard, Store
from hyperlens.runs.tokens import read_task
from hyperlens.viewer.places import Place, Stamp
from hyperlens.viewer.shelf import Shelf

DAMAGE = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, RecursionError, TypeError, ValueError,
    pa.ArrowException,
)  # fmt: skip
"""What comes of reading documents and tables that are not as a study wrote them."""
NOTHING = {kind: [] for kind in ("groups", "trends", "choices", "contrasts", "signs")}
TEXTS = ("prompt", "target")


class Refused(InputError):
    """A request that cannot be answered: the status of its answer, and the field that it is about."""

    def __init__(self, status: int, sentence: str, field: str | None = None):
        super().__init__(sentence)
        self.status, self.field = status, field


@dataclass(frozen=True)
class Opened:
    """A run as it was at one time. `run.results` is empty while the run is still being written; see `Library.results`."""

    place: Place
    stamp: Stamp
    run: Run

    @property
    def store(self) -> Store:
        """The run's folder."""
        return self.run.store

    @property
    def finished(self) -> bool:
        """Whether the run's marker was there."""
        return bool(self.run.results)

    @cached_property
    def entries(self) -> dict[Shard, dict[str, Any]]:
        """The ledger's entries of what was measured."""
        return read_entries(self.store) if self.store.drawn else {}

    def shards(self, model: str, lens: str) -> list[Shard]:
        """Those of one model and lens that are there."""
        return [
            shard
            for shard, entry in self.entries.items()
            if entry["files"] and cell_names(self.store, shard.cell)[:2] == (model, lens)
        ]

    def count_shards(self) -> tuple[int, int]:
        """How many shards are finished, and how many there are in all; none while samples are still being drawn."""
        if not self.store.drawn:
            return 0, 0
        sizes = [math.ceil(task["count"] / task["shard"]) for task in self.store.tasks]
        done = sum(1 for _ in (self.store.folder / "shards").glob("*/*.json"))
        return done, sum(sizes[cell.task] for cell in self.store.cells)


class Library:
    """The runs of some places by their numbers, "0", "1" … in their order, and what was read of them last."""

    def __init__(self, places: Mapping[str, Place]):
        self.names, self.places, self.shelf = tuple(places), tuple(places.values()), Shelf()

    def open(self, number: str) -> Opened:
        """A run as it is now. Raises Refused where there is none of this number, ArtefactError where it cannot be read."""
        if number not in map(str, range(len(self.places))):
            raise Refused(404, f'there is no run "{number[:40]}"; open the overview to see those that there are', "id")
        place = self.places[int(number)]
        with _explain_reading(place):
            stamp = place.stamp()
            self.shelf.forget(lambda key: key[0] == place.folder and key[1] != stamp)
            return self.shelf.get((place.folder, stamp, "run"), lambda: _open(place, stamp))

    @contextmanager
    def reading(self, *numbers: str) -> Iterator[list[Opened]]:
        """Runs as they are now, while something is read of them. Raises as `open` does, and ArtefactError for what turns out
        to be damaged."""
        opened = [self.open(number) for number in numbers]
        with _explain_reading(*(one.place for one in opened)):
            yield opened

    def results(self, opened: Opened) -> dict[str, Any]:
        """The results of a run, made from the shards so far where it is still being written."""
        return opened.run.results or self._keep(opened, "results", lambda: _sum_up_so_far(opened))

    def caveats(self, opened: Opened) -> list[str]:
        """What weakens a run's results, in sentences."""
        return self._keep(opened, "caveats", lambda: _list_caveats(opened, self.results(opened)))

    def texts(self, opened: Opened, task: int) -> pa.Table:
        """Prompts and targets of a task of the study, by its number."""
        return self._keep(opened, ("texts", task), lambda: read_task(opened.store, task, TEXTS), lambda table: table.nbytes)

    def table(self, opened: Opened, key: tuple[Any, ...], make: Callable[[], pa.Table]) -> pa.Table:
        """A table that is made of a run, by its key."""
        return self._keep(opened, key, make, lambda table: table.nbytes)

    def compare(self, before: Opened, after: Opened, names: tuple[str | None, ...], depth: int | None) -> Comparison:
        """What changed from one run to another, or between two models of one. Raises InputError where that cannot be told."""
        for opened in (before, after):
            if not opened.finished:
                raise InputError(
                    f"{opened.place.folder} is unfinished; it can be compared once hyperlens study has finished it"
                )
        tuned = None if after is before else after.run
        key = ("compare", after.place.folder, after.stamp, names, depth)
        return self._keep(
            before, key, lambda: compare_runs(before.run, tuned, *names, focal_depth=depth), lambda made: _weigh(made.samples)
        )

    def _keep(self, opened: Opened, key: Any, make: Callable[[], Any], weigh: Callable[[Any], int] = lambda thing: 0) -> Any:
        return self.shelf.get((opened.place.folder, opened.stamp, key), make, weigh)


@contextmanager
def _explain_reading(*places: Place) -> Iterator[None]:
    """Say in one sentence that folders cannot be read, or what is in them."""
    folders = " or ".join(dict.fromkeys(str(place.folder) for place in places))
    try:
        yield
    except OSError as error:
        raise ArtefactError(f"{folders} cannot be read ({error.strerror}); give a folder that you may read") from None
    except DAMAGE as error:
        name = type(error).__name__
        raise ArtefactError(f"{folders} is damaged ({name} where its files were read); run the study again") from None


def _open(place: Place, stamp: Stamp) -> Opened:
    """A run, if only what may be read is to be read."""
    if place.folder.is_dir():
        place.check()
    store = open_store(place.folder)
    return Opened(place, stamp, open_run(place.folder) if store.complete else Run(store, {}))


def find_errors(places: Iterable[Place]) -> list[str]:
    """What is wrong with those runs that cannot be read."""
    errors = []
    for place in places:
        try:
            with _explain_reading(place):
                _open(place, place.stamp())
        except HyperLensError as error:
            errors.append(str(error))
    return errors


def _sum_up_so_far(opened: Opened) -> dict[str, Any]:
    if any(entry["files"] for entry in opened.entries.values()):
        return sum_up(opened.store)
    return {"models": opened.run.models, "refused": {}, **NOTHING}


def _list_caveats(opened: Opened, results: Mapping[str, Any]) -> list[str]:
    """Only of a run that has samples, since all that is said is about them."""
    return find_caveats(dict(results), find_floors(opened.run)) if results["groups"] else []


def _weigh(frame: Any) -> int:
    return int(frame.memory_usage().sum())
