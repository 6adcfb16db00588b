"""Facts memorised in training, followed over one to three hops: "Ada's teacher's friend is" -> "Tom"."""

from __future__ import annotations

import random

from hyperlens.tasks.graded.graded import GradedTask

PEOPLE = tuple(
    "Ada Ben Cleo Dan Eve Finn Gina Hugo Iris Jack Kim Leo Mia Ned Olga Paul "
    "Quin Rosa Sam Tina Uma Vera Will Xena Yara Zoe Amy Bob Carl Dora Emil Faye".split()
)
RELATIONS = ("friend", "teacher", "boss", "doctor", "neighbour", "rival")


def _derangement(people: tuple[str, ...], rng: random.Random) -> dict[str, str]:
    """A random permutation of `people` that leaves nobody in place."""
    while True:
        images = rng.sample(people, len(people))
        if all(person != image for person, image in zip(people, images, strict=True)):
            return dict(zip(people, images, strict=True))


_rng = random.Random("hyperlens/knowledge")
FACTS = {relation: _derangement(PEOPLE, _rng) for relation in RELATIONS}
"""relation -> person -> person. Each relation is a permutation, so that every answer is equally likely at every level."""


def ask(level: int, rng: random.Random) -> tuple[str, str]:
    """A chain of `level` relations from a random person, and where it ends."""
    person = rng.choice(PEOPLE)
    prompt = person
    for relation in rng.choices(RELATIONS, k=level):
        prompt += f"'s {relation}"
        person = FACTS[relation][person]
    return prompt + " is", person


KNOWLEDGE = GradedTask("knowledge", (1, 2, 3), (*PEOPLE, *RELATIONS, "'s", "is"), ask)
