"""Files of examples: rows with a prompt and a target, or with the messages of a chat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hyperlens.errors import InputError
from hyperlens.tasks import Sample, TaskSpec
from hyperlens.tasks.own import put_rows
from hyperlens.tasks.rows import Row, read_rows

MESSAGES = "messages"


def read_examples(file: Path, chat: bool = False) -> list[Sample]:
    """The samples of a .jsonl, .json, .csv or .parquet file, or of a folder's `train` file.

    A row has the columns of own data: `prompt` (or `text`) and `target`, and optionally `options`, `gold` and `level`; with
    `chat` it goes through the model's chat template. Or it has `messages`, a chat whose last turn is what is to be learned.
    Raises InputError where a row has neither, and for what a sample cannot hold.
    """
    rows = read_rows(file, "train", any_split=True)
    if not rows:
        raise InputError(f"{file} holds no examples; give one per line or row, with a prompt and a target")
    make, name = put_rows(TaskSpec(file.stem), file if file.is_dir() else file.parent), file.stem
    samples, refused = [], []
    for number, row in enumerate(rows, 1):
        one = _read_chat(row) if row.get(MESSAGES) is not None else make(row)
        if isinstance(one, str):
            refused.append((row.place, one))
        else:
            samples.append(replace(one, task=name, id=f"{name}/{one.id or number}", chat=chat or one.chat))
    if refused:
        raise InputError(
            f"{len(refused)} of {len(rows)} rows cannot be learned (the first, {refused[0][0]}, is {refused[0][1]}); mend "
            "them, or leave them out"
        )
    return samples


def _read_chat(row: Row) -> Sample:
    """A chat as a sample: its last turn is the target, the one before it the prompt, and earlier ones are solved examples."""
    turns = [_read_turn(turn, row.place) for turn in _list(row)]
    roles = [role for role, _ in turns]
    if len(turns) % 2 or roles != ["user", "assistant"] * (len(turns) // 2) or not turns:
        raise InputError(
            f"{row.place} has messages by {', '.join(roles) or 'nobody'}; expected user and assistant by turns, the assistant "
            "last (put what a system message says before the first question)"
        )
    texts = [text for _, text in turns]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    return Sample(*pairs[-1], shots=tuple(pairs[:-1]), chat=True)


def _list(row: Row) -> list[Any]:
    if not isinstance(given := row[MESSAGES], list):
        raise InputError(
            f"{row.place} has {type(given).__name__} as {MESSAGES}; expected a list of messages, each with role and content"
        )
    return given


def _read_turn(turn: Any, place: str) -> tuple[str, str]:
    role, content = (turn.get(part) for part in ("role", "content")) if isinstance(turn, Mapping) else (None, None)
    if not isinstance(role, str) or not isinstance(content, str):
        raise InputError(f"{place} has a message without role and content; expected both, as text")
    return role, content
