"""How answers are spelled: documents as strict JSON, and events of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

BREAKS = {ord(sign): f"\\u{ord(sign):04x}" for sign in "\x85\u2028\u2029"}
"""Signs at which many clients end a line, though JSON and the standard of such streams do not."""


def spell_json(document: Any) -> bytes:
    """A document as strict JSON: NaN and infinities become null, and signs that are no text (lone surrogates, as in the names
    of files) are left out."""
    try:
        return to_json(document, inf_nan_mode="null")
    except PydanticSerializationError:
        return to_json(_clean(document), inf_nan_mode="null")


def spell_event(document: Any, name: str | None = None) -> str:
    """One server-sent event: a document on one line, below the name of its kind where it has one."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {spell_json(document).decode().translate(BREAKS)}\n\n"


def _clean(value: Any) -> Any:
    """The same without signs that are no text."""
    match value:
        case str():
            return value.encode(errors="ignore").decode()
        case Mapping():
            return {_clean(key): _clean(item) for key, item in value.items()}
        case list() | tuple():
            return [_clean(item) for item in value]
        case _:
            return value
