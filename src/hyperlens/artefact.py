"""A folder of results: `manifest.json`, other json, parquet shards, and the marker that is written last.

It is written beside its place and moved there whole, so that a folder with a marker is complete, and one that was there
before is gone only once its successor has arrived.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hyperlens.errors import ArtefactError

FORMAT = 1
MANIFEST, MARKER = "manifest.json", "COMPLETE"
WORTH_THREADS = 2**24
"""Bytes of a parquet file from which on several threads read it sooner than one."""
ROWS_TOGETHER = 2**14
"""Rows of a parquet file that are read together where only some of them are wanted."""
PARTIAL = ".partial"
"""How the names end of what is being written."""
MARK = '<meta name="generator" content="HyperLens">'
"""What tells a page of ours from a file that must not be replaced."""


def list_versions(*packages: str) -> dict[str, str]:
    """The versions of installed packages and of Python, as results keep them. Looked up once: it takes milliseconds each."""
    return {name: _find_version(name) for name in packages} | {"python": platform.python_version()}


@cache
def _find_version(package: str) -> str:
    return version(package)


def write_artefact(
    folder: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    tables: Mapping[str, pa.Table],
    documents: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write `tables` as `<name>.parquet`, `documents` as `<name>.json` and `files` (of tensors) as they are into `folder`.

    Gives its path.

    Raises ArtefactError where the folder holds something that is not ours, or results of another kind, or cannot be written;
    nothing is lost then.
    """

    def write(partial: Path) -> None:
        head = {"written_by": "hyperlens", "format": FORMAT, **manifest}
        for name, document in {"manifest": head, **(documents or {})}.items():
            _write_synced(partial / f"{name}.json", to_json(document, indent=1))
        for name, table in tables.items():
            _write_table(partial / f"{name}.parquet", table)
        for name, content in (files or {}).items():
            _write_synced(partial / name, content)
        _write_synced(partial / MARKER, "")

    return place_folder(check_place(folder, manifest.get("kind")), write)


