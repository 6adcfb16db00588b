"""What a trace refuses: bad input, contexts that are not exact, and models that fail inside the run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import build_family, build_tokenizer
from sentences import is_one_sentence
from traced import TEXTS, loaded, words

from hyperlens.errors import CertificateError, InputError, MemoryLimitError, ModelError
from hyperlens.lenses import HyperLens, LogitLens, lens
from hyperlens.models import Model, load_model
from hyperlens.splice import Splice
from hyperlens.tasks.sample import Sample
from hyperlens.tracing import Limits, trace

SAMPLE = Sample("w20 w21", " w22")

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no text": (lambda: trace(loaded("llama"), []), "there is no text to read"),
    "empty text": (lambda: trace(loaded("llama"), ["w20", ""]), "text 2 is empty"),
    "blank text": (lambda: trace(loaded("llama"), " \n"), "text 1 is empty"),
    "empty ids": (lambda: trace(loaded("llama"), [[]]), "text 1 has no token ids"),
    "long text": (lambda: trace(loaded("llama"), words([20] * 65)), "text 1 has 65 tokens, and this model's context holds 64"),
    "long ids": (lambda: trace(loaded("llama"), [[20] * 65], positions="all"), "text 1 has 65 tokens"),
    "long target": (lambda: trace(loaded("llama"), Sample(words([20] * 63), " w20 w21")), "text 1 has 65 tokens"),
    "no room to generate": (
        lambda: trace(loaded("llama"), [[20] * 64], positions="generated"),
        "fills the model's context of 64",
    ),
    "empty target": (
        lambda: trace(loaded("llama"), Sample("w20", "")),
        "the target of text 1 is empty or tokenises to nothing",
    ),
    "blank target": (
        lambda: trace(loaded("llama"), Sample("w20", "  ")),
        "the target of text 1 is empty or tokenises to nothing",
    ),
    "no target": (lambda: trace(loaded("llama"), [SAMPLE, "w20"], positions="answer"), "text 2 has no target"),
    "ids have no target": (lambda: trace(loaded("llama"), [[20]], positions="answer"), "text 1 is given as token ids"),
    "no tokenizer": (lambda: trace(load_model(build_family("gpt2")), "w20"), "came without a tokenizer"),
    "reading": (lambda: trace(loaded("llama"), "w20", readings=("surprise",)), '"surprise" is not a reading; choose from'),
    "position": (lambda: trace(loaded("llama"), "w20", positions="first"), '"first" is not a choice of positions; choose from'),  # type: ignore[arg-type]
    "context": (lambda: HyperLens((0,), "leap"), '"leap" is not a context; choose from jump, cached'),  # type: ignore[arg-type]
    "negative depth": (lambda: HyperLens((0, -1)), "focal depth -1 is not a whole number from 0 up"),
    "no depth": (lambda: HyperLens(()), "is no list of focal depths"),
    "deep": (
        lambda: trace(loaded("llama"), "w20", HyperLens((7,))),
        "focal depth 7 is above this model's 6 layers; give 0 to 6",
    ),
    "reference": (lambda: trace(loaded("llama"), "w20", reference="gold"), '"gold" is not a reference; choose from'),  # type: ignore[arg-type]
    "target nowhere": (lambda: trace(loaded("llama"), "w20", reference="target"), 'reference "target" is not there'),
    "generated nowhere": (lambda: trace(loaded("llama"), SAMPLE, reference="generated"), 'reference "generated" is not there'),
    "one option": (lambda: trace(loaded("llama"), Sample("w20", options=(" w21",))), "text 1 has one answer option"),
    "uneven options": (
        lambda: trace(
            loaded("llama"), [Sample("w20", options=(" w21", " w22")), Sample("w20", options=(" w21", " w22", " w23"))]
        ),
        "2 and 3 answer options",
    ),
    "foreign target": (
        lambda: trace(loaded("llama"), Sample("w20", " w33", (" w21", " w22")), limits=Limits(letter=False)),
        "a target is none of the answer options",
    ),
    "memory": (lambda: Limits(memory_mb=0), "memory_mb is 0"),
    "batch": (lambda: Limits(batch_tokens=-1), "batch_tokens is -1"),
    "top": (lambda: Limits(top_k=-1), "top_k is -1"),
    "side": (lambda: Limits(padding_side="top"), '"top" is not a side to pad'),  # type: ignore[arg-type]
}


@pytest.fixture
def unchecked_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users run it: what the types forbid has to be refused by us."""
    from jaxtyping import config

    monkeypatch.setattr(config, "jaxtyping_disable", True)


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.usefixtures("unchecked_types")
def test_bad_input_is_refused_in_one_sentence(what: str) -> None:
    call, message = REFUSED[what]
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        call()
    assert is_one_sentence(str(caught.value)), str(caught.value)


