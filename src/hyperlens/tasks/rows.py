"""Rows by column, from a file or a folder: JSON lines, JSON, CSV or parquet."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hyperlens.errors import InputError
from hyperlens.tasks.files import read_lines, read_text
from hyperlens.tasks.hub import load_saved

ADVICE = (
    "; rename them to prompt and target, or give messages, a chat (the file of a study can say what they are made of instead)"
)
MOST_COLUMNS = 12
"""Columns that a message names."""
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
SPLITS = ("train", "validation", "valid", "dev", "test")
SAVED = ("dataset_dict.json", "state.json")
"""The files by which a folder is known that `datasets` saved."""


class Row(dict[str, Any]):
    """A row by column. A column that it lacks is None where other rows of its data have it, and refused where none has."""

    def __init__(self, values: Mapping[str, Any], place: str, columns: tuple[str, ...]) -> None:
        super().__init__(values)
        self.place = place
        self.columns = columns

    def __missing__(self, column: str) -> Any:
        if column in self.columns:
            return None
        there = ", ".join(self.columns[:MOST_COLUMNS]) + " …" * (len(self.columns) > MOST_COLUMNS) or "none"
        advice = ADVICE if column == "prompt" else suggest(column, self.columns) or "; name one of these"
        raise InputError(f'{self.place} has no column "{column}" (its columns are {there}){advice}')


def suggest(word: str, choices: Iterable[str]) -> str:
    """What may have been meant by a misspelt word, as the end of a sentence; nothing where no choice is near."""
    near = difflib.get_close_matches(word, list(choices), 1)
    return f'; did you mean "{near[0]}"?' if near else ""


def label_rows(rows: Sequence[Mapping[str, Any]], source: str) -> list[Row]:
    """The rows with their places and all their columns, for errors."""
    columns = tuple(dict.fromkeys(column for row in rows for column in row))
    return [Row(row, f"row {number} of {source}", columns) for number, row in enumerate(rows, 1)]


def read_rows(path: Path, split: str, subsets: Collection[str] = (), any_split: bool = False) -> list[Row]:
    """The rows of a file, or of the files of a split in a folder. Raises InputError where there are none.

    In a folder the files named after the split are read, or else its only file, if that is not named after another split
    (or `any_split` is given).
    """
    if not path.is_dir():
        return label_rows(_read_file(path), str(path))
    if any((path / name).is_file() for name in SAVED):
        return label_rows(load_saved(path, split, any_split), str(path))
    files = find_files(path, split, subsets) or _only_file(path, split, any_split)
    return label_rows([row for file in files for row in _read_file(file)], str(files[0] if len(files) == 1 else path))


def find_files(folder: Path, split: str, subsets: Collection[str] = ()) -> list[Path]:
    """The files named after a split (or after a subset, where that is one file) in a folder, in its `data`, or in its folders
    of the subsets."""
    for spot in (folder, folder / "data"):
        if files := _pick(spot, split) or _pick(spot, "", subsets):
            return files
    return [file for subset in subsets for spot in (folder / subset, folder / "data" / subset) for file in _pick(spot, split)]


def _pick(folder: Path, split: str, names: Collection[str] = ()) -> list[Path]:
    """The files of one format in a folder that are called `split` or one of `names`, or have the split as a word of theirs."""
    files = _list_files(folder)
    exact = [file for file in files if file.stem in (split, *names)]
    word = re.compile(rf"(?:^|[-_.]){re.escape(split)}(?:[-_.]|$)")
    found = exact or ([file for file in files if word.search(file.stem)] if split else [])
    found = [file for file in found if file.suffix == found[0].suffix]
    if len(found) > 1 and not names and not all(re.search(r"-\d+-of-\d+(-[0-9a-f]+)?$", file.stem) for file in found):
        raise InputError(f"{folder} has several files for {split} ({_named(found)}); give path = the one to read")
    return found


def _list_files(folder: Path) -> list[Path]:
    """The data files of a folder, by format and name."""
    if not folder.is_dir():
        return []
    files = [file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES]
    return sorted(files, key=lambda file: (SUFFIXES.index(file.suffix.lower()), file.name))


def _only_file(folder: Path, split: str, any_split: bool) -> list[Path]:
    files = _list_files(folder)
    if len(files) != 1:
        what = f"several files ({_named(files)})" if files else "no file"
        raise InputError(f"{folder} has {what} for {split}; put there {split}.jsonl, .json, .csv or .parquet, or give its file")
    others = {other for other in SPLITS if other != split and re.search(rf"(?:^|[-_.]){other}(?:[-_.]|$)", files[0].stem)}
    if others and not any_split:
        raise InputError(
            f'{folder} has {files[0].name} and nothing for {split}; put {split}.jsonl there, or give split = "{others.pop()}"'
        )
    return files


def _named(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files[:8]) + (" …" if len(files) > 8 else "")


def _read_file(path: Path) -> list[dict[str, Any]]:
    """The rows of one file, by its suffix; a file of any other suffix holds a text or a JSON object per line."""
    match path.suffix.lower():
        case ".json":
            return _read_json(path)
        case ".csv":
            return _read_csv(path)
        case ".parquet":
            return _read_parquet(path)
        case _:
            return [row for _, row in read_lines(path)]


def _read_json(path: Path) -> list[dict[str, Any]]:
    """A list of objects, alone or as `data`; some files of this name have one object per line."""
    text = read_text(path)
    try:
        held = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.startswith("{"):
            return [row for _, row in read_lines(path)]
        raise InputError(f"{path} is not JSON ({error}); expected a list of objects, or one object per line") from None
    rows = held.get("data", [held]) if isinstance(held, dict) else held
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} is JSON, but no list of objects; give a list of rows, or the rows as data")
    return rows


def _find_separator(path: Path) -> str:
    """What stands between the columns: a comma, unless the first line has none and semicolons or tabs."""
    with path.open(encoding="utf-8-sig", errors="replace") as opened:
        head = opened.readline()
    return next((sign for sign in ",;\t" if sign in head), ",")


def _read_csv(path: Path) -> list[dict[str, Any]]:
    """All values as text; what a row lacks at its end is no value."""
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", sep=_find_separator(path))
    except pd.errors.EmptyDataError:
        return []
    except (pd.errors.ParserError, UnicodeDecodeError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip()
        raise InputError(f"{path} cannot be read ({reason}); give a CSV file in UTF-8 whose first line names columns") from None
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(column): value for column, value in row.items()} for row in rows]


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path).read().to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
        raise InputError(f"{path} cannot be read ({reason}); give a parquet file") from None
