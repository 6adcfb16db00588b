"""The folder of a run: what is to be measured, the shards that are, a ledger of them, the marker last.

    manifest.json               the study, when and with what it was begun; never changed
    tasks/00-logic.parquet      the samples of a task, drawn once; beside it .json with what was left out
    models/00-reference.json    what a model is, its certificate, the focal depths chosen for it; or why it was refused
    shards/000-…/00000.*        tokens.parquet, samples.parquet, spelling.parquet where top tokens were kept, and, last, the
                                shard's entry in the ledger, 00000.json
    results.json, COMPLETE      the tables, and the marker

A file is written beside its place, synced, and moved there, so that a process killed at any moment leaves whole files only. A
shard counts once its entry is there and its files have the digests that it names. Who works on a shard holds a lock on one
byte of `claims`, which the system takes back when a process dies. The locks only save work: two processes that read the same
shard would write the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from hyperlens.artefact import (
    MANIFEST,
    MARKER,
    PARTIAL,
    hash_file,
    place_json,
    place_table,
    read_parquet,
    to_json,
)
from hyperlens.errors import ArtefactError, InputError
from hyperlens.runs.claims import hold_byte
from hyperlens.runs.spec import Study
from hyperlens.tasks import Drawn, Sample

SHARDS_OF_A_CELL, SMALLEST_SHARD, LARGEST_SHARD = 64, 128, 4096
OLD_SECONDS = 3600
"""A half-written file of another machine that is older than this is nobody's any more."""

TEXTS = pa.list_(pa.string())
SAMPLES = pa.schema(
    {
        "prompt": pa.string(),
        "target": pa.string(),
        "options": TEXTS,
        "task": pa.string(),
        "level": pa.int64(),
        "id": pa.string(),
        "images": TEXTS,
        "shots": pa.list_(TEXTS),
        "chat": pa.bool_(),
        "turn": pa.int64(),
    }
)
"""A task's samples; `turn` is the order in which they are read: long ones first, like lengths together."""


@dataclass(frozen=True)
class Cell:
    """One model reading one task through one lens, by their numbers in the study; `number` counts cells."""

    number: int
    model: int
    lens: int
    task: int


@dataclass(frozen=True)
class Shard:
    """A part of a cell that is read and saved as a whole: its number there and in the whole run, and its samples, by their
    number in the task."""

    cell: Cell
    number: int
    place: int
    samples: tuple[int, ...]


