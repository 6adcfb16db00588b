"""The checks of types and shapes that all other tests stand on: what is wrong is refused, wherever it is defined."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import pytest
import torch
from checks import install_checks
from jaxtyping import TypeCheckError, config

SOURCE = """
from __future__ import annotations
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from jaxtyping import Float
from torch import Tensor

@dataclass(frozen=True)
class Plain:
    name: str
    many: tuple[int, ...] = ()
    def double(self, number: int) -> int:
        return "no" if number == 3 else 2 * number
    @property
    def wrong(self) -> int:
        return self.name
    @classmethod
    def make(cls, name: str) -> Plain:
        return cls(name)

@dataclass(frozen=True)
class Shaped:
    states: Float[Tensor, "state width"]
    bias: Float[Tensor, "width"]

def add(one: Float[Tensor, "width"], other: Float[Tensor, "width"]) -> Float[Tensor, "width"]:
    return one + other if one.sum() else one[:1]

def call(action: Callable[[Float[Tensor, "width"]], float], given: Float[Tensor, "width"]) -> float:
    return action(given)

def count(most: int) -> Iterator[int]:
    yield from range(most)

def nest(given, offset=0):
    def inner(number: int, offset: int = offset) -> str:
        return str(number + offset) if number else number
    def shaped(states: Float[Tensor, "two two"]) -> int:
        return 1
    return inner(given) if isinstance(given, int) else shaped(given)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """A module whose functions and classes are checked as ours are."""
    folder = tmp_path_factory.mktemp("checked")
    (folder / "checked_by_us.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        install_checks("checked_by_us")
        return importlib.import_module("checked_by_us")


RIGHT: dict[str, tuple[Any, Any]] = {
    "argument": (lambda made: made.Plain("a").double(4), 8),
    "class": (lambda made: made.Plain.make("a").many, ()),
    "shapes": (lambda made: made.add(torch.ones(3), torch.ones(3)).tolist(), [2.0] * 3),
    "callable": (lambda made: made.call(lambda given: 1.0, torch.ones(2)), 1.0),
    "generator": (lambda made: list(made.count(2)), [0, 1]),
    "nested": (lambda made: [made.nest(2), made.nest(5, 1), made.nest(torch.ones(2, 2))], ["2", "6", 1]),
}
WRONG: dict[str, Any] = {
    "argument": lambda made: made.Plain("a").double("4"),
    "result": lambda made: made.Plain("a").double(3),
    "property": lambda made: made.Plain("a").wrong,
    "class method": lambda made: made.Plain.make(1),
    "field": lambda made: made.Plain("a", ("b",)),
    "axes": lambda made: made.Shaped(torch.ones(3, 2), torch.ones(3)),
    "type of numbers": lambda made: made.Shaped(torch.ones(3, 2), torch.ones(2, dtype=torch.int64)),
    "axes of arguments": lambda made: made.add(torch.ones(3), torch.ones(2)),
    "shape of the result": lambda made: made.add(torch.zeros(3), torch.ones(3)),
    "callable": lambda made: made.call(3, torch.ones(2)),
    "generator": lambda made: made.count("2"),
    "nested result": lambda made: made.nest(0),
    "nested shape": lambda made: made.nest(torch.ones(2, 3)),
}


@pytest.mark.parametrize("what", RIGHT)
def test_what_is_right_passes_again_and_again(made: ModuleType, what: str) -> None:
    call, expected = RIGHT[what]
    assert call(made) == call(made) == expected


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused_again_and_again(made: ModuleType, what: str) -> None:
    for _ in range(2):
        with pytest.raises(TypeCheckError):
            WRONG[what](made)


def test_checks_can_be_switched_off_as_users_have_it(made: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    assert made.Plain(1).name == 1 and made.Plain("a").double(3) == "no"