@pytest.mark.usefixtures("unchecked_types")
def test_a_context_that_was_not_certified_is_refused_with_the_reason() -> None:
    model = loaded("bloom")
    refused = replace(model.certificate, contexts=("jump",), cached_form=None, reason="its memory is its own")
    with pytest.raises(CertificateError, match=r'context "cached" is not exact on BloomForCausalLM .*; use --context jump'):
        trace(replace(model, certificate=refused), TEXTS, HyperLens((1,), "cached"))


def broken_model(layer: int | None) -> Model:
    """A model that is certified, and whose weights overflow only afterwards: in a layer, or in the read-out."""
    model = load_model(build_family("llama"), build_tokenizer())
    with torch.no_grad():
        if layer is None:
            model.network.lm_head.weight[3] = torch.inf
        else:
            model.network.model.layers[layer - 1].mlp.down_proj.weight[0] = torch.nan
    return model


@pytest.mark.parametrize("lens", [HyperLens((0,)), HyperLens((2,)), HyperLens((0, 2), "cached"), HyperLens()], ids=str)
@pytest.mark.parametrize(("layer", "words"), [(3, "first after layer 3"), (None, "only in the read-out")])
def test_nan_logits_are_refused_with_the_layer_that_gives_them(lens: HyperLens, layer: int | None, words: str) -> None:
    model = broken_model(layer)
    with pytest.raises(ModelError, match=f"gives NaN or infinite logits .{words}; among texts 1") as caught:
        trace(model, [TEXTS[0]], lens)
    assert is_one_sentence(str(caught.value))


def test_only_the_texts_that_may_give_nan_are_named() -> None:
    model = load_model(build_family("llama"), build_tokenizer())
    with torch.no_grad():
        model.splice.embedding[7] = torch.nan
    texts = [TEXTS[0], TEXTS[1], [20, 7]]
    with pytest.raises(ModelError, match="from the embedding on; among texts 3"):
        trace(model, texts, LogitLens(), limits=Limits(batch_tokens=1))


def test_a_run_whose_own_check_fails_in_the_jump_context_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lens, "compare_jump", lambda *_: 0.25)
    with pytest.raises(CertificateError, match=r"on the longest text the lens differs .* by 0\.25 .*so that nothing was read"):
        trace(loaded("llama"), TEXTS, HyperLens((1,)))
    trace(loaded("llama"), TEXTS, HyperLens((0,)))


def test_a_run_whose_own_check_fails_in_the_cached_context_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    route = lens.route_cached
    monkeypatch.setattr(lens, "route_cached", lambda *args: route(*args).roll(1, 0))
    with pytest.raises(CertificateError, match="on a batch at focal depth 2 the lens differs"):
        trace(loaded("llama"), TEXTS, HyperLens((0, 2), "cached"))


def test_a_window_dropped_after_the_certificate_is_caught_in_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("mistral")
    monkeypatch.setattr(Splice, "window", lambda splice, layer: None)
    trace(model, [[20, 21, 22]], HyperLens((2,), "cached"))
    with pytest.raises(CertificateError):
        trace(model, TEXTS, HyperLens((2,), "cached"))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError("can't allocate memory")]
)
def test_where_memory_does_not_suffice_it_is_said_what_to_lower(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(Splice, "run", run)
    with pytest.raises(MemoryLimitError, match="batch_tokens 99 and memory_mb 5; lower them") as caught:
        trace(loaded("llama"), TEXTS, LogitLens(), limits=Limits(batch_tokens=99, memory_mb=5))
    assert is_one_sentence(str(caught.value))