@dataclass(frozen=True)
class Store:
    """A run's folder and its study. What is written, is written whole; see this module's head."""

    folder: Path
    study: Study

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Who began the run, when, and with what."""
        return read_json(self.folder / MANIFEST)

    @cached_property
    def run(self) -> str:
        """What tells this run from another one that was in the same folder before or after it."""
        return str(self.manifest["run"])

    @cached_property
    def tasks(self) -> tuple[dict[str, Any], ...]:
        """What was drawn of each task: `name`, `read`, `count`, `skipped`, `max_new_tokens`, `stop`, `digest`."""
        return tuple(
            read_json(file.with_suffix(".json"), "digest", "shard")
            for file in map(self._task_file, range(len(self.study.tasks)))
        )

    @property
    def drawn(self) -> bool:
        """Whether the samples of every task are kept."""
        return all(self._task_file(number).with_suffix(".json").exists() for number in range(len(self.study.tasks)))

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """All shards, by the study and its samples alone: model by model, long texts first, like lengths together."""
        turns = [read_parquet(self._task_file(task), ["turn"])["turn"].to_numpy() for task in range(len(self.tasks))]
        result = []
        for cell in self.cells:
            order, size = turns[cell.task].argsort().tolist(), self.tasks[cell.task]["shard"]
            for number, first in enumerate(range(0, len(order), size)):
                result.append(Shard(cell, number, len(result), tuple(order[first : first + size])))
        return tuple(result)

    @property
    def cells(self) -> list[Cell]:
        """Every model through every lens on every task."""
        study, cells = self.study, []
        for model in range(len(study.models)):
            for lens in range(len(study.lenses)):
                for task in range(len(study.tasks)):
                    cells.append(Cell(len(cells), model, lens, task))
        return cells

    def samples(self, task: int) -> list[Sample]:
        """The drawn samples of a task. Raises ArtefactError where they are damaged."""
        rows = read_parquet(self._task_file(task)).to_pylist()
        for row in rows:
            del row["turn"]
            row |= {name: tuple(row[name]) for name in ("options", "images")}
            row["shots"] = tuple((prompt, target) for prompt, target in row["shots"])
        return [Sample(**row) for row in rows]

    def add_task(self, number: int, drawn: Drawn) -> None:
        """Keep the samples of a task, or compare them with those that were kept when the run began. Raises InputError."""
        file, name = self._task_file(number), self.study.tasks[number].name
        listed = [asdict(sample) for sample in drawn.samples]
        digest = hashlib.sha256(to_json(listed).encode()).hexdigest()
        with contextlib.suppress(ArtefactError):
            known = read_json(file.with_suffix(".json"), "digest", "shard")["digest"]
            if known != digest:
                raise InputError(
                    f'the data of task "{name}" changed since the run in {self.folder} began; choose another folder with '
                    "--out, or begin anew with --restart"
                )
            if len(read_parquet(file)) == len(listed):
                return
        lengths = [_measure_length(one) for one in drawn.samples]
        order = sorted(range(len(listed)), key=lambda place: (-lengths[place], place))
        turns = {place: turn for turn, place in enumerate(order)}
        rows = [row | {"turn": turns[place]} for place, row in enumerate(listed)]
        size = self.study.shard_samples or _clamp(math.ceil(len(listed) / SHARDS_OF_A_CELL), SMALLEST_SHARD, LARGEST_SHARD)
        place_table(file, pa.Table.from_pylist(rows, schema=SAMPLES))
        document = {
            "name": name,
            "read": drawn.read,
            "count": len(listed),
            "skipped": [asdict(skipped) for skipped in drawn.skipped],
            "max_new_tokens": drawn.max_new_tokens,
            "stop": list(drawn.stop),
            "digest": digest,
            "shard": size,
        }
        place_json(file.with_suffix(".json"), document)

    def model(self, number: int) -> dict[str, Any] | None:
        """What is known of a model: its manifest with focal depths by lens, and why it was `refused` if it was; None before it
        was loaded."""
        try:
            return read_json(self._model_file(number), "name")
        except ArtefactError:
            return None

    def add_model(self, number: int, document: Mapping[str, Any], keep: bool = False) -> None:
        """Keep what a model is, or (with `keep`) what another process found first."""
        place_json(self._model_file(number), document, keep)

    def refused(self, number: int) -> str | None:
        """Why a model has shards that were not measured; None where it has none, or was not refused."""
        reason = (self.model(number) or {}).get("refused")
        mine = [shard for shard in self.shards if shard.cell.model == number]
        return reason if reason and not all(self.entry(shard) for shard in mine) else None

    def left_out(self, number: int) -> dict[str, str]:
        """Why lenses of the study do not fit a model, by their names, of which it has shards that were not measured."""
        kept = (self.model(number) or {}).get("lenses", {})
        refused = {name: document["refused"] for name, document in kept.items() if "refused" in document}
        names = [lens.name for lens in self.study.lenses]
        mine = [shard for shard in self.shards if shard.cell.model == number and names[shard.cell.lens] in refused]
        missing = {names[shard.cell.lens] for shard in mine if not self.entry(shard)}
        return {name: reason for name, reason in refused.items() if name in missing}

    def add_shard(self, shard: Shard, tables: Mapping[str, pa.Table], entry: Mapping[str, Any]) -> None:
        """Save a shard's tables, and then its entry in the ledger, with which it counts. Raises ArtefactError where the run
        was begun anew meanwhile."""
        if read_json(self.folder / MANIFEST).get("run") != self.run:
            raise ArtefactError(f"the run in {self.folder} was begun anew by another process, so that this one has ended")
        for name, table in tables.items():
            place_table(self.file(shard, name), table)
        digests = {name: hash_file(self.file(shard, name)) for name in tables}
        place_json(self._entry_file(shard), {"run": self.run, "samples": len(shard.samples), "files": digests, **entry})

    def entry(self, shard: Shard) -> dict[str, Any] | None:
        """The shard's entry in the ledger, if it has one of this run."""
        try:
            entry = read_json(self._entry_file(shard), "run", "files", "skipped", "cut")
        except ArtefactError:
            return None
        return entry if entry["run"] == self.run and isinstance(entry["files"], dict) else None

    def file(self, shard: Shard, part: str) -> Path:
        """Where a shard's "tokens" or "samples" are, or the "spelling" of its top tokens, where any were kept."""
        return self._entry_file(shard).with_suffix(f".{part}.parquet")

    def check_shard(self, shard: Shard) -> str:
        """ "done", "open", or "damaged": an entry that cannot be read, or whose files are not what it says. A damaged one is
        open from then on."""
        entry = self.entry(shard)
        if entry is None and not self._entry_file(shard).exists():
            return "open"
        with contextlib.suppress(OSError):
            if entry and all(hash_file(self.file(shard, name)) == digest for name, digest in entry["files"].items()):
                return "done"
        self.reopen()
        with explain_writing(self.folder):
            self._entry_file(shard).unlink(missing_ok=True)
        return "damaged"

    def reopen(self) -> None:
        """Take the marker away, since there is more to measure."""
        with explain_writing(self.folder):
            (self.folder / MARKER).unlink(missing_ok=True)

    @contextlib.contextmanager
    def claim(self, shard: Shard | None = None) -> Iterator[bool]:
        """Whether the shard (or without one, finishing the run) is this process's for the time of the block."""
        byte = 0 if shard is None else 1 + shard.place
        yield from hold_byte(self.folder / "claims", byte)

    @property
    def results(self) -> dict[str, Any] | None:
        """What the run found; None where it is not there yet, or damaged."""
        try:
            return read_json(self.folder / "results.json", "groups", "trends", "choices", "contrasts", "signs")
        except ArtefactError:
            return None

    @property
    def complete(self) -> bool:
        """Whether the marker is there."""
        return (self.folder / MARKER).exists()

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write the tables, and then the marker; what killed processes left half written goes."""
        for partial in self.folder.rglob(f".*{PARTIAL}"):
            if _is_left_over(partial):
                partial.unlink(missing_ok=True)
        place_json(self.folder / "results.json", results)
        place_json(self.folder / MARKER, datetime.now(UTC).isoformat(timespec="seconds"))

    def _task_file(self, task: int) -> Path:
        return self.folder / "tasks" / f"{task:02d}-{_slug(self.study.tasks[task].name)}.parquet"

    def _model_file(self, model: int) -> Path:
        return self.folder / "models" / f"{model:02d}-{_slug(self.study.models[model].name)}.json"

    def _entry_file(self, shard: Shard) -> Path:
        study, cell = self.study, shard.cell
        names = (study.models[cell.model].name, study.tasks[cell.task].name, study.lenses[cell.lens].name)
        folder = "-".join([f"{cell.number:03d}", *map(_slug, names)])
        return self.folder / "shards" / folder / f"{shard.number:05d}.json"


def stamp_sources(study: Study, number: int) -> dict[str, list[int]] | None:
    """Sizes and times of the local files of a model and of the tuned lenses that read it; None where none is local."""
    spec, tuned = study.models[number], [lens for lens in study.lenses if lens.kind == "tuned"]
    stamps = stamp_files(study.locate_model(spec.source))
    beside = {lens.name: stamp_files(study.locate_lens(lens, spec)) or {} for lens in tuned}
    named = {f"{lens}: {name}": stamp for lens, files in beside.items() for name, stamp in files.items()}
    return stamps if not tuned else {**(stamps or {}), **named}


def sources_differ(study: Study, number: int, known: Mapping[str, Any] | None) -> bool:
    """Whether the files of a model and its lenses are others than those that are `known`; a lens whose folder is gone can no
    longer be compared, and is not."""
    spec, found = study.models[number], stamp_sources(study, number)
    gone = [lens.name for lens in study.lenses if lens.kind == "tuned" and not Path(study.locate_lens(lens, spec)).exists()]
    kept = {name: stamp for name, stamp in (known or {}).items() if not name.startswith(tuple(f"{lens}: " for lens in gone))}
    return kept != (found or {})


def stamp_files(source: str) -> dict[str, list[int]] | None:
    """Sizes and times of a local model's files; None for what is not local."""
    place = Path(source)
    if not place.exists():
        return None
    files = sorted(file for file in place.iterdir() if file.is_file()) if place.is_dir() else [place]
    return {file.name: [(state := file.stat()).st_size, state.st_mtime_ns] for file in files}


