"""Which folders are shown, and that nothing outside of them is read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hyperlens.artefact import MANIFEST, MARKER
from hyperlens.errors import ArtefactError
from hyperlens.runs.opening import KIND
from hyperlens.runs.store import read_json

Stamp = tuple[tuple[str, int, int, int], ...]
"""Names, times, sizes and numbers of files."""


@dataclass(frozen=True)
class Place:
    """The folder of a run, and the folder that was given on the command line: itself, or the one that holds it."""

    folder: Path
    root: Path

    def check(self) -> None:
        """That all in the folder are files or folders that lie in the given one, links followed. Raises ArtefactError."""
        _check_entry(self.folder, self.root)
        _check_folder(self.folder, self.root, set())

    def stamp(self) -> Stamp:
        """What changes when another shard of the run is finished, or the run is, or it is begun anew."""
        watched = [self.folder / name for name in (MANIFEST, "results.json", MARKER, "tasks", "models", "shards")]
        shards = sorted(watched[-1].iterdir()) if watched[-1].is_dir() else []
        return tuple(_stamp_file(file) for file in (*watched, *shards))


def find_places(given: Sequence[str | os.PathLike[str]]) -> tuple[Place, ...]:
    """The runs to show, each once: the given folders, and of one that is no run itself the runs directly in it."""
    found: dict[Path, Place] = {}
    for one in given:
        root = _follow(one)
        inside = [] if os.path.lexists(root / MANIFEST) else list(_list_runs(root))
        for folder in inside or [root]:
            real = _follow(folder)
            found.setdefault(real if real.is_relative_to(root) else folder, Place(folder, root))
    return tuple(found.values())


def _list_runs(root: Path) -> Iterator[Path]:
    """The folders directly in one that hold a run, or what may have been one."""
    readable = os.path.isdir(root) and os.access(root, os.R_OK | os.X_OK)
    for folder in sorted(root.iterdir()) if readable else []:
        if os.path.lexists(folder / MANIFEST) and not folder.name.startswith(".") and _may_be_run(folder / MANIFEST, root):
            yield folder


def _may_be_run(manifest: Path, root: Path) -> bool:
    """Whether a manifest is one of a run, or cannot be looked at: then its row says why."""
    if not os.path.isfile(manifest) or not _follow(manifest).is_relative_to(root):
        return True
    try:
        return read_json(manifest).get("kind") == KIND
    except ArtefactError:
        return True


def _check_folder(folder: Path, root: Path, seen: set[Path]) -> None:
    if (real := _follow(folder)) in seen:
        return
    seen.add(real)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink() or not entry.is_file():
                _check_entry(Path(entry.path), root)
                if entry.is_dir():
                    _check_folder(Path(entry.path), root, seen)


def _check_entry(path: Path, root: Path) -> None:
    if not _follow(path).is_relative_to(root):
        raise ArtefactError(f"{path} is a link that leads out of {root}, and only what lies in the given folders is read")
    if not path.is_dir() and not path.is_file():
        raise ArtefactError(f"{path} is neither a file nor a folder; expected the folder of a study")


def _follow(path: str | os.PathLike[str]) -> Path:
    """Where a path leads, links followed; one that leads in a circle stays as it is."""
    return Path(os.path.realpath(path))


def _stamp_file(file: Path) -> tuple[str, int, int, int]:
    try:
        state = file.stat()
    except OSError:
        return file.name, 0, 0, 0
    # not the time of the last writing, which whoever wrote can set back
    return file.name, state.st_ctime_ns, state.st_size, state.st_ino
