"""The certificate passes on every family, and fails on every lens that is broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, LAYERS, build_family
from torch import Tensor
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel, PreTrainedModel

from hyperlens import certificate, splice
from hyperlens.certificate import Certificate, certify, check_jump, error_bound, pad_texts, relative_error
from hyperlens.errors import CertificateError
from hyperlens.routing import route_cached, route_jump
from hyperlens.splice import Inputs, Probes, Splice

BY_STEPS = {"bloom", "mamba", "gpt_neo"}
"""Biases of position, recurrent states, windows of the model's own: what masks of ours cannot show query rows."""

Patch = Callable[[pytest.MonkeyPatch], None]


def certificate_of(family: str, **changes: Any) -> Certificate:
    return certify(Splice(build_family(family, **changes)))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_certified(family: str) -> None:
    found = certificate_of(family)
    assert found.certified and found.way == "bypass" and found.layers == LAYERS
    assert found.max_error is not None and found.max_error <= 1e-5
    assert found.contexts == ("jump", "cached")
    assert found.cached_form == ("steps" if family in BY_STEPS else "rows")
    assert found.paddings == ("right", "left") and found.reason is None


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3", "falcon"])
def test_in_16_bit_the_error_stays_within_2e_2(family: str) -> None:
    found = certificate_of(family, dtype=torch.bfloat16)
    assert found.contexts == ("jump", "cached")
    assert found.max_error is not None and found.max_error <= 2e-2