@contextlib.contextmanager
def explain_writing(place: Path) -> Iterator[None]:
    """Say in one sentence that a folder cannot be changed. Raises ArtefactError."""
    try:
        yield
    except OSError as error:
        raise ArtefactError(f"{place} cannot be changed ({error.strerror}); choose another folder with --out") from None


def _is_left_over(partial: Path) -> bool:
    """Whether who was writing a file is gone: dead, if it was on this machine, or long silent."""
    try:
        *_, host, process, _, _ = partial.name.rsplit(".", 4)
        if host == platform.node().rpartition(".")[2]:
            os.kill(int(process), 0)
            return False
        return time.time() - partial.stat().st_mtime > OLD_SECONDS
    except (ProcessLookupError, ValueError):
        return True
    except OSError:
        return False


def read_json(file: Path, *needed: str) -> dict[str, Any]:
    """One of the run's documents, if it has the fields that are needed. Raises ArtefactError where it is missing or damaged."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is not JSON"
        raise ArtefactError(f"{file} cannot be read ({reason}); give the command that began the run again") from None
    if not isinstance(document, dict) or not set(needed) <= set(document):
        raise ArtefactError(f"{file} is not what HyperLens writes there; give the command that began the run again")
    return document


def _slug(name: str) -> str:
    """A name as a part of a file's name."""
    return re.sub(r"[^a-z0-9._]+", "-", name.lower().rstrip("/").rpartition("/")[2]).strip("-.")[:40] or "x"


def _measure_length(sample: Sample) -> int:
    """Characters of all that a sample's text is made of."""
    texts = (sample.prompt, sample.target or "", *sample.options, *(text for shot in sample.shots for text in shot))
    return sum(map(len, texts))


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))
