"""A finished run, read without torch: its tables, its samples, its trajectories."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from hyperlens.artefact import read_columns, read_parquet
from hyperlens.errors import ArtefactError, InputError
from hyperlens.runs.caveats import pick_main
from hyperlens.runs.display import show_run
from hyperlens.runs.opening import open_store
from hyperlens.runs.store import Cell, Shard, Store
from hyperlens.runs.summary import summarise
from hyperlens.runs.tables import KINDS, flatten_results
from hyperlens.trajectory import Trajectory

if TYPE_CHECKING:
    import duckdb
    import polars

CELL_NAMES = ("model", "lens", "task")
READ_ALIKE = ("positions", "reference", "options", "guess", "smallest")
"""What has to be equal for trajectories to be put together."""
PLURALS = {"model": "models", "lens": "lenses", "task": "tasks"}
UNCOUNTED = ("id", "spec", "generated", "cut")
"""Columns of samples that no table of results is made of."""
MOST_LISTED = 100
"""Skipped samples that are named in the results; all are counted, and the ledger has each."""


@dataclass(frozen=True, repr=False)
class Run:
    """A finished study: its `results` (as `hyperlens study --json` prints them) and, in its folder, all that was read."""

    store: Store
    results: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        return self.store.folder

    @property
    def manifest(self) -> dict[str, Any]:
        """The study, its seed, when and with which versions the run was begun."""
        return self.store.manifest

    @cached_property
    def models(self) -> dict[str, dict[str, Any]]:
        """The models that were measured, by name: architecture, layers, fingerprint, certificate, and `lenses` with the focal
        depths that were read and, where they were chosen, how."""
        return _measured_models(self.store)

    def table(self, kind: str = "groups") -> pd.DataFrame:
        """The results as a flat table: "groups" (by task, level and focal depth), "trends" over levels, "contrasts" of easy and
        hard, "choices" of a depth with labels, or "signs". `effort_low` and `effort_high` are the ends of the interval of
        `effort`, and so with every estimate. Raises InputError for another kind."""
        if kind not in KINDS:
            raise InputError(f'there is no table of "{kind}"; choose from {", ".join(KINDS)}')
        return flatten_results(self.results, kind)

    def samples(self, texts: bool = False) -> pd.DataFrame:
        """One row per model, lens and sample: what was measured of it, each depth's effort as `effort@2`. With `texts`, its
        prompt and target too."""
        frame = read_samples(self.store)
        return _with_texts(self.store, frame) if texts else frame

    def trajectory(
        self, task: str | Sequence[str] | None = None, model: str | None = None, lens: str | None = None
    ) -> Trajectory:
        """What one model read through one lens, of one task, some, or all. Raises InputError where the run has several models
        or lenses and none is named, or not the one that is."""
        model, lens = self.choose_pair(model, lens)
        names = [spec.name for spec in self.store.study.tasks]
        wanted = [_choose("task", one, names) for one in ([task] if isinstance(task, str) else task or names)]
        parts = [part for one in wanted for part in self.parts(one, model, lens)]
        if not parts:
            raise InputError(f"no sample of {', '.join(wanted)} was read; results.json says why each was left out")
        return _join(self.store, parts)

    def parts(self, task: str, model: str | None = None, lens: str | None = None) -> Iterator[tuple[Shard, pa.Table]]:
        """The tokens of a task, shard by shard, for what does not fit into memory at once."""
        model, lens = self.choose_pair(model, lens)
        mine = [shard for shard in self.store.shards if cell_names(self.store, shard.cell) == (model, lens, task)]
        for shard in mine:
            if (entry := self.store.entry(shard)) and entry["files"]:
                yield shard, read_parquet(self.store.file(shard, "tokens"))

    def query(self, sql: str, model: str | None = None) -> duckdb.DuckDBPyRelation:
        """What DuckDB finds in the views `samples` (of all models) and `tokens` (of one model, since others have other numbers
        of states), whose columns are those of the parquet files. Raises InputError where DuckDB is missing or refuses."""
        try:
            import duckdb
        except ImportError:
            raise InputError("queries need DuckDB; install it with: pip install 'hyperlens[query]'") from None
        connection = duckdb.connect()
        chosen = _choose("model", model, list(self.models)) if model or len(self.models) == 1 else None
        views = {"samples": self._files("samples", None)}
        if chosen is not None:
            views["tokens"] = self._files("tokens", chosen)
        for name, files in views.items():
            connection.read_parquet(files, union_by_name=True).create_view(name)
        try:
            return connection.sql(sql)
        except duckdb.Error as error:
            raise InputError(
                f"DuckDB refused the query ({str(error).splitlines()[0]}); the views are {', '.join(views)}"
            ) from None

    def scan(self, part: str = "tokens", model: str | None = None, lens: str | None = None) -> polars.LazyFrame:
        """The rows of "tokens" or "samples" of one model and lens, as polars reads them when it needs them."""
        try:
            import polars
        except ImportError:
            raise InputError("this needs polars; install it with: pip install 'hyperlens[query]'") from None
        model, lens = self.choose_pair(model, lens)
        return polars.scan_parquet(self._files(part, model, lens), glob=False)

    def choose_pair(self, model: str | None, lens: str | None) -> tuple[str, str]:
        """The model and the lens that are meant. Raises InputError, with the reason where they were left out."""
        refused, lenses = list_refused(self.store), [one.name for one in self.store.study.lenses]
        if model in refused:
            raise InputError(f"{model} was left out: {refused[model]}")
        model, lens = _choose("model", model, list(self.models)), _choose("lens", lens, lenses)
        if (pair := _name_pair(lens, model)) in refused:
            raise InputError(f"{pair} was left out: {refused[pair]}")
        return model, lens

    def __repr__(self) -> str:
        tasks = dict.fromkeys(spec.name for spec in self.store.study.tasks)
        return f"Run({self.folder.name}: {_list(self.models)} on {_list(tasks)})"

    def _repr_html_(self) -> str:
        return show_run(self.folder.name, self.results)

    def _files(self, part: str, model: str | None, lens: str | None = None) -> list[str]:
        """The parquet files of one model and lens, or of all."""
        cells = {cell: cell_names(self.store, cell) for cell in self.store.cells}
        files = [
            str(self.store.file(shard, part))
            for shard in self.store.shards
            if cells[shard.cell][0] in ([model] if model else self.models)
            and lens in (None, cells[shard.cell][1])
            and (entry := self.store.entry(shard))
            and entry["files"]
        ]
        if not files:
            raise ArtefactError(f"{self.folder} holds no {part}; run the study again")
        return files


def open_run(folder: str | os.PathLike[str]) -> Run:
    """Read a study's folder, without torch. Raises ArtefactError where it is not one, or not finished."""
    store = open_store(folder)
    if not store.complete:
        raise ArtefactError(f"{folder} was not finished; give the command that began it again, and it goes on")
    if store.results is None:
        raise ArtefactError(
            f"{folder} has no results that can be read; give the command that began it again, and they are made anew"
        )
    return Run(store, store.results)


