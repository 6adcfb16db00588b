"""One's own data: rows of any columns, put by templates."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from hyperlens.errors import InputError
from hyperlens.tasks.chats import MESSAGES, is_chat, read_chat
from hyperlens.tasks.datasets.data_set import NO_ANSWER, DataSet, Make
from hyperlens.tasks.files import check_level, list_texts
from hyperlens.tasks.grading import grade_option
from hyperlens.tasks.options import find_gold
from hyperlens.tasks.rows import Row
from hyperlens.tasks.sample import Sample
from hyperlens.tasks.spec import TaskSpec
from hyperlens.tasks.template import fill_template

PUT_BY = ("prompt", "target", "options", "gold", "level", "id")
"""The fields of a task that say how rows are put."""


def describe_own(spec: TaskSpec, folder: Path) -> DataSet:
    """A task of one's own as a data set; images of its rows are named as seen from `folder`."""
    return DataSet(
        spec.name, "", "", put_rows(spec, folder), grade_option, read="", max_new_tokens=64, split=spec.split or "test"
    )


def is_templated(spec: TaskSpec) -> bool:
    """Whether the task says how its rows are put."""
    return any(getattr(spec, field) for field in PUT_BY)


def put_rows(spec: TaskSpec, folder: Path) -> Make:
    """How the task puts a row. Without a template of the prompt, the columns `prompt` (or `text`), `target` (or `completion`),
    `options`, `gold`, `level`, `id` and `images` are what they are called, as far as there are such; `messages` are a chat."""

    def make(row: Row) -> Sample | str:
        def column(field: str) -> str:
            given = getattr(spec, field)
            return given if given or spec.prompt or field not in row.columns else field

        sample = _fill(spec, row)
        if not sample.prompt.strip():
            return "without a prompt"
        images = () if spec.prompt else list_texts(row, "images", row.place, '["cat.png"]')
        sample = replace(
            sample,
            level=_read_level(row, column("level")),
            id=str(row[column("id")] or "") if column("id") else "",
            images=tuple(str(folder / image) for image in images),
        )
        return sample if sample.chat else _choose(sample, row, column("options"), column("gold"))

    return make


def _fill(spec: TaskSpec, row: Row) -> Sample:
    """The prompt, empty where the row has none, and the target: by templates, from a chat, or from columns of these names."""
    if not spec.prompt and is_chat(row):
        sample = read_chat(row)
        return replace(sample, target=fill_template(spec.target, row)) if spec.target else sample
    prompt = spec.prompt or _find_column(row, "prompt", "text", MESSAGES) or "{prompt}"
    target = spec.target or ("" if spec.prompt else _find_column(row, "target", "completion"))
    return Sample(fill_template(prompt, row) or "", fill_template(target, row) if target else None)


def _find_column(row: Row, *names: str) -> str:
    """The template of the first of these columns that there is; empty where there is none."""
    return next((f"{{{name}}}" for name in names if name in row.columns), "")


def _choose(sample: Sample, row: Row, options: str, gold: str) -> Sample | str:
    """The sample with its options, and with the right one as its target."""
    if not options:
        return sample
    texts = _read_options(row, options)
    if len(texts) < 2 or not all(texts):
        return "without two answer options that have a text"
    said = row[gold] if gold else (sample.target or "").strip()
    if said is None or said == "":
        return replace(sample, options=tuple(f" {text}" for text in texts))
    right = find_gold(texts, said)
    if right is None:
        return f'{NO_ANSWER}: "{said}" is none of its {len(texts)} options'
    if texts.count(texts[right]) > 1:
        return f'its right option "{texts[right]}" is listed twice'
    return replace(sample, target=f" {texts[right]}", options=tuple(f" {text}" for text in texts))


def _read_options(row: Row, columns: str) -> list[str]:
    """The texts of one column that holds a list, or of several columns, joined by commas."""
    if columns not in row.columns and "," in columns:
        values: Any = [row[column.strip()] for column in columns.split(",")]
    else:
        values = _as_list(row[columns])
    if not isinstance(values, list | tuple):
        raise InputError(
            f"{row.place} has {type(values).__name__} as {columns}; expected a list of texts, or several columns: options = "
            '"right,wrong"'
        )
    return [str(value).strip() for value in values if value is not None]


def _as_list(value: Any) -> Any:
    """A list, also where it is written as text or stands as `text` beside its labels."""
    if value is None:
        return []
    if isinstance(value, dict):
        return value.get("text", value)
    if isinstance(value, str) and value.strip().startswith("["):
        for read in (json.loads, ast.literal_eval):
            try:
                return read(value)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return value


def _read_level(row: Row, column: str) -> int | None:
    """A whole number, also as text (`Level 3`); None where the row has none."""
    if not column or row[column] is None or row[column] == "":
        return None
    value = row[column]
    found = None if isinstance(value, bool) else re.fullmatch(r"(?:[A-Za-z]+[\s_-]*)?(-?\d{1,12})(?:\.0)?", str(value).strip())
    if found is None:
        raise InputError(f'{row.place} has "{value}" as {column}; expected a whole number')
    return check_level(int(found[1]), column, row.place)
