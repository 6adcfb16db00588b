"""The folder of a run, begun, gone on with, begun anew, or only read."""

from __future__ import annotations

import os
import secrets
import shutil
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hyperlens.artefact import FORMAT, MANIFEST, MARKER, PARTIAL, check_place, is_artefact, place_json
from hyperlens.errors import ArtefactError, HyperLensWarning, InputError
from hyperlens.runs.spec import Study, compare_studies, parse_study
from hyperlens.runs.store import Store, explain_writing, read_json
from hyperlens.tasks import Drawn

KIND = "study"
OURS = (MARKER, "results.json", "shards", "models", "tasks", "claims", MANIFEST)
"""What a run's folder holds, in the order in which it is taken away: what shards are compared with goes after them."""


def begin(folder: str | os.PathLike[str], study: Study, draw: Callable[[int], Drawn], restart: bool = False) -> Store:
    """The store of a new run, or of the same study's run that was begun there; `draw` gives the samples of a task.

    Raises ArtefactError where the folder holds something else, InputError where it holds another study, saying what differs.
    """
    place = Path(folder).absolute()
    store = Store(place, study)
    try:
        drawn = _draw_all(study, draw)
    except InputError as error:
        if restart or not _is_run(place) or not store.drawn:
            raise
        drawn = []
        warnings.warn(
            f"the run goes on with the samples that it began with, which could not be drawn again ({error})",
            HyperLensWarning,
            stacklevel=3,
        )
    if restart and _is_run(place):
        _remove(place)
    if not _is_run(place):
        _check_new(place)
        head = {
            "written_by": "hyperlens",
            "format": FORMAT,
            "kind": KIND,
            "run": secrets.token_hex(8),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seed": study.seed,
            "study": study.describe(),
            "versions": _list_versions(),
        }
        place_json(place / MANIFEST, head, keep=True)
    if differences := compare_studies(store.manifest["study"], study.describe()):
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise InputError(
            f"{place} holds the run of another study: {'; '.join(differences[:3])}{more}; choose another folder with --out, or "
            "begin anew with --restart"
        )
    if store.manifest.get("versions") != _list_versions():
        warnings.warn(
            f"the run in {place} was begun with other versions ({_spell_versions(store.manifest.get('versions'))}; now "
            f"{_spell_versions(_list_versions())}), so that its last digits may differ from shard to shard",
            HyperLensWarning,
            stacklevel=3,
        )
    for number, one in enumerate(drawn):
        store.add_task(number, one)
    return store


def open_store(folder: str | os.PathLike[str]) -> Store:
    """The store of a run, finished or not. Raises ArtefactError where the folder holds none."""
    place = Path(folder).absolute()
    if not place.is_dir():
        what = "is a file" if place.exists() else "does not exist"
        raise ArtefactError(f"{place} {what}; expected the folder of a study")
    if not _is_run(place):
        kind = read_json(place / MANIFEST).get("kind", "artefact") if is_artefact(place) else None
        what = f"holds a {kind}, not a study" if kind else f"holds no {MANIFEST} of HyperLens"
        raise ArtefactError(f"{place} {what}; give the folder that hyperlens study wrote")
    manifest = read_json(place / MANIFEST, "format")
    if manifest["format"] > FORMAT:
        raise ArtefactError(f"{place} was written by a newer HyperLens; update this one to read it")
    try:
        return Store(place, parse_study(read_json(place / MANIFEST, "study", "run")["study"]))
    except (ArtefactError, InputError, TypeError):
        raise ArtefactError(f"{place} was written by another version of HyperLens; run the study again") from None


def _draw_all(study: Study, draw: Callable[[int], Drawn]) -> list[Drawn]:
    """The samples of every task. Raises the first task's InputError, and names the others that failed as well."""
    drawn, failed = [], []
    for number, task in enumerate(study.tasks):
        try:
            drawn.append(draw(number))
        except InputError as error:
            failed.append((task.name, error))
    if len(failed) > 1:
        others = "; ".join(f"{name}: {error}" for name, error in failed[1:])
        raise InputError(f"{failed[0][1]} ({len(failed) - 1} more: {others})")
    if failed:
        raise failed[0][1]
    return drawn


def _is_run(place: Path) -> bool:
    return is_artefact(place) and read_json(place / MANIFEST).get("kind") == KIND


def _check_new(place: Path) -> None:
    """That a run may be begun in the folder, or was by another process just now. Raises ArtefactError."""
    try:
        check_place(place, KIND)
    except ArtefactError:
        if not _is_run(place):
            raise


def _remove(place: Path) -> None:
    """Take away all that a run wrote. Raises ArtefactError, before anything is gone, where there is something else."""
    with explain_writing(place):
        foreign = [file.name for file in place.iterdir() if file.name not in OURS and file.suffix != PARTIAL]
        if foreign:
            raise ArtefactError(
                f"{place} holds {foreign[0]}, which HyperLens did not write; nothing was removed: move it away, or choose "
                "another folder with --out"
            )
        for name in OURS:
            part = place / name
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def _list_versions() -> dict[str, str]:
    return {name: version(name) for name in ("hyperlens", "torch", "transformers", "numpy")}


def _spell_versions(versions: Any) -> str:
    return ", ".join(f"{name} {number}" for name, number in (versions or {}).items())
