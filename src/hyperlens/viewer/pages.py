"""What the pages of runs, of one run and of two beside one another say, from their tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from hyperlens.diagnosis import MEASURES
from hyperlens.errors import HyperLensError
from hyperlens.runs import Comparison
from hyperlens.runs.caveats import pick_main
from hyperlens.viewer.library import Library, Opened

Row = dict[str, Any]


def list_runs(library: Library) -> list[Row]:
    """A row for each run, also of those that cannot be read: `error` says why."""
    return [_describe_row(library, str(number)) for number in range(len(library.places))]


def describe_run(library: Library, opened: Opened, number: str) -> Row:
    """A run's own page: what it is, its tables so far, and what weakens them."""
    results = library.results(opened)
    tasks = dict.fromkeys(row["task"] for row in results["groups"])
    return {
        "id": number,
        "name": opened.store.study.name,
        "state": _name_state(opened),
        "shards": opened.count_shards(),
        "manifest": opened.run.manifest,
        "results": results,
        "caveats": library.caveats(opened),
        "models": {name: _name_main(document) for name, document in opened.run.models.items()},
        "tasks": list(tasks) or [spec.name for spec in opened.store.study.tasks],
    }


def _name_main(model: Row) -> Row:
    """A model with the focal depth that stands for each of its lenses, as `main`."""
    lenses = {name: lens | {"main": pick_main(lens)} for name, lens in model["lenses"].items()}
    return model | {"lenses": lenses}


def tabulate_effort(library: Library, opened: Opened, model: str, lens: str) -> Row:
    """Accuracy, confidence and effort by task, level and focal depth, flat; the trends and contrasts as they are in results."""
    results = library.results(opened)
    mine = {
        kind: [row for row in results[kind] if (row["model"], row["lens"]) == (model, lens)]
        for kind in ("groups", "trends", "contrasts", "choices")
    }
    depths = opened.run.models[model]["lenses"][lens]["focal_depths"]
    rows = [_flatten_group(group, depth) for group in mine.pop("groups") for depth in depths]
    return {"rows": rows, **mine}


def describe_comparison(comparison: Comparison) -> Row:
    """What changed, at the comparison's main focal depth, and the samples that broke."""
    return {
        "sides": {"before": comparison.before, "after": comparison.after, "lens": comparison.lens},
        "verdicts": comparison.verdicts,
        "changes": list(_flatten_changes(comparison)),
        "quadrants": comparison.quadrants,
        "broken": [asdict(one) for one in comparison.broken],
        "count_broken": comparison.count_broken,
        "samples": len(comparison.samples),
    }


def _describe_row(library: Library, number: str) -> Row:
    place = library.places[int(number)]
    row = {"id": number, "name": place.folder.name, "place": library.names[int(number)], "state": "unreadable", "error": None}
    row |= {"created": None, "models": [], "lenses": [], "tasks": [], "samples": 0, "shards": (0, 0)}
    try:
        with library.reading(number) as (opened,):
            return row | _describe_study(opened)
    except HyperLensError as error:
        return row | {"error": str(error)}


def _describe_study(opened: Opened) -> Row:
    study, store = opened.store.study, opened.store
    return {
        "name": study.name,
        "state": _name_state(opened),
        "created": opened.run.manifest.get("created"),
        "models": [one.name for one in study.models],
        "lenses": [one.name for one in study.lenses],
        "tasks": [one.name for one in study.tasks],
        "samples": sum(task["count"] for task in store.tasks) if store.drawn else 0,
        "shards": opened.count_shards(),
    }


def _name_state(opened: Opened) -> str:
    return "finished" if opened.finished else "running"


def _flatten_group(group: Row, depth: int) -> Row:
    """A group at one focal depth."""
    key = str(depth)
    right = group["correct"]
    return {
        **{name: group[name] for name in ("task", "level", "n", "accuracy", "confidence", "tokens", "read")},
        "depth": depth,
        **_spell(group["effort"][key], "effort", ""),
        **_spell(group["commit"][key], "commit", "commit_"),
        **_spell(group["struggle"][key], "struggle", "struggle_"),
        "undefined": group["undefined"][key],
        **{f"accuracy_{bound}": value for bound, value in group["accuracy_interval"].items()},
        "correct": {"n": right["n"], "confidence": right["confidence"], **_spell(right["effort"][key], "effort", "")},
    }


def _spell(mean: Row, name: str, before: str) -> Row:
    return {name: mean["mean"], f"{before}low": mean["low"], f"{before}high": mean["high"]}


def _flatten_changes(comparison: Comparison) -> Iterator[Row]:
    """A row for each measure of each task and level."""
    for row in comparison.changes:
        if row["depth"] == comparison.lens["depth"]:
            for measure in MEASURES:
                change = row[measure]
                yield {
                    **{name: row[name] for name in ("task", "level", "depth")},
                    "measure": measure,
                    **{name: change[name] for name in ("before", "after", "direction")},
                    **change["difference"],
                }