def place_folder(place: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a folder beside `place`, and move it there whole; gives the path. Raises ArtefactError, what was there
    intact."""
    partial = place.with_name(f".{place.name}.{os.getpid()}{PARTIAL}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        _move_into_place(partial, place)
    except OSError as error:
        raise ArtefactError(f"{place} cannot be written ({error.strerror}); choose another folder with --out") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return place


def write_file(place: Path, text: str) -> Path:
    """Write `text` beside `place` and move it there; gives the path. Raises ArtefactError, what was there intact."""
    place = check_file(place)
    partial = place.with_name(f".{place.name}.{os.getpid()}{PARTIAL}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _write_synced(partial, text)
        os.replace(partial, place)
    except OSError as error:
        raise ArtefactError(f"{place} cannot be written ({error.strerror}); choose another place with --out") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return place


def place_json(place: Path, document: Any, keep: bool = False) -> None:
    """Write a json document beside `place` and move it there, unless (with `keep`) one is there already. Raises
    ArtefactError."""
    text = to_json(document, indent=1)
    _place(place, lambda file: _write_synced(file, text), keep)


def place_bytes(place: Path, content: bytes) -> None:
    """Write a file beside `place` and move it there. Raises ArtefactError."""
    _place(place, lambda file: _write_synced(file, content))


def place_table(place: Path, table: pa.Table) -> None:
    """Write a parquet table beside `place` and move it there. Raises ArtefactError."""
    _place(place, lambda file: _write_table(file, table))


def hash_file(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _place(place: Path, write: Callable[[Path], None], keep: bool = False) -> None:
    """Let `write` make a file beside `place`, and move it there whole."""
    partial = place.with_name(f".{place.name}.{platform.node()}.{os.getpid()}.{threading.get_ident()}{PARTIAL}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        if keep:
            _place_first(partial, place)
        else:
            os.replace(partial, place)
        _sync(place.parent)
    except OSError as error:
        raise ArtefactError(
            f"{place} cannot be written ({error.strerror}); what was saved before is intact: make room, or choose another "
            "folder with --out"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _place_first(partial: Path, place: Path) -> None:
    """Move a file to its place, unless one is there."""
    try:
        os.link(partial, place)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links: what is there by now may be lost, if it came this very moment
        if not place.exists():
            os.replace(partial, place)


def check_file(file: str | os.PathLike[str], ours: str = "") -> Path:
    """The file as an absolute path, if it may be written: it is no folder and, where it exists, holds the mark `ours`."""
    place = Path(file).absolute()
    try:
        if place.is_dir():
            raise ArtefactError(f"{place} is a folder; give the name of a file")
        if ours and place.exists() and ours not in place.read_text(encoding="utf-8", errors="replace")[:2000]:
            raise ArtefactError(
                f"{place} exists and was not written by HyperLens for this; nothing was written, choose another place"
            )
    except OSError as error:
        raise ArtefactError(f"{place} cannot be read ({error.strerror}); choose another place") from None
    return place


def page_beside(folder: str | os.PathLike[str]) -> Path:
    """Where the page of a folder of results stands: beside it, under its name."""
    place = Path(folder).absolute()
    return place.with_name(f"{place.name}.html")


def check_place(folder: str | os.PathLike[str], kind: str | None = None) -> Path:
    """The folder as a path, if results of a kind may be written there: it does not exist, is empty, or holds an artefact of
    ours of that kind, such as "trajectory". Raises ArtefactError."""
    place = Path(folder).absolute()
    try:
        if place.exists() and not place.is_dir():
            raise ArtefactError(f"{place} is a file; results need a folder of their own, choose another with --out")
        found = [file for file in place.iterdir() if file.suffix != PARTIAL] if place.is_dir() else []
        manifest = _read_manifest(place)
        if manifest is not None and manifest.get("kind") != kind:
            raise ArtefactError(
                f"{place} holds other results of HyperLens ({manifest.get('kind', 'of no kind')}); nothing was written, choose "
                "another folder with --out"
            )
        if found and not (manifest is not None and all(map(_could_be_ours, found))):
            raise ArtefactError(
                f"{place} exists and does not hold results of HyperLens; nothing was written, choose another folder with --out"
            )
        nearest = next(parent for parent in place.parents if parent.exists())
    except PermissionError:
        raise ArtefactError(f"{place} cannot be read; choose another folder with --out") from None
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ArtefactError(f"{place} cannot be written, since {nearest} is not a writable folder; choose another with --out")
    return place


def is_artefact(folder: Path) -> bool:
    """Whether `folder` holds a manifest of ours."""
    return _read_manifest(folder) is not None


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest in a folder, if it is ours."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(manifest, dict) and manifest.get("written_by") == "hyperlens" and isinstance(manifest.get("format"), int)
    return manifest if ours else None


def _could_be_ours(file: Path) -> bool:
    """Whether an artefact could hold such a file: what is not of its kinds is never removed with it."""
    return file.is_file() and (file.name == MARKER or file.suffix in (".json", ".parquet", ".safetensors"))


def read_document(folder: str | os.PathLike[str], name: str = "manifest") -> dict[str, Any]:
    """One json document of a complete artefact. Raises ArtefactError where the folder is not one."""
    place = Path(folder)
    if not place.is_dir():
        raise ArtefactError(f"{place} does not exist; expected a folder that HyperLens wrote")
    if not is_artefact(place):
        raise ArtefactError(f"{place} holds no {MANIFEST} of HyperLens; expected a folder that it wrote")
    if not (place / MARKER).exists():
        raise ArtefactError(f"{place} was not finished, since its marker {MARKER} is missing; run the command again")
    if json.loads((place / MANIFEST).read_text(encoding="utf-8"))["format"] > FORMAT:
        raise ArtefactError(f"{place} was written by a newer HyperLens; update this one to read it")
    try:
        return json.loads((place / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{place / name}.json cannot be read ({error}); write the results again") from None


def read_table(folder: str | os.PathLike[str], name: str) -> pa.Table:
    """One parquet table of an artefact. Raises ArtefactError where it is missing or damaged."""
    return read_parquet(Path(folder) / f"{name}.parquet")


def read_columns(file: Path) -> list[str]:
    """The names of a parquet file's columns. Raises ArtefactError where it is missing or damaged."""
    try:
        return pq.read_schema(file).names
    except (OSError, pa.ArrowInvalid) as error:
        raise ArtefactError(f"{file} cannot be read ({str(error).splitlines()[0]}); write the results again") from None


def read_parquet(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A parquet file, or some of its columns. Raises ArtefactError where it is missing or damaged."""
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            return opened.read(columns, use_threads=file.stat().st_size > WORTH_THREADS)
    except (OSError, pa.ArrowInvalid) as error:
        raise ArtefactError(f"{file} cannot be read ({str(error).splitlines()[0]}); write the results again") from None


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON: NaN and infinities become null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value


def _encoding(table: pa.Table) -> dict[str, Any]:
    """Byte-stream-split for the float32 columns, whose bytes compress apart; dictionaries for the rest."""
    floats = [field.name for field in table.schema if pa.types.is_fixed_size_list(field.type)]
    others = [field.name for field in table.schema if field.name not in floats]
    return {"use_dictionary": others, "use_byte_stream_split": [f"{name}.list.element" for name in floats]}


def _write_synced(file: Path, content: str | bytes) -> None:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    _sync(file)


def _write_table(file: Path, table: pa.Table) -> None:
    pq.write_table(table, file, ROWS_TOGETHER, compression="zstd", write_page_checksum=True, **_encoding(table))
    _sync(file)


def _sync(file: Path) -> None:
    """Have a file, or a folder's list of files, on the disk."""
    opened = os.open(file, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _move_into_place(partial: Path, place: Path) -> None:
    """Move the finished folder to its place; what was there goes only after it."""
    before = place.with_name(f".{place.name}.{os.getpid()}.before")
    if place.exists():
        os.replace(place, before)
    os.replace(partial, place)
    shutil.rmtree(before, ignore_errors=True)
