"""The last layer at the rows that are read alone: nothing of these rows comes from what is left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, build_family, random_ids
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import hyperlens as hl
from hyperlens.errors import CertificateError
from hyperlens.narrowing import FewQueries, Narrow
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


def test_one_token_goes_behind_the_last_layer_where_nothing_is_read() -> None:
    network: Any = build_family("llama")
    splice, passed = hl.load_model(network).splice, []
    hook = network.model.norm.register_forward_hook(lambda module, args, output: passed.append(tuple(args[0].shape[:2])))
    last_states(splice, network)
    with at_rest(network):
        splice.run(Inputs(random_ids(2, 12)), probes=probes(), record=[0])
    hook.remove()
    assert passed == [(2, 1), (2, 12)]


@pytest.mark.parametrize(
    ("family", "short"), [("llama", True), ("gemma2", True), ("mamba", True), ("gpt2", False), ("gptj", False)]
)
def test_an_end_that_wants_the_shape_that_came_in_gets_it(family: str, short: bool) -> None:
    assert hl.load_model(build_family(family)).splice.short_end == short


def test_an_end_that_takes_no_fewer_tokens_gets_all() -> None:
    network: Any = build_family("llama")
    given: list[int] = []

    def check(module: nn.Module, args: tuple[Tensor]) -> None:
        assert args[0].shape[1] == given[-1], "fewer tokens than came in"

    network.model.embed_tokens.register_forward_pre_hook(lambda module, args: given.append(args[0].shape[1]))
    network.model.norm.register_forward_pre_hook(check)
    model = hl.load_model(network)
    assert not model.splice.short_end and model.certificate.certified
    last_states(model.splice, network)


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
    assert not hl.load_model(network).splice.narrow


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "attention"), [("llama", True), ("gpt2", True), ("mistral", True), ("gemma2", False)])
def test_attention_is_narrow_where_it_is_torchs_own(family: str, attention: bool, dtype: torch.dtype) -> None:
    """That of gemma2 caps its scores, for which torch has no kernel."""
    assert hl.load_model(build_family(family, dtype)).splice.narrow.attention == attention


MASKS = {
    "none": None,
    "of all": torch.ones(12, 12).tril().bool(),
    "of each text": torch.ones(2, 1, 12, 12).tril().bool(),
    "added": torch.zeros(2, 1, 12, 12).masked_fill(torch.ones(12, 12).triu(1).bool(), -1e9),
    "of each head": torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0)),
    "of keys": torch.arange(12)[None, None, None] < torch.tensor([12, 7])[:, None, None, None],
}


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize(("mask", "causal"), [("none", True), *((mask, False) for mask in MASKS)])
@pytest.mark.parametrize("places", [PLACES, ((0, 1), (11, 11))], ids=["ragged", "ends"])
def test_queries_that_are_read_find_what_they_find_among_all(places: Any, mask: str, causal: bool, groups: int) -> None:
    random = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, heads, 12, 8, generator=random) for heads in (4, groups, groups))
    given = {"attn_mask": MASKS[mask], "is_causal": causal, "enable_gqa": groups < 4}
    whole = scaled_dot_product_attention(query, key, value, **given).transpose(1, 2)
    read = Probes(*map(torch.tensor, places))
    with FewQueries(read, (2, 12), others=float("nan")) as few:
        found = scaled_dot_product_attention(query, key, value, **given).transpose(1, 2)
    torch.testing.assert_close(read.pick(found), read.pick(whole))
    assert few.calls == 1 and found.isnan().any()


@pytest.mark.parametrize("attention", [True, False])
def test_what_is_wrongly_left_out_after_the_certificate_is_caught_in_the_run(
    attention: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hl.load_model(build_family("llama"))
    texts = random_ids(3, 12).tolist()
    hl.trace(model, texts, hl.HyperLens((2,)))
    if attention:
        attend = FewQueries._attend
        monkeypatch.setattr(FewQueries, "_attend", lambda few, query, *more, **named: attend(few, -query, *more, **named))
    else:
        modules = (*model.splice.narrow.modules, model.splice.layers[-1].self_attn.v_proj)
        monkeypatch.setattr(model.splice, "narrow", Narrow(modules))
    with pytest.raises(CertificateError, match="on the longest text the lens differs"):
        hl.trace(model, texts, hl.HyperLens((2,)))


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
