"""One's own texts: a file with one text, or one JSON object, per line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hyperlens.errors import InputError
from hyperlens.tasks.sample import Sample


def read_samples(file: str | os.PathLike[str]) -> list[Sample]:
    """The samples of a UTF-8 file, blank lines left out.

    A line that begins with `{` is an object with `prompt` (or `text`) and optionally `target`, `options` (a list), `task`,
    `level` (a whole number), `id` and `images` (a list of files, named as seen from this one); any other line is a prompt.
    Raises InputError with the number of a malformed line.
    """
    path = Path(file)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a file of texts, one per line") from None
    samples = [
        _read_line(line, f"line {number} of {path}", f"{path.stem}/{number}", path)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not samples:
        raise InputError(f"{path} holds no text; give one text or JSON object per line")
    return samples


def _read_line(line: str, place: str, name: str, file: Path) -> Sample:
    if not line.lstrip().startswith("{"):
        return Sample(line, task=file.stem, id=name)
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON ({error}); expected one object per line") from None
    prompt = _field(row, "prompt" if "prompt" in row else "text", str, place)
    if prompt is None:
        raise InputError(f"{place} has no prompt (its fields are {', '.join(row) or 'none'}); give it as prompt or text")
    return Sample(
        prompt,
        _field(row, "target", str, place),
        tuple(_texts(row, "options", place, '["yes", "no"]')),
        _field(row, "task", str, place) or file.stem,
        _field(row, "level", int, place),
        str(row.get("id", name)),
        tuple(str(file.parent / image) for image in _texts(row, "images", place, '["cat.png"]')),
    )


def _field(row: dict[str, Any], name: str, kind: type, place: str) -> Any:
    value = row.get(name)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        expected = "a whole number" if kind is int else "text"
        raise InputError(f"{place} has {type(value).__name__} as {name}; expected {expected}")
    if kind is int and value is not None and abs(value) >= 2**31:
        raise InputError(f"{place} has {value} as {name}; expected a number of steps")
    return value


def _texts(row: dict[str, Any], name: str, place: str, example: str) -> list[str]:
    """A field that is a list of texts, or absent."""
    texts = row.get(name) or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{place} has {name} that are no list of texts; expected a list such as {example}")
    return texts
