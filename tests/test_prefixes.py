"""What several texts begin with is run once, and nothing that is read changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, build_family, build_tokenizer, random_ids
from hypothesis import given
from hypothesis import strategies as st

from hyperlens.encoding import Encoded
from hyperlens.lenses import HyperLens, Lens, LogitLens
from hyperlens.models import Model, load_model
from hyperlens.tasks import Sample
from hyperlens.tracing import Limits, batches, prefixes, trace
from hyperlens.tracing.batches import Job
from hyperlens.tracing.prefixes import group_texts

WHOLE = Limits(share_prefixes=False)
LENSES = (LogitLens(), HyperLens((0, 1, 3), "cached"))
SHARED = 40


def few_shots(count: int = 7, shared: int = SHARED) -> list[list[int]]:
    """Texts of different length that begin alike, and two that do not."""
    drawn = random_ids(count + 3, 60).tolist()
    return [[*drawn[0][:shared], *row[: 5 + 2 * number]] for number, row in enumerate(drawn[1:-2])] + drawn[-2:]


@pytest.fixture(scope="module")
def llama() -> Model:
    return load_model(build_family("llama"), build_tokenizer())


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that short texts are worth it."""
    monkeypatch.setattr(prefixes, "ENOUGH", 100)


@contextmanager
def count_tokens(model: Model) -> Iterator[list[int]]:
    """The tokens of each call of the first layer."""
    seen: list[int] = []
    layer: Any = model.splice.layers[0]
    handle = layer.self_attn.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(kwargs["hidden_states"].shape[:2].numel()), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("lens", LENSES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_read_is_the_same(family: str, lens: Lens) -> None:
    model = load_model(build_family(family))
    readings = ("entropy", "rank", "state_cosine")
    found, whole = (trace(model, few_shots(), lens, readings=readings, limits=one) for one in (Limits(), WHOLE))
    for name in ("probability", "entropy", "state_cosine", "output_probability"):
        np.testing.assert_allclose(found.data[name], whole.data[name], atol=2e-5)
    assert (found.data["output_id"] == whole.data["output_id"]).all()


@pytest.mark.parametrize("lens", LENSES, ids=str)
def test_the_common_beginning_is_run_once(llama: Model, lens: Lens) -> None:
    texts = few_shots()
    behind = [len(text) - SHARED for text in texts[:7]]
    with count_tokens(llama) as seen:
        trace(llama, texts, lens)
    longest = SHARED + max(behind)
    alone, proof = [2 * 60], [SHARED, longest, max(behind)]
    assert seen == [*alone, *proof, 7 * max(behind)]
    with count_tokens(llama) as seen:
        trace(llama, texts, lens, limits=WHOLE)
    assert sum(seen) > sum([*alone, 7 * SHARED])


def test_all_positions_of_answers_are_read_behind_it(llama: Model) -> None:
    shots = tuple((f"w{number} w11", f" w{number + 1}") for number in range(20, 32))
    samples = [Sample(f"w{number} w11", " w14 w15 w16", shots=shots) for number in range(40, 52)]
    for lens in LENSES:
        with count_tokens(llama) as seen:
            found = trace(llama, samples, lens)
        assert len(found.data["token"]) == 36 and len(seen) == 4
        np.testing.assert_allclose(found.to_numpy(), trace(llama, samples, lens, limits=WHOLE).to_numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("lens", "positions", "limits"),
    [
        (HyperLens((2,)), "last", Limits()),
        (LogitLens(), "all", Limits()),
        (LogitLens(), "last", Limits(padding_side="left")),
        (LogitLens(), "last", WHOLE),
    ],
    ids=["jump", "all positions", "left", "not wanted"],
)
def test_where_it_cannot_be_texts_are_run_whole(llama: Model, lens: Lens, positions: str, limits: Limits) -> None:
    texts = few_shots()
    with count_tokens(llama) as seen:
        trace(llama, texts, lens, positions, limits=limits)
    assert sum(seen) >= sum(map(len, texts))


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_where_two_parts_give_another_output_texts_are_run_whole(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(build_family(family))
    texts, whole = few_shots(), trace(model, few_shots(), LogitLens(), limits=WHOLE)
    run_prefix = type(model.splice).run_prefix
    monkeypatch.setattr(type(model.splice), "run_prefix", lambda splice, ids: run_prefix(splice, ids.flip(0)))
    with count_tokens(model) as seen:
        found = trace(model, texts, LogitLens())
    np.testing.assert_allclose(found.to_numpy(), whole.to_numpy(), atol=1e-6)
    assert sum(seen) > sum(map(len, texts)) + SHARED


def test_a_prefix_is_no_longer_than_its_memory_allows(llama: Model) -> None:
    job = make_job(llama, limits=Limits(memory_mb=1))
    least = job.limits.share(8, job.model.layers * job.kept_width)
    encoded = encode([[7] * (least + 50) + [number] for number in range(20, 26)])
    assert [group.shared for group in group_texts(job, encoded, range(6))] == [least]


def test_texts_in_batches_leave_room_for_what_is_kept_of_the_beginning(llama: Model) -> None:
    job = make_job(llama, HyperLens((3,), "cached"), Limits(batch_tokens=120))
    encoded = encode([[7] * 90 + [number] * 10 for number in range(20, 32)])
    sizes = {before: [len(one) for one in batches.make_batches(job, encoded, range(12), before)] for before in (0, 90)}
    assert sizes[0] == [1] * 12 and sizes[90] == [120 // (10 + job.weigh_kept(90))] * (12 // (120 // (10 + job.weigh_kept(90))))
    assert job.weigh_kept(90) > make_job(llama).weigh_kept(90) > 0


def make_job(model: Model, lens: Lens | None = None, limits: Limits | None = None) -> Job:
    lens = lens or LogitLens()
    return Job(model, lens, lens.check_depths(model.layers), ("probability",), "output", limits or Limits())


def encode(texts: Sequence[Sequence[int]], places: Sequence[int] = ()) -> list[Encoded]:
    ends = places or [len(text) - 1 for text in texts]
    return [Encoded(Sample(""), tuple(text), (end,)) for text, end in zip(texts, ends, strict=True)]


ROWS = st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=8), min_size=1, max_size=12)


@given(ROWS, st.data())
def test_groups_share_what_they_say_before_anything_is_read_of_them(llama: Model, rows: list[list[int]], data: Any) -> None:
    texts = [row * 40 for row in rows]
    places = [data.draw(st.integers(0, len(text) - 1)) for text in texts]
    encoded = encode(texts, places)
    order = sorted(range(len(texts)), key=lambda number: -places[number])
    groups = group_texts(make_job(llama), encoded, order)
    assert sorted(number for group in groups for number in group.numbers) == sorted(order)
    rank = {number: place for place, number in enumerate(order)}
    for group in groups:
        assert [rank[number] for number in group.numbers] == sorted(rank[number] for number in group.numbers)
        assert len({encoded[number].ids[: group.shared] for number in group.numbers}) == 1
        assert all(group.shared <= places[number] for number in group.numbers)
        assert not group.shared or group.saved >= prefixes.ENOUGH
    heads = [encoded[number].ids[: places[number]] for number in order]
    common = sum(1 for _ in takewhile(lambda part: len(set(part)) == 1, zip(*heads, strict=False)))
    if (len(order) - 1) * common >= prefixes.ENOUGH:
        assert sum(group.saved for group in groups) >= prefixes.ENOUGH


def test_parts_with_more_in_common_are_groups_of_their_own(llama: Model) -> None:
    opening, subjects = [9] * 10, ([11] * 80, [12] * 80)
    texts = [[*opening, *subjects[number % 2], 20 + number] for number in range(8)]
    groups = group_texts(make_job(llama), encode(texts), range(8))
    assert [(group.numbers, group.shared) for group in groups] == [((0, 2, 4, 6), 90), ((1, 3, 5, 7), 90)]


def test_texts_that_go_on_ever_longer_are_grouped_in_time(llama: Model) -> None:
    texts = [[5] * length for length in range(1, 1500)]
    order = range(len(texts) - 1, -1, -1)
    groups = group_texts(make_job(llama), encode(texts), order)
    assert sum(len(group.numbers) for group in groups) == len(texts)


def test_a_model_whose_memory_is_its_own_kind_is_run_whole() -> None:
    model = load_model(build_family("bloom"))
    assert not model.splice.prefix_proved and model.certificate.cached_form == "steps"
    assert [group.shared for group in group_texts(make_job(model), encode(few_shots()), range(9))] == [0]


def test_the_first_text_of_a_group_is_compared_at_the_place_that_is_read(llama: Model) -> None:
    encoded = [replace(one, ids=(*one.ids, 30, 31)) for one in encode(few_shots()[:7])]
    job = make_job(llama)
    with torch.no_grad():
        found = list(prefixes.share_texts(job, encoded, range(6, -1, -1)))
    assert [(len(numbers), prefix and prefix.length) for numbers, prefix, _ in found] == [(7, SHARED)] and found[0][2] < 1e-5
