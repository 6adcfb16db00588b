"""Types and shapes checked at every call, as jaxtyping does it, in a third of its time."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError, _decorator, config, install_import_hook

_check_shapes = jaxtyping.jaxtyped
_check_types = beartype(conf=BeartypeConf(violation_type=TypeCheckError))


def install_checks(package: str) -> None:
    """Checks every function and dataclass of the package that is imported from now on.

    jaxtyping binds, remembers and checks all arguments twice at every call, for the axes that they share. Where no shape is
    named beartype alone checks the same types. What is defined inside a function is defined anew at every call of it; the
    checks of it are made once.
    """
    _decorator._make_fn_with_signature = _remember(_decorator._make_fn_with_signature)
    _decorator._apply_typechecker = _remember(_decorator._apply_typechecker)
    install_import_hook(package, "beartype.beartype")
    jaxtyping.jaxtyped = _decorate  # the hook's decorators look it up where they stand


def _decorate(*, typechecker: Any) -> Callable[[Any], Any]:
    def decorate(thing: Any) -> Any:
        if isinstance(thing, type) and dataclasses.is_dataclass(thing) and "__init__" in vars(thing):
            thing.__init__ = decorate(thing.__init__)
            return thing
        if not isinstance(thing, FunctionType) or "<locals>" in thing.__qualname__ or _is_resumed(thing):
            return _check_shapes(thing, typechecker=typechecker)
        names = {name: _decorator._destring_annotation(hint, thing.__globals__) for name, hint in thing.__annotations__.items()}
        return _check_shapes(thing, typechecker=typechecker) if any(map(_has_shape, names.values())) else _check(thing, names)

    return decorate


def _check(function: Any, hints: dict[str, Any]) -> Any:
    written, function.__annotations__ = function.__annotations__, hints
    checked: Any = _check_types(function)
    function.__annotations__ = written

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        return (function if config.jaxtyping_disable else checked)(*args, **options)

    return call


def _is_resumed(function: Any) -> bool:
    """Whether a call only begins it: what beartype makes of these checks at other moments."""
    return inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function)


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, list | tuple):  # the arguments of a Callable
        return any(map(_has_shape, hint))
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(_has_shape, get_args(hint)))


def _remember(make: Callable[..., Any]) -> Callable[..., Any]:
    """`make`, made once of the same; what cannot be looked up is made each time."""
    kept = functools.lru_cache(maxsize=10_000)(make)

    def find(*given: Any, **options: Any) -> Any:
        try:
            hash((given, *options.values()))
        except TypeError:
            return make(*given, **options)
        return kept(*given, **options)

    return find