def sum_up(store: Store) -> dict[str, Any]:
    """The results of a run whose shards are all there: groups, trends, choices, contrasts, and what was left out."""
    models = _measured_models(store)
    lenses = {(name, lens): document["lenses"][lens] for name, document in models.items() for lens in document["lenses"]}
    depths = {pair: tuple(lens["focal_depths"]) for pair, lens in lenses.items()}
    chosen = {pair: pick_main(lens) for pair, lens in lenses.items()}
    entries = read_entries(store)
    table, study = read_samples(store, entries, UNCOUNTED), store.study
    return {
        "models": models,
        "refused": list_refused(store),
        **summarise(table, depths, study.contrasts, study.seed, chosen),
        **_count_losses(store, entries),
    }


def list_refused(store: Store) -> dict[str, str]:
    """Why models, and lenses of a model, were left out, by what a reader calls them."""
    refused = {}
    for number, spec in enumerate(store.study.models):
        if reason := store.refused(number):
            refused[spec.name] = reason
        else:
            refused |= {_name_pair(lens, spec.name): reason for lens, reason in store.left_out(number).items()}
    return refused


def _name_pair(lens: str, model: str) -> str:
    return f"{lens} on {model}"


def read_entries(store: Store) -> dict[Shard, dict[str, Any]]:
    """The ledger's entries of the models and lenses that were measured."""
    read = _cells_read(store)
    wanted = [shard for shard in store.shards if shard.cell in read]
    return {shard: entry for shard in wanted if (entry := store.entry(shard))}


