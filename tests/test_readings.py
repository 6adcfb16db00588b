from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from scipy.spatial import distance

from hyperlens.errors import InputError
from hyperlens.readings import BLOCK, needs_output, read_logits, read_state_cosine, stream_probabilities
from hyperlens.trajectory import READINGS, check_readings


@pytest.fixture
def rows():
    logits = 3 * torch.randn(5, 4, 31)
    output = 3 * torch.randn(1, 4, 31)
    reference = torch.randint(31, (5, 4))
    return logits, reference, output, read_logits(logits, reference, READINGS, output)


def test_every_reading_agrees_with_scipy(rows):
    logits, reference, output, found = rows
    z, y = logits.double().numpy(), reference.numpy()
    p, q = special.softmax(z, -1), np.broadcast_to(special.softmax(output.double().numpy(), -1), z.shape)
    ordered = np.sort(p, -1)
    at_y = np.take_along_axis(z, y[..., None], -1)
    others = np.where(np.arange(31) == y[..., None], -np.inf, z)
    expected = {
        "probability": np.take_along_axis(p, y[..., None], -1)[..., 0],
        "log_probability": np.take_along_axis(special.log_softmax(z, -1), y[..., None], -1)[..., 0],
        "margin": at_y[..., 0] - others.max(-1),
        "top_probability": ordered[..., -1],
        "gap": ordered[..., -1] - ordered[..., -2],
        "entropy": stats.entropy(p, axis=-1),
        "rank": (z > at_y).sum(-1),
        "kl_to_output": special.rel_entr(q, p).sum(-1),
        "js_to_output": distance.jensenshannon(q, p, axis=-1) ** 2,
        "decision_margin": np.take_along_axis(p, y[..., None], -1)[..., 0]
        - np.where(np.arange(31) == y[..., None], 0.0, p).max(-1),
    }
    assert set(expected) == set(READINGS)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=2e-5, atol=2e-6, err_msg=name)


def test_the_margin_is_positive_exactly_when_the_reference_is_the_only_top_token():
    logits = torch.tensor([[2.0, 1.0, 0.0], [2.0, 2.0, 0.0], [1.0, 2.0, 0.0], [2.0, 2.0, 2.0]])
    margin = read_logits(logits, torch.zeros(4, dtype=torch.long), ["margin"])["margin"]
    assert margin.tolist() == [1.0, 0.0, -1.0, 0.0]


def test_both_margins_have_one_sign() -> None:
    logits, y = torch.randn(200, 4).round(), torch.randint(4, (200,))
    found = read_logits(logits, y, ["margin", "decision_margin"])
    assert torch.equal(found["margin"].sign(), found["decision_margin"].sign())
    assert (found["margin"] == 0).any()


def test_the_cosine_of_states_is_that_of_neighbours_and_the_first_has_none() -> None:
    states = torch.randn(5, 3, 2, 4)
    states[2] = 2 * states[1]
    states[3] = -states[2]
    found = read_state_cosine(lambda number: states[number].bfloat16() if number < 3 else states[number], 4)
    flat = torch.cat([states[:3].bfloat16().float(), states[3:]]).flatten(2)
    expected = torch.nn.functional.cosine_similarity(flat[1:], flat[:-1], dim=-1).T
    assert found.shape == (3, 5) and found.dtype == torch.float32 and found[:, 0].isnan().all()
    torch.testing.assert_close(found[:, 1:], expected)
    torch.testing.assert_close(found[:, 2:4], torch.tensor([[1.0, -1.0]]).expand(3, -1), atol=1e-4, rtol=0)


def test_divergences_from_itself_are_zero_and_the_largest_is_ln_two():
    one, other = torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 60.0]])
    y = torch.zeros(1, dtype=torch.long)
    same = read_logits(one, y, ["kl_to_output", "js_to_output"], one)
    assert same["kl_to_output"].item() == 0 and same["js_to_output"].item() == 0
    assert read_logits(one, y, ["js_to_output"], other)["js_to_output"].item() == pytest.approx(math.log(2))


def test_excluded_tokens_are_no_nan():
    logits = torch.tensor([[1.0, float("-inf"), 0.0]])
    found = read_logits(logits, torch.zeros(1, dtype=torch.long), READINGS, logits)
    assert all(torch.isfinite(values).all() for values in found.values())


