"""Chats as samples: `messages`, or a `prompt` and its `completion`, in the forms that chats are trained on in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hyperlens.errors import InputError
from hyperlens.tasks.rows import Row
from hyperlens.tasks.sample import Sample

MESSAGES = "messages"
ROLES = ("user", "assistant")


def is_chat(row: Row) -> bool:
    """Whether a row is a chat: has `messages`, or a `prompt` that is a list of them."""
    return row.get(MESSAGES) is not None or isinstance(row.get("prompt"), list)


def read_chat(row: Row) -> Sample:
    """A chat as a sample: its last turn is the target, the one before it the prompt, and earlier ones are solved examples.

    Raises InputError where it is not by user and assistant by turns.
    """
    columns = (MESSAGES,) if row.get(MESSAGES) is not None else ("prompt", "completion")
    turns = [_read_turn(turn, row.place) for column in columns for turn in _list(row, column)]
    roles = [role for role, _ in turns]
    if len(turns) % 2 or roles != list(ROLES) * (len(turns) // 2) or not turns:
        raise InputError(
            f"{row.place} has messages by {', '.join(roles) or 'nobody'}; expected user and assistant by turns, the assistant "
            "last (put what a system message says before the first question)"
        )
    texts = [text for _, text in turns]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    return Sample(*pairs[-1], shots=tuple(pairs[:-1]), chat=True)


def _list(row: Row, column: str) -> list[Any]:
    if not isinstance(given := row[column], list):
        raise InputError(
            f"{row.place} has {type(given).__name__} as {column}; expected a list of messages, each with role and content"
        )
    return given


def _read_turn(turn: Any, place: str) -> tuple[str, str]:
    role, content = (turn.get(part) for part in ("role", "content")) if isinstance(turn, Mapping) else (None, None)
    if not isinstance(role, str) or not isinstance(content, str):
        raise InputError(f"{place} has a message without role and content; expected both, as text")
    return role, content