def read_samples(
    store: Store, entries: Mapping[Shard, dict[str, Any]] | None = None, left: Collection[str] = ()
) -> pd.DataFrame:
    """All sample rows of a run, in the order of the study, without the columns that are `left` away."""
    found: dict[Cell, list[pa.Table]] = {}
    columns: dict[Cell, list[str]] = {}
    for shard, entry in (read_entries(store) if entries is None else entries).items():
        if entry["files"]:
            file = store.file(shard, "samples")
            if shard.cell not in columns:
                columns[shard.cell] = [name for name in read_columns(file) if name not in left]
            found.setdefault(shard.cell, []).append(read_parquet(file, columns[shard.cell]))
    parts = [pa.concat_tables(tables, promote_options="permissive").sort_by("sample") for tables in found.values()]
    if not parts:
        raise InputError(f"no sample of the run in {store.folder} could be read; {_first_loss(store)}")
    whole = pa.concat_tables(parts, promote_options="permissive")
    for name in CELL_NAMES:
        whole = whole.set_column(whole.column_names.index(name), name, whole[name].dictionary_encode())
    kinds = {"level": "Int64", "correct": "boolean", "generated": "string"}
    return whole.to_pandas().astype({name: kind for name, kind in kinds.items() if name not in left})


def _measured_models(store: Store) -> dict[str, dict[str, Any]]:
    """The models of a run by name, but for those that were refused."""
    measured, hidden = {}, ("refused", "files")
    for number in range(len(store.study.models)):
        document = store.model(number)
        if document and "lenses" in document and not store.refused(number):
            missing = store.left_out(number)
            shown = {name: value for name, value in document.items() if name not in hidden}
            lenses = {name: _without(lens, "refused") for name, lens in document["lenses"].items() if name not in missing}
            measured[document["name"]] = shown | {"lenses": lenses}
    return measured


def _cells_read(store: Store) -> set[Cell]:
    """The cells of the models and lenses that were measured."""
    measured = _measured_models(store)
    lenses = {name: document["lenses"] for name, document in measured.items()}
    return {cell for cell in store.cells if (names := cell_names(store, cell))[1] in lenses.get(names[0], {})}


def _without(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != name}


def _count_losses(store: Store, entries: Mapping[Shard, dict[str, Any]]) -> dict[str, Any]:
    """What was left out, cut or changed on the way, by task before any model and by shard (of one lens, since others read the
    same texts); the largest error of all; and with which versions shards were measured."""
    first: dict[int, int] = {}
    for shard in entries:
        first[shard.cell.model] = min(shard.cell.lens, first.get(shard.cell.model, shard.cell.lens))
    once = {shard: entry for shard, entry in entries.items() if shard.cell.lens == first[shard.cell.model]}
    skipped = [
        {"model": names[0], "task": names[2], **one}
        for shard, entry in once.items()
        if (names := cell_names(store, shard.cell))
        for one in entry["skipped"]
    ]
    undrawn = [{"task": task["name"], **one} for task in store.tasks for one in task["skipped"]]
    usual = store.study.batch_tokens
    wanted = _cells_read(store)
    read = {shard.cell for shard, entry in entries.items() if entry["files"]}
    manifests = [entry["manifest"] for entry in entries.values() if "manifest" in entry]
    return {
        "drawn": {task["name"]: task["count"] for task in store.tasks},
        "unread": [
            {"model": names[0], "task": names[2]}
            for cell in store.cells
            if cell in wanted and cell not in read and (names := cell_names(store, cell))
        ],
        "skipped": {"rows": len(undrawn), "samples": len(skipped), "first": [*undrawn, *skipped][:MOST_LISTED]},
        "cut": sum(entry["cut"] for entry in once.values()),
        "smaller_batches": sum(entry.get("batch_tokens", usual) < usual for entry in entries.values()),
        "largest_error": max((entry.get("largest_error", 0.0) for entry in entries.values()), default=0.0),
        "versions": sorted({_spell(one.get("versions", {})) for one in manifests}),
    }


