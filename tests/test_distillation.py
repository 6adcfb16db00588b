from __future__ import annotations

from typing import Any

import pytest
import torch
from families import LAYERS, VOCABULARY, WIDTH, build_family, random_ids
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hyperlens.certificate import pad_texts
from hyperlens.lenses import Translators
from hyperlens.splice import Inputs, Probes, Splice, at_rest
from hyperlens.tracing import Limits
from hyperlens.training import distillation
from hyperlens.training.distillation import distil_batch


def draw_translators(dtype=torch.float32, bias=True) -> Translators:
    torch.manual_seed(1)
    weight = (0.1 * torch.randn(LAYERS, WIDTH, WIDTH, dtype=dtype)).requires_grad_()
    return Translators(weight, (0.1 * torch.randn(LAYERS, WIDTH, dtype=dtype)).requires_grad_() if bias else None)


def all_probes(inputs: Inputs) -> Probes:
    kept = torch.ones_like(inputs.ids) if inputs.mask is None else inputs.mask
    rows, positions = kept.nonzero().unbind(1)
    return Probes(rows, positions)


def distil(
    network: Any,
    translators: Any,
    inputs: Inputs,
    focal_depth: int = 0,
    limits: Limits | None = None,
    share: float | None = 1.0,
    probes: Probes | None = None,
) -> torch.Tensor:
    splice = Splice(network)
    with splice.lock, at_rest(network, gradients=share is not None):
        return distil_batch(splice, translators, inputs, probes or all_probes(inputs), focal_depth, limits or Limits(), share)


