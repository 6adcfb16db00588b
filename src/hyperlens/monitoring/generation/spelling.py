"""What each new token adds to a text, told as soon as it is a whole character."""

from __future__ import annotations

from typing import Any

KEPT = 4
"""Tokens of the prompt that a new one is spelt behind: some vocabularies write the first token of a text in another way."""


class Spelling:
    """Spells the tokens of one text, one after the other."""

    def __init__(self, tokenizer: Any, prompt: list[int]) -> None:
        self.tokenizer = tokenizer
        self.ids = list(prompt[-KEPT:])
        self.told = len(self.ids)
        self.begin = 0

    def add(self, token: int, last: bool = False) -> str:
        """What the token adds; nothing while a character is incomplete, unless it is the `last`."""
        self.ids.append(token)
        if self.tokenizer is None:
            return f" {token}"
        before = self._decode(self.ids[self.begin : self.told])
        text = self._decode(self.ids[self.begin :])
        if len(text) <= len(before) or (text.endswith("\ufffd") and not last):
            return ""
        self.begin, self.told = self.told, len(self.ids)
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))
