"""The last layer at the rows that are read alone: nothing of these rows comes from what is left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, build_family, random_ids
from torch import Tensor, nn

import hyperlens as hl
from hyperlens.narrowing import Narrow
from hyperlens.splice import Inputs, Probes, Splice, at_rest

PLACES = ((0, 1, 1), (11, 3, 0))
"""Rows and positions that are read, of two texts of twelve tokens."""


def probes() -> Probes:
    return Probes(*map(torch.tensor, PLACES))


def narrow_names(network: Any) -> list[str]:
    splice = hl.load_model(network).splice
    names = {module: name for name, module in splice.layers[-1].named_modules()}
    return [names[module] for module in splice.narrow.modules]


def last_states(splice: Splice, network: Any) -> Tensor:
    with at_rest(network):
        return splice.run(Inputs(random_ids(2, 12)), record=[splice.depth], probes=probes(), read=False).states[splice.depth]


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", ["self_attn.q_proj", "self_attn.o_proj", "mlp", "post_attention_layernorm"]),
        ("qwen3", ["self_attn.q_proj", "self_attn.o_proj", "self_attn.q_norm", "mlp", "post_attention_layernorm"]),
        ("gpt2", ["attn.c_proj", "attn.resid_dropout", "ln_2", "mlp"]),
        ("mixtral", ["mlp", "post_attention_layernorm", "self_attn.q_proj", "self_attn.o_proj"]),
    ],
)
def test_keys_and_values_alone_are_made_of_all_rows(family: str, names: list[str]) -> None:
    assert sorted(narrow_names(build_family(family))) == sorted(names)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_read_is_the_same_without_the_other_rows(family: str) -> None:
    network = build_family(family)
    splice = hl.load_model(network).splice
    narrow, splice.narrow = splice.narrow, Narrow()
    whole = last_states(splice, network)
    splice.narrow = narrow
    torch.testing.assert_close(last_states(splice, network), whole, rtol=1e-4, atol=1e-5)


def test_only_rows_that_are_read_pass_what_is_narrow() -> None:
    network = build_family("llama")
    splice, passed = hl.load_model(network).splice, []
    block: Any = splice.layers[-1]
    hook = block.mlp.gate_proj.register_forward_hook(lambda module, args, output: passed.append(args[0].shape[:2].numel()))
    inputs = Inputs(random_ids(2, 12))
    with at_rest(network):
        last_states(splice, network)
        splice.run(inputs, record=[0], ends=probes())  # with the last column of both texts, whose logits it gives
        splice.run(inputs, record=[splice.depth])
        splice.run(inputs, probes=Probes(torch.arange(2).repeat_interleave(7), torch.arange(7).repeat(2)), record=[0])
    with at_rest(network, gradients=True):
        splice.run(inputs, probes=probes(), record=[splice.depth])
    hook.remove()
    assert passed == [3, 4, 24, 24, 24]


def test_logits_of_the_last_column_stand_whatever_is_read() -> None:
    network = build_family("llama")
    splice, ids = hl.load_model(network).splice, random_ids(2, 12)
    with at_rest(network):
        found = splice.run(Inputs(ids), record=[0], probes=Probes(torch.tensor([0]), torch.tensor([4]))).logits
        torch.testing.assert_close(found, network(input_ids=ids).logits[:, -1])


class Mixing(nn.Module):
    """A feed-forward block in which each token also takes part of another one's."""

    def __init__(self, block: nn.Module, mix: Any) -> None:
        super().__init__()
        self.block, self.mix = block, mix

    def forward(self, hidden: Tensor) -> Tensor:
        return self.mix(self.block(hidden))


@pytest.mark.parametrize(
    "mix",
    [
        lambda hidden: hidden + 0.5 * hidden.roll(1, 1) * (torch.arange(hidden.shape[1]) > 0)[:, None],
        lambda hidden: hidden / hidden[:, :1].abs().amax((1, 2), keepdim=True),
        lambda hidden: hidden.cumsum(1),
    ],
    ids=["shifted", "scaled by the first", "summed"],
)
def test_where_a_later_block_mixes_tokens_all_rows_pass_all_of_it(mix: Any) -> None:
    network: Any = build_family("llama")
    network.model.layers[-1].mlp = Mixing(network.model.layers[-1].mlp, mix)
    assert narrow_names(network) == []


def test_what_is_wrongly_taken_for_narrow_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = build_family("llama")
    monkeypatch.setattr(Splice, "find_narrow", lambda splice, ids: Narrow((splice.layers[-1].self_attn.v_proj,)))
    model = hl.load_model(network)
    assert not model.splice.narrow and model.certificate.certified


def test_weights_that_are_packed_are_left_as_they_are() -> None:
    network: Any = build_family("llama")
    network.model.layers[-1].mlp.register_buffer("packed", torch.zeros(3, dtype=torch.uint8))
    assert "mlp" not in narrow_names(network)


def test_a_model_that_cannot_be_called_again_out_of_line_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(splice: Splice, ids: Tensor) -> Narrow:
        raise RuntimeError("not again")

    monkeypatch.setattr(Splice, "find_narrow", refuse)
    model = hl.load_model(build_family("llama"))
    assert not model.splice.narrow and model.certificate.certified