def _spell(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _first_loss(store: Store) -> str:
    """Why the first sample was left out, as a part of a sentence."""
    losses = _count_losses(store, read_entries(store))
    first = next((one for one in losses["skipped"]["first"] if "sample" in one), None)
    return "none was drawn" if first is None else f"the first was left out since {first['reason']}"


def cell_names(store: Store, cell: Cell) -> tuple[str, str, str]:
    """The names of a cell's model, lens and task."""
    study = store.study
    return study.models[cell.model].name, study.lenses[cell.lens].name, study.tasks[cell.task].name


def _choose(kind: str, given: str | None, known: Sequence[str]) -> str:
    """The one that is meant: the given one, or the only one. Raises InputError."""
    if given is None and len(known) == 1:
        return known[0]
    if given is None or given not in known:
        what = f'there is no {kind} "{given}" in this run' if given else f"this run has {len(known)} {PLURALS[kind]}"
        raise InputError(f"{what}; choose from {', '.join(known)}")
    return given


def _list(names: Iterable[str], most: int = 5) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def _join(store: Store, parts: Sequence[tuple[Shard, pa.Table]]) -> Trajectory:
    """Shards of one model and lens as one trajectory, its samples in the order of the study."""
    tables, frames = [], []
    for shard, tokens in parts:
        frame = read_parquet(store.file(shard, "samples")).to_pandas().assign(cell=shard.cell.number)
        frames.append(frame)
        tables.append(tokens.append_column("cell", pa.array(np.full(len(tokens), shard.cell.number))))
    samples = pd.concat(frames, ignore_index=True).sort_values(["cell", "sample"], ignore_index=True)
    tokens = pa.concat_tables(tables, promote_options="default").sort_by(
        [(name, "ascending") for name in ("cell", "sample", "position")]
    )
    owners = pd.MultiIndex.from_arrays([samples["cell"], samples["sample"]]).get_indexer(
        pd.MultiIndex.from_arrays([tokens["cell"].to_numpy(), tokens["sample"].to_numpy()])
    )
    tokens = tokens.drop_columns(["cell", *CELL_NAMES])
    tokens = tokens.set_column(tokens.column_names.index("sample"), "sample", pa.array(owners))
    entries = [entry for shard, _ in parts if (entry := store.entry(shard))]
    if len({tuple(entry["manifest"].get(name) for name in READ_ALIKE) for entry in entries}) > 1:
        raise InputError("these tasks were read in different ways, so that their efforts cannot stand together; name one task")
    manifest = {**entries[0]["manifest"], "largest_error_in_run": max(entry["largest_error"] for entry in entries)}
    if spelled := {token: text for shard, _ in parts for token, text in read_spelling(store, shard).items()}:
        manifest["top_tokens"] = {str(token): spelled[token] for token in sorted(spelled)}
    texts = _with_texts(store, samples).drop(columns=["cell", "model", "lens", "sample"])
    return Trajectory.from_tables(manifest, tokens, texts.astype({"level": "Int64", "correct": "boolean"}))


def read_spelling(store: Store, shard: Shard) -> dict[int, str]:
    """The texts of the top tokens of a shard by their ids; none where no top tokens were kept."""
    if "spelling" not in (store.entry(shard) or {"files": {}})["files"]:
        return {}
    table = read_parquet(store.file(shard, "spelling"))
    return dict(zip(table["token_id"].to_pylist(), table["token_text"].to_pylist(), strict=True))


def _with_texts(store: Store, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with the prompt and target of each sample, as drawn, and with `text`, both or the prompt and what was said."""
    number = {spec.name: place for place, spec in enumerate(store.study.tasks)}
    places = np.array([number[name] for name in frame["spec"]])
    prompts, targets = np.empty(len(frame), dtype=object), np.empty(len(frame), dtype=object)
    for place in np.unique(places):
        samples, mine = store.samples(int(place)), np.flatnonzero(places == place)
        for row, sample in zip(mine, frame["sample"].to_numpy()[mine], strict=True):
            prompts[row], targets[row] = samples[sample].prompt, samples[sample].target
    said = [
        after if isinstance(after, str) else target or "" for after, target in zip(frame["generated"], targets, strict=True)
    ]
    texts = [prompt + after for prompt, after in zip(prompts, said, strict=True)]
    return frame.assign(text=texts, prompt=prompts, target=targets)
