"""Questions whose difficulty is known by construction: the number of steps that must be done one after the other."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from hyperlens.tasks.sample import Sample

HELD_OUT_SHARE = 8
"""One distinct prompt in this many is kept out of training, chosen by a hash of its text."""


@dataclass(frozen=True)
class GradedTask:
    """A generated domain: `ask(level, rng)` draws one question as (prompt, answer).

    `levels` count sequential steps. `words` are all the words that its text can hold. Levels below `unseen_from` have so
    few distinct prompts (single facts, sums of two digits) that training sees all of them; from that level on the
    prompts that are evaluated never occur in training.
    """

    name: str
    levels: tuple[int, ...]
    words: tuple[str, ...]
    ask: Callable[[int, random.Random], tuple[str, str]]
    unseen_from: int = 2

    def draw(self, level: int, rng: random.Random, held_out: bool) -> tuple[str, str]:
        """One question of `level`, from the held-out prompts or from those that training may see."""
        while True:
            prompt, answer = self.ask(level, rng)
            if level < self.unseen_from or is_held_out(prompt) == held_out:
                return prompt, answer

    def samples(self, limit: int, seed: int) -> list[Sample]:
        """`limit` distinct evaluation questions per level (fewer where a level has fewer), drawn from `seed`."""
        drawn = []
        for level in self.levels:
            rng = random.Random(f"{self.name}/{level}/{seed}")
            questions: dict[str, str] = {}
            for _ in range(50 * limit):
                if len(questions) == limit:
                    break
                prompt, answer = self.draw(level, rng, held_out=True)
                questions.setdefault(prompt, answer)
            drawn += [
                Sample(prompt, " " + answer, task=self.name, level=level, id=f"{self.name}/{level}/{number}")
                for number, (prompt, answer) in enumerate(questions.items())
            ]
        return drawn


def is_held_out(prompt: str) -> bool:
    """Whether training must never see this prompt; depends on the text alone."""
    return hashlib.sha256(prompt.encode()).digest()[0] % HELD_OUT_SHARE == 0
