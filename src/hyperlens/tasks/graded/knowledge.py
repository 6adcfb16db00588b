"""Facts memorised in training, followed over one to five hops: "Ada's teacher's friend is" -> "Tom"."""

from __future__ import annotations

import random

from hyperlens.tasks.graded.graded import Chain, Fragment, GradedTask, Variant, contrast_aside, cue

PEOPLE = tuple(
    "Ada Ben Cleo Dan Eve Finn Gina Hugo Iris Jack Kim Leo Mia Ned Olga Paul "
    "Quin Rosa Sam Tina Uma Vera Will Xena Yara Zoe Amy Bob Carl Dora Emil Faye".split()
)
RELATIONS, WIDE = ("friend", "teacher", "boss", "doctor", "neighbour", "rival"), ("guest", "host")


def _derangement(people: tuple[str, ...], rng: random.Random) -> dict[str, str]:
    """A random permutation of `people` that leaves nobody in place."""
    while True:
        images = rng.sample(people, len(people))
        if all(person != image for person, image in zip(people, images, strict=True)):
            return dict(zip(people, images, strict=True))


_rng = random.Random("hyperlens/knowledge")
FACTS = {relation: _derangement(PEOPLE, _rng) for relation in (*RELATIONS, *WIDE)}
"""relation -> person -> person. Each relation is a permutation, so that every answer is equally likely at every level."""


def draw_chain(steps: int, rng: random.Random, wide: bool) -> Chain:
    """A random person and `steps` random relations."""
    start = person = rng.choice(PEOPLE)
    taken = rng.choices(WIDE if wide else RELATIONS, k=steps)
    values, cores = [], [start]
    for relation in taken:
        person = FACTS[relation][person]
        values.append(person)
        cores.append(f"{cores[-1]} {relation}")
    return Chain((start,), tuple((relation,) for relation in taken), tuple(values), tuple(cores[1:]))


def write(chain: Chain, aside: Chain | None, variant: Variant) -> list[Fragment]:
    """`not Ben's rival but Ada's teacher's friend is`; reworded, `the friend of the teacher of Ada is`."""

    def put(part: Chain) -> list[Fragment]:
        relations = [relation for (relation,) in part.steps]
        if variant.reworded:
            backwards = " ".join([*(f"the {relation} of" for relation in reversed(relations)), *part.start])
            return [Fragment(backwards, part, len(relations))]
        return [Fragment(part.start[0]), *(Fragment(f"'s {relation}", part, n) for n, relation in enumerate(relations, 1))]

    return [*contrast_aside(put(chain), put(aside) if aside else None), cue(variant)]


def claim(chain: Chain, value: str) -> str:
    """`Ada's teacher Bob's friend is`."""
    return f" {value}"


KNOWLEDGE = GradedTask("knowledge", (*PEOPLE, *RELATIONS, *WIDE, "##'s", "the", "of"), PEOPLE, draw_chain, write, claim)