@pytest.mark.parametrize("name", ["stories", "bitllama"])
def test_trained_models_are_certified_in_both_contexts(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = certify(Splice(model))
    assert found.contexts == ("jump", "cached")
    assert found.max_error is not None and found.max_error <= 1e-5


def test_the_prompt_is_longer_than_every_window_that_fits_and_never_than_the_context() -> None:
    assert certificate_of("mistral", sliding_window=40).tokens == 48
    assert certificate_of("llama", max_position_embeddings=9).tokens == 9
    assert certificate_of("gpt2", max_position_embeddings=1).certified


def test_proving_leaves_the_random_state_and_the_training_flags_alone() -> None:
    model = build_family("gpt2", resid_pdrop=0.5).train()
    before = torch.random.get_rng_state()
    assert certify(Splice(model)).certified
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(module.training for module in model.modules())


def test_two_proofs_of_one_model_are_equal() -> None:
    model = build_family("llama")
    assert certify(Splice(model)) == certify(Splice(model))


def test_a_model_whose_layers_cannot_be_bypassed_is_proved_by_the_plain_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(visit: Any, number: int, hidden: Tensor) -> Any:
        raise RuntimeError("this layer shares its keys")

    monkeypatch.setattr(splice.Visit, "_bypassed", unable)
    spliced = Splice(build_family("llama"))
    found = certify(spliced)
    assert found.certified and found.way == "hook" == spliced.way
    assert found.contexts[0] == "jump"


def replace_router(name: str, changed: Callable[..., Any]) -> Patch:
    """Put another function in the place of `route_jump` or `route_cached` where the certificate calls it."""
    return lambda patch: patch.setattr(certificate, name, changed)


def enter_one_layer_off(shift: int) -> Patch:
    """Let states enter at another layer than they are said to."""
    original = splice.Visit._enter
    return lambda patch: patch.setattr(
        splice.Visit, "_enter", lambda visit, number, hidden: original(visit, number + shift, hidden)
    )


def other_start(shift: int, router: Any) -> Any:
    """A router that runs one layer more, or less, than the focal depth says."""
    return lambda spliced, inputs, states, start, *rest: router(
        spliced, inputs, states, min(max(start + shift, 0), spliced.depth), *rest
    )


def own_whatever_enters(spliced: Splice, inputs: Inputs, states: Tensor, start: int, probes: Probes, *rest: Any) -> Tensor:
    """What a compiled model does: hooks are ignored, and the output is the model's own."""
    own = spliced.run(inputs, record=[spliced.depth], probes=probes).states[spliced.depth]
    return own[None].expand(len(states), *[-1] * own.ndim)


def half_as_alive(router: Any) -> Any:
    """A router that lets only half of what is foreign to the model through."""

    def route(spliced: Splice, inputs: Inputs, states: Tensor, start: int, probes: Probes, *rest: Any) -> Tensor:
        routed = router(spliced, inputs, states, start, probes, *rest)
        return (routed + own_whatever_enters(spliced, inputs, states, start, probes)) / 2

    return route


def reordered(router: Any, order: Callable[[Tensor], Tensor]) -> Any:
    """A router that takes its stacked states in another order."""
    return lambda spliced, inputs, states, *rest: router(spliced, inputs, order(states), *rest)


def swap_first_two(states: Tensor) -> Tensor:
    return states[[1, 0, *range(2, len(states))]] if len(states) > 1 else states


def first_for_all(states: Tensor) -> Tensor:
    return states[:1].expand_as(states)


def without_softcap(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Splice, "head", lambda spliced, states: spliced.model.lm_head(spliced.model.model.norm(states)))


def without_capture(patch: pytest.MonkeyPatch) -> None:
    """Nothing of ours takes hold of the layers."""
    patch.setattr(splice.Visit, "forward", lambda visit, number, original, *args, **kwargs: original(*args, **kwargs))


BROKEN_JUMP: dict[str, tuple[str, Patch]] = {
    "states enter one layer late": ("llama", enter_one_layer_off(-1)),
    "states enter one layer early": ("llama", enter_one_layer_off(1)),
    "one layer too many is run": ("gpt2", replace_router("route_jump", other_start(-1, route_jump))),
    "one layer too few is run": ("gpt2", replace_router("route_jump", other_start(1, route_jump))),
    "states are ignored": ("llama", replace_router("route_jump", own_whatever_enters)),
    "states have half their effect": ("llama", replace_router("route_jump", half_as_alive(route_jump))),
    "no layer is wrapped": ("llama", without_capture),
    "the soft-cap is forgotten": ("gemma2", without_softcap),
    "two states are swapped": ("llama", replace_router("route_jump", reordered(route_jump, swap_first_two))),
    "states are in reverse": ("llama", replace_router("route_jump", reordered(route_jump, lambda states: states.flip(0)))),
    "one state stands for all": ("llama", replace_router("route_jump", reordered(route_jump, first_for_all))),
}

BROKEN_ROWS: dict[str, tuple[str, Patch]] = {
    "the window is dropped": ("mistral", lambda patch: patch.setattr(Splice, "window", lambda spliced, layer: None)),
    "every layer has the window": ("gemma2", lambda patch: patch.setattr(Splice, "window", lambda spliced, layer: 8)),
}

BROKEN_CACHED: dict[str, tuple[str, Patch]] = {
    "one layer too many is run": ("llama", replace_router("route_cached", other_start(-1, route_cached))),
    "states are ignored": ("llama", replace_router("route_cached", own_whatever_enters)),
    "states have half their effect": ("llama", replace_router("route_cached", half_as_alive(route_cached))),
    "two states are swapped": ("llama", replace_router("route_cached", reordered(route_cached, swap_first_two))),
    "states are in reverse": ("llama", replace_router("route_cached", reordered(route_cached, lambda states: states.flip(0)))),
    "one state stands for all": ("llama", replace_router("route_cached", reordered(route_cached, first_for_all))),
}


@pytest.mark.parametrize("broken", BROKEN_JUMP)
def test_a_model_is_refused_where_the_jump_is_broken(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, patch = BROKEN_JUMP[broken]
    patch(monkeypatch)
    found = certificate_of(family)
    assert not found.certified and found.contexts == () and found.way is None and found.max_error is None
    assert found.reason
    with pytest.raises(CertificateError, match="is refused: "):
        found.require("jump")


@pytest.mark.parametrize("broken", BROKEN_CACHED)
def test_the_cached_context_is_refused_where_it_is_broken(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, patch = BROKEN_CACHED[broken]
    patch(monkeypatch)
    found = certificate_of(family)
    assert found.contexts == ("jump",)
    assert found.reason is not None and found.reason.startswith("cached is not exact: ")
    found.require("jump")
    with pytest.raises(CertificateError, match=r'context "cached" is not exact on .*; use --context jump'):
        found.require("cached")


@pytest.mark.parametrize("broken", BROKEN_ROWS)
def test_query_rows_behind_wrong_masks_give_way_to_steps(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, patch = BROKEN_ROWS[broken]
    patch(monkeypatch)
    assert certificate_of(family).cached_form == "steps"


def test_where_steps_are_broken_too_the_text_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splice.Memory, "spread", lambda memory, rows, start=0: memory)
    found = certificate_of("bloom")
    assert found.cached_form == "replay" and found.reason is None


def test_a_model_that_cannot_be_padded_is_certified_for_texts_of_one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    original = certificate.pad_texts
    monkeypatch.setattr(
        certificate,
        "pad_texts",
        lambda texts, side, filler: (
            replace(original(texts, side, filler)[0], positions=torch.zeros(2, 24, dtype=torch.long)),
            [],
        ),
    )
    found = certificate_of("llama")
    assert found.paddings == () and found.contexts == ("jump", "cached")
    assert found.reason is not None and found.reason.startswith("padded on the right, equality at m = 0 differs by ")


def test_a_model_that_rounds_more_than_the_bound_is_refused_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_family("llama")
    model.model.layers[2].register_forward_hook(lambda _, args, out: out + 1e-2 * (len(out) > 1) * torch.arange(32))
    reason = certify(Splice(model)).reason
    assert reason is not None and "; its own logits for a text differ by " in reason
    assert reason.endswith("when the text is in a batch, which no lens can be better than")
    without_softcap(monkeypatch)
    assert "in a batch" not in str(certificate_of("gemma2").reason)


def test_a_refusal_names_the_check_and_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    without_softcap(monkeypatch)
    reason = certificate_of("gemma2").reason
    assert reason is not None and "jump equality at m = 0 differs by " in reason and "more than 1e-05" in reason


def small_bert(**changes: Any) -> PreTrainedModel:
    sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    return BertLMHeadModel(BertConfig(**sizes, max_position_embeddings=64, **changes)).eval()


def test_an_encoder_is_refused_for_what_it_is() -> None:
    found = certify(Splice(small_bert(is_decoder=False)))
    assert not found.certified
    assert found.reason is not None and "encoder" in found.reason


def test_the_same_layers_as_a_decoder_are_certified() -> None:
    assert certify(Splice(small_bert(is_decoder=True))).certified


def test_a_layer_that_gives_nan_is_named() -> None:
    model = build_family("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = torch.nan
    reason = certify(Splice(model)).reason
    assert reason is not None and "layer 3 gives NaN or infinite values" in reason


def test_a_head_that_gives_nan_is_told_from_the_layers() -> None:
    model = build_family("llama")
    with torch.no_grad():
        model.lm_head.weight[5, 0] = torch.inf
    reason = certify(Splice(model)).reason
    assert reason is not None and "logits are NaN or infinite though all layers are finite" in reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_of_tokens_that_are_never_written_neither_hide_nor_make_an_error(dtype: torch.dtype) -> None:
    least = torch.finfo(dtype).min
    own = torch.tensor([least, 1.0, 2.0], dtype=dtype)
    assert relative_error(torch.tensor([least, 1.0, 2.5], dtype=dtype), own) == 0.25
    assert relative_error(torch.tensor([least, torch.nan, 2.0], dtype=dtype), own) == float("inf")
    assert relative_error(torch.tensor([3.0, 1.0, 2.0], dtype=dtype), own) == float("inf")
    assert relative_error(torch.tensor([least, least, 2.0], dtype=dtype), own) == float("inf")


def test_relative_error_is_infinite_where_anything_cannot_be_compared() -> None:
    ones = torch.ones(2, 3)
    assert relative_error(ones, ones) == 0.0
    assert relative_error(ones + 0.5, 2 * ones) == 0.25
    assert relative_error(ones, torch.ones(3, 2)) == float("inf")
    assert relative_error(ones * torch.nan, ones) == relative_error(ones, ones * torch.inf) == float("inf")
    assert error_bound(torch.float32) == error_bound(torch.float64) == 1e-5
    assert error_bound(torch.bfloat16) == error_bound(torch.float16) == 2e-2


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_check_inside_a_run_passes_on_the_model_and_sees_a_broken_route(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spliced = Splice(build_family("mistral"))
    inputs, starts = pad_texts([torch.arange(20, 38), torch.arange(50, 60)], side, 0)
    probes = Probes(torch.tensor([0, 1]), torch.tensor([17, starts[1] + 9]))
    with torch.no_grad():
        assert check_jump(spliced, inputs, probes, (0, 1, 3, LAYERS)) <= 1e-5
        assert check_jump(spliced, inputs, probes, (0,)) == 0.0
        monkeypatch.setattr(certificate, "route_jump", other_start(-1, route_jump))
        assert check_jump(spliced, inputs, probes, (0, 1)) > 1e-3


def test_padding_keeps_each_text_and_counts_its_own_positions() -> None:
    long, short = torch.arange(20, 25), torch.arange(30, 32)
    right, starts = pad_texts([long, short], "right", 0)
    assert starts == [0, 0] and right.mask is None and right.positions is None
    assert right.ids.tolist() == [[20, 21, 22, 23, 24], [30, 31, 0, 0, 0]]
    left, starts = pad_texts([long, short], "left", 0)
    assert starts == [0, 3] and left.ids.tolist() == [[20, 21, 22, 23, 24], [0, 0, 0, 30, 31]]
    assert left.mask is not None and left.mask.tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert left.positions is not None and left.positions[1].tolist()[3:] == [0, 1]
