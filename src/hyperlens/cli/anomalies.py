"""The command about odd trajectories: `anomalies`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperlens.cli.app import Json, ReadingNames, Seed, app, make_console, parse_depths, print_json, split, working
from hyperlens.errors import InputError, first_sentence

if TYPE_CHECKING:
    from hyperlens.anomalies import Features

OURS = '"kind": "anomalies"'
"""What tells a document of this command from a file that must not be replaced, be it another of ours."""
LABELS = {"1": True, "true": True, "yes": True, "odd": True, "0": False, "false": False, "no": False, "normal": False}


@app.command()
def anomalies(
    normal: Annotated[Path, typer.Argument(metavar="NORMAL", help="Folder of a study, or of trace --out: normal samples.")],
    scored: Annotated[list[Path] | None, typer.Argument(metavar="SCORED...", help="Folders whose samples are scored.")] = None,
    normal_task: Annotated[
        list[str] | None, typer.Option("--normal-task", help="A task of NORMAL that is normal; all by default.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option("--task", help="A task to score; all others by default.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Which of a study's models.")] = None,
    lens: Annotated[str | None, typer.Option("--lens", help="Which of a study's lenses.")] = None,
    method: Annotated[
        str, typer.Option("--method", help="both; or isolation-forest, local-outlier-factor, mahalanobis.")
    ] = "both",
    focal_depth: Annotated[str, typer.Option("--focal-depth", help="Those to use, such as 0,2; all that were read.")] = "",
    reading: ReadingNames = "probability",
    labels: Annotated[Path | None, typer.Option("--labels", help="CSV with columns id and label (1: odd, 0: not).")] = None,
    top: Annotated[int, typer.Option("--top", help="How many of the oddest samples to list.")] = 5,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", help="File for all scores and settings, as JSON.")] = None,
    json: Json = False,
) -> None:
    """Score how odd the trajectories of samples are beside normal ones: fitted on half of NORMAL, compared with the other."""
    from hyperlens.anomalies import DETECTORS, compare_with_normal, join_features
    from hyperlens.artefact import check_file, to_json, write_file

    if out is not None:
        check_file(out, OURS)
    if top < 0:
        raise InputError(f"{top} samples cannot be listed; give a number from 0 up")
    known = None if labels is None else _read_labels(labels)
    depths, readings = _choose_depths(focal_depth), split(reading)
    _check_choices([normal, *(scored or [])], {"--model": model, "--lens": lens})
    with working("fitting and scoring"):
        usual = _gather(normal, normal_task, model, lens, readings, depths)
        depths = depths or tuple(next(iter(usual.values())).source["focal depths"])
        groups = _gather_scored(normal, set(usual), scored, task, (model, lens, readings, depths))
        methods = DETECTORS if method == "both" else split(method)
        found = compare_with_normal(join_features(list(usual.values())), groups, methods, seed, known)
    document = {
        "written_by": "hyperlens",
        "kind": "anomalies",
        "folders": _describe_folders([normal, *(scored or [])]),
        **found,
    }
    document["normal"] = {"tasks": list(usual), **found["normal"]}
    if out is not None:
        write_file(out, to_json(document, indent=1) + "\n")
    if json:
        print_json(document)
        return
    from hyperlens.terminal import show_anomalies

    show_anomalies(make_console(), document, top)


def _choose_depths(given: str) -> tuple[int, ...] | None:
    """The focal depths that were asked for, if any."""
    depths = parse_depths(given) if given else None
    if isinstance(depths, str):
        raise InputError(f'focal depth "{given}" cannot be chosen here; give some of those that were read, such as 0,2')
    return depths


def _is_study(folder: Path) -> bool:
    """Whether a folder is a study's and not a trajectory's. Raises ArtefactError where it is none of ours."""
    from hyperlens.artefact import read_document

    return read_document(folder).get("kind") == "study"


def _check_choices(folders: Sequence[Path], given: Mapping[str, str | None]) -> None:
    """Raises InputError for a choice between what no folder has several of."""
    if chosen := [name for name, value in given.items() if value is not None and not any(map(_is_study, folders))]:
        raise InputError(f"{chosen[0]} chooses within a study, and {folders[0]} is a single trajectory; leave {chosen[0]} away")


def _gather(
    folder: Path,
    tasks: Sequence[str] | None,
    model: str | None,
    lens: str | None,
    readings: Sequence[str],
    depths: tuple[int, ...] | None,
) -> dict[str, Features]:
    """The features of each wanted task of a study's or trajectory's folder; of all of them where none is named."""
    from hyperlens.anomalies import gather_features
    from hyperlens.runs import open_run
    from hyperlens.trajectory import Trajectory

    if _is_study(folder):
        run = open_run(folder)
        names = [spec.name for spec in run.store.study.tasks]
        found = {name: gather_features(run.trajectory(name, model, lens), readings, depths) for name in tasks or names}
    else:
        whole = gather_features(Trajectory.load(folder), readings, depths)
        owners = whole.samples["task"].to_numpy()
        found = {name: whole.pick(owners == name) for name in dict.fromkeys(owners)}
        if missing := [name for name in tasks or () if name not in found]:
            there = ", ".join(f'"{name}"' for name in found)
            raise InputError(f'there is no task "{missing[0]}" in {folder}; it has {there}')
        found = {name: found[name] for name in tasks or found}
    return {name or folder.name: features for name, features in found.items()}


def _gather_scored(
    normal: Path, usual: set[str], scored: Sequence[Path] | None, tasks: Sequence[str] | None, how: tuple[Any, ...]
) -> dict[str, Features]:
    """The features of each group that is scored: the tasks of the scored folders, or the other tasks of the normal one."""
    if not scored:
        found = _gather(normal, tasks, *how)
        groups = {name: features for name, features in found.items() if tasks or name not in usual}
    else:
        parts = {folder: _gather(folder, tasks, *how) for folder in dict.fromkeys(scored)}
        several = len(parts) > 1
        groups = {
            f"{folder}/{name}" if several else name: features
            for folder, found in parts.items()
            for name, features in found.items()
        }
    if not groups:
        raise InputError(
            f"all tasks of {normal} are normal, so that none is left to score; give another folder, or name the normal ones "
            "with --normal-task"
        )
    return groups


def _read_labels(file: Path) -> dict[str, bool]:
    """Sample id -> whether it is odd."""
    import pandas as pd

    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as a table of labels ({first_sentence(error)}); give a CSV file") from None
    if missing := [name for name in ("id", "label") if name not in table.columns]:
        raise InputError(f'{file} has no column "{missing[0]}"; its columns must be id and label')
    found: dict[str, bool] = {}
    for key, label in zip(table["id"], table["label"], strict=True):
        if (odd := LABELS.get(str(label).strip().lower())) is None:
            raise InputError(f'{file} has the label "{label}"; give 1 for odd samples and 0 for others')
        if found.setdefault(key, odd) != odd:
            raise InputError(f'{file} labels "{key}" both as odd and as not odd; leave one of the two away')
    return found


def _describe_folders(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Where samples came from: the folder, its kind, when it was written and, of a study, its run."""
    from hyperlens.artefact import read_document

    found = []
    for folder in dict.fromkeys(folders):
        manifest = read_document(folder)
        found.append({"folder": str(folder), **{name: manifest.get(name) for name in ("kind", "run", "created")}})
    return found