def test_sixteen_bit_logits_are_read_in_float32():
    logits = torch.randn(3, 50, dtype=torch.bfloat16)
    y = torch.zeros(3, dtype=torch.long)
    found = read_logits(logits, y, ["probability"])["probability"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, logits.float().softmax(-1)[:, 0])


def test_probability_is_differentiable():
    logits = torch.randn(2, 9, dtype=torch.float32, requires_grad=True)
    read_logits(logits, torch.tensor([1, 2]), ["probability"])["probability"].sum().backward()
    p = logits.detach().softmax(-1)
    expected = -p * p.gather(-1, torch.tensor([[1], [2]]))
    expected += torch.nn.functional.one_hot(torch.tensor([1, 2]), 9) * p
    torch.testing.assert_close(logits.grad, expected)


def test_an_unknown_reading_is_refused_with_those_there_are():
    with pytest.raises(InputError, match=r'"perplexity" is not a reading; choose from probability.* state_cosine'):
        check_readings(["probability", "state_cosine", "perplexity"])
    with pytest.raises(InputError, match="exit_probability is read by a classifier that was fitted to the model; fit one"):
        check_readings(["exit_probability"])
    assert needs_output(["js_to_output"]) and not needs_output(["entropy"])


@pytest.mark.parametrize("bias", [False, True])
def test_streamed_probabilities_are_those_of_whole_rows(bias: bool) -> None:
    """Three blocks of rows and four of the vocabulary, the last of them short."""
    rows, vocabulary = 2 * BLOCK[0] + 5, 3 * BLOCK[1] + 7
    given, weight = torch.randn(rows, 8), torch.randn(vocabulary, 8)
    shift = torch.randn(vocabulary) if bias else None
    reference = torch.randint(vocabulary, (rows,))
    found = stream_probabilities(given, weight, shift, reference)
    logits = torch.nn.functional.linear(given.double(), weight.double(), None if shift is None else shift.double())
    expected = logits.log_softmax(-1).gather(-1, reference[:, None])[:, 0]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_no_block_of_streamed_logits_is_larger_than_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, product = [], torch.mm

    def note(rows: torch.Tensor, block: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(out.shape))
        return product(rows, block, out=out)

    monkeypatch.setattr(torch, "mm", note)
    stream_probabilities(torch.randn(2100, 4), torch.randn(1300, 4), None, torch.zeros(2100, dtype=torch.long))
    assert shapes == [(rows, columns) for rows in (2048, 52) for columns in (512, 512, 276)]


def test_streamed_probabilities_stand_where_other_logits_are_far_above() -> None:
    """Where Σ exp(z − z(y)) overflows, and where it is all but one; also beside a token that is forbidden."""
    given, weight = torch.tensor([[300.0], [-300.0], [1e-3]]), torch.arange(700.0)[:, None] / 700
    for bias in (None, torch.full((700,), 0.0).index_fill(0, torch.tensor([7]), float("-inf"))):
        for token in (0, 350, 699):
            reference = torch.full((3,), token)
            found = stream_probabilities(given, weight, bias, reference)
            logits = given.double() @ weight.double().T + (0.0 if bias is None else bias.double())
            torch.testing.assert_close(found.double(), logits.log_softmax(-1)[:, token], rtol=1e-5, atol=1e-5)


def test_no_streamed_probability_is_above_one_by_rounding() -> None:
    """Of large logits, a token's own and the one among the others may be rounded apart."""
    weight, tokens = torch.randn(8000, 512) * 0.3, torch.randint(8000, (512,))
    given = torch.randn(512, 512) + 1.5 * weight[tokens]
    found = stream_probabilities(given, weight, None, torch.nn.functional.linear(given, weight).argmax(-1))
    assert found.max() <= 1e-6 and found.exp().max() > 0.99


def test_streamed_probabilities_of_sixteen_bit_are_summed_in_float32() -> None:
    given, weight = torch.randn(9, 64).bfloat16(), torch.randn(4000, 64).bfloat16() / 4
    reference = torch.randint(4000, (9,))
    found = stream_probabilities(given, weight, None, reference)
    whole = torch.nn.functional.linear(given, weight).float().log_softmax(-1).gather(-1, reference[:, None])[:, 0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, whole, rtol=2e-2, atol=2e-2)