def naive(network: Any, translators: Any, inputs: Inputs, focal_depth: int) -> torch.Tensor:
    """One state after the other, by hooks and autograd alone."""
    layers = Splice(network).layers
    given = {"attention_mask": inputs.mask, "position_ids": inputs.positions}
    given = {name: value for name, value in given.items() if value is not None}
    probes, losses = all_probes(inputs), []
    with torch.no_grad():
        entered = []
        handles = [
            layer.register_forward_pre_hook(
                lambda _, args, kwargs: entered.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
            )
            for layer in layers
        ]
        log_p = probes.pick(network(inputs.ids, **given).logits).log_softmax(-1)
        for handle in handles:
            handle.remove()
    count = len(layers) - focal_depth
    for state in range(count):
        bias = 0 if translators.bias is None else translators.bias[state]
        moved = entered[state] + entered[state] @ translators.weight[state].mT + bias
        handle = _replace_input(layers[count], moved) if focal_depth else _replace_output(layers[-1], moved)
        log_q = probes.pick(network(inputs.ids, **given).logits).log_softmax(-1)
        handle.remove()
        losses.append((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    return torch.stack(losses)


def _replace_input(layer: torch.nn.Module, state: torch.Tensor) -> Any:
    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return ((state, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": state})

    return layer.register_forward_pre_hook(hook, with_kwargs=True)


def _replace_output(layer: torch.nn.Module, state: torch.Tensor) -> Any:
    return layer.register_forward_hook(lambda _, __, output: (state, *output[1:]) if isinstance(output, tuple) else state)


EXACT = {"gpt2", "gpt_neox"}
"""Families whose norms compute in the precision of the model; the others do in float32."""


@pytest.mark.parametrize("focal_depth", [0, 2])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "granite", "cohere2", "gpt_neox"])
def test_loss_and_gradient_are_those_of_a_plain_computation(family, focal_depth):
    network = build_family(family, torch.float64)
    inputs = Inputs(random_ids(2, 11))
    ours, plain = draw_translators(torch.float64), draw_translators(torch.float64)
    found = distil(network, ours, inputs, focal_depth, share=0.25)
    network.requires_grad_(False)
    expected = naive(network, plain, inputs, focal_depth)
    (0.25 * expected.sum()).backward()
    bound = 1e-10 if family in EXACT else 1e-6
    torch.testing.assert_close(found, expected.detach(), rtol=bound, atol=bound)
    for mine, theirs in gradients(ours, plain):
        assert (mine - theirs).abs().max() <= bound * theirs.abs().max()
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("focal_depth", [0, 2])
def test_tied_weights_and_translators_without_bias(focal_depth):
    network = build_family("llama", torch.float64, tie_word_embeddings=True)
    inputs = Inputs(random_ids(2, 7))
    ours, plain = draw_translators(torch.float64, bias=False), draw_translators(torch.float64, bias=False)
    found = distil(network, ours, inputs, focal_depth)
    expected = naive(network, plain, inputs, focal_depth)
    expected.sum().backward()
    torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-6)
    (mine, theirs), *_ = gradients(ours, plain)
    assert (mine - theirs).abs().max() <= 1e-6 * theirs.abs().max()


@pytest.mark.parametrize("focal_depth", [0, 2])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_blocks_of_any_size_give_the_same(family, focal_depth, monkeypatch):
    network, inputs = build_family(family), Inputs(random_ids(3, 9))
    whole, cut = draw_translators(), draw_translators()
    expected = distil(network, whole, inputs, focal_depth)
    sizes = record_sizes(monkeypatch)
    found = distil(network, cut, inputs, focal_depth, Limits(memory_mb=1))
    assert max(sizes) > 27  # several states in one block
    for rows in (1, 4, 10):
        monkeypatch.setattr(distillation, "_count_rows", lambda *_, rows=rows: rows)
        monkeypatch.setattr(distillation, "SLICE", 3 * 4 * network.config.vocab_size)  # so that a block of 4 or 10 has several
        cut = draw_translators()
        found = distil(network, cut, inputs, focal_depth)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        for mine, theirs in gradients(cut, whole):
            assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert max(sizes[-50:]) <= 10


@pytest.mark.parametrize("focal_depth", [0, 2])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(side, focal_depth):
    network = build_family("llama")
    texts = [random_ids(1, length, length)[0] for length in (9, 4)]
    together, apart = draw_translators(), draw_translators()
    inputs, starts = pad_texts(texts, side, 0)
    rows, places = zip(
        *((row, starts[row] + place) for row, text in enumerate(texts) for place in range(len(text))), strict=True
    )
    found = distil(network, together, inputs, focal_depth, probes=Probes(torch.tensor(rows), torch.tensor(places)))
    expected = [distil(network, apart, Inputs(text[None]), focal_depth, share=len(text) / 13) for text in texts]
    torch.testing.assert_close(found, (9 * expected[0] + 4 * expected[1]) / 13, rtol=1e-4, atol=1e-5)
    for mine, theirs in gradients(together, apart):
        assert (mine - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_gradients_add_up_and_none_is_left_without_a_share():
    network, inputs, translators = build_family("gpt2"), Inputs(random_ids(2, 8)), draw_translators()
    measured = distil(network, translators, inputs, share=None)
    assert translators.weight.grad is None
    torch.testing.assert_close(distil(network, translators, inputs, share=0.5), measured)
    once = [part.clone() for part, _ in gradients(translators, translators)]
    distil(network, translators, inputs, share=0.5)
    for twice, before in zip(gradients(translators, translators), once, strict=True):
        torch.testing.assert_close(twice[0], 2 * before)


def test_at_the_deepest_focus_the_embeddings_alone_are_read():
    network, inputs = build_family("llama"), Inputs(random_ids(2, 8))
    whole = Translators.identity(LAYERS, WIDTH)
    losses = distil(network, whole, inputs, LAYERS - 1, share=None)
    assert len(losses) == 1 and distil(network, whole, inputs, share=None)[-1] > 0
    passing = naive(network, whole, inputs, LAYERS - 1)
    torch.testing.assert_close(losses, passing.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("focal_depth", [0, 2])
def test_half_precision_runs_and_is_near(focal_depth):
    inputs, half, full = Inputs(random_ids(2, 8)), draw_translators(), draw_translators()
    losses = distil(build_family("llama", torch.bfloat16), half, inputs, focal_depth)
    expected = distil(build_family("llama"), full, inputs, focal_depth)
    for mine, _ in gradients(half, full):
        assert losses.dtype == mine.dtype == torch.float32 and torch.isfinite(mine).all()
    torch.testing.assert_close(losses, expected, rtol=0.1, atol=0.1)


def test_tokens_that_the_model_excludes_add_nothing():
    network, inputs, ours = build_family("gpt2"), Inputs(random_ids(2, 8)), draw_translators()
    expected = draw_translators()
    hidden = torch.zeros(VOCABULARY)
    hidden[40:] = -torch.inf
    few = torch.nn.Linear(WIDTH, VOCABULARY)
    few.weight, few.bias = network.lm_head.weight, torch.nn.Parameter(torch.where(hidden == 0, 0.0, -1e4))
    network.lm_head = few
    losses = distil(network, expected, inputs)
    few.bias.data = hidden
    torch.testing.assert_close(distil(network, ours, inputs), losses)
    for mine, theirs in gradients(ours, expected):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("focal_depth", [0, 2])
def test_no_tensor_holds_all_logits(focal_depth):
    network = build_family("llama", vocab_size=4096)
    with Sizes() as sizes:
        distil(network, draw_translators(), Inputs(random_ids(8, 64)), focal_depth, Limits(memory_mb=8))
    assert max(sizes.found) <= 8 * 2**20 / 4
    assert max(sizes.found) < (LAYERS - focal_depth) * 8 * 64 * 4096 / 20


class Sizes(TorchDispatchMode):
    """The number of values of each tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.found += [part.numel() for part in tree_leaves(result) if isinstance(part, torch.Tensor)]
        return result


def record_sizes(monkeypatch) -> list[int]:
    """The number of rows of each block that is read."""
    sizes, read = [], distillation._read_block

    def watched(splice, left, *rest):
        sizes.append(left.shape[0] * left.shape[1])
        return read(splice, left, *rest)

    monkeypatch.setattr(distillation, "_read_block", watched)
    return sizes


def gradients(one: Any, other: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    pairs = ((one.weight, other.weight), (one.bias, other.bias))
    return [(mine.grad, theirs.grad) for mine, theirs in pairs if mine is not None]
