"""Lenses side by side: the laws of KL, bias and next-token loss, identical inputs, cost by counting, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Call, make_call
from families import LAYERS, VOCABULARY, WIDTH, random_ids
from plain import layer_states
from rich.console import Console
from sentences import is_one_sentence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from traced import CONTEXTS, TEXTS, loaded, own_logits, words

import hyperlens as hl
from hyperlens.anatomy import study_anatomy
from hyperlens.artefact import hash_file
from hyperlens.causal import Ablation, Responses, average_alignment, correlate_influences, draw_directions
from hyperlens.cli.lenses import Picked, _describe_sources, _pick
from hyperlens.contrast import estimate_trend
from hyperlens.encoding import Encoded
from hyperlens.errors import HyperLensWarning, InputError, MemoryLimitError
from hyperlens.evaluation import Evaluation, evaluate_lenses, sums
from hyperlens.evaluation.cost import count_passes
from hyperlens.evaluation.sums import OUTPUT, Sums
from hyperlens.lenses import HyperLens, Lens, LogitLens, Origin, Translators, TunedLens, save_lens
from hyperlens.models import Model
from hyperlens.splice import at_rest
from hyperlens.tasks import Sample
from hyperlens.terminal import show_evaluation
from hyperlens.tracing import Limits, batches, reading
from hyperlens.tracing.batches import Seen
from hyperlens.trajectory import pool_effort

RESPONSES = Responses(*np.random.default_rng(0).random((3, 4, 5), dtype=np.float32), Ablation(1), {})
VALUES = ("kl", "bias", "next_token_loss")
GRADED = [Sample(words(random_ids(1, 5 + number % 3, number)[0].tolist()), f" w{20 + number}", level=1 + number % 4, task="own")
          for number in range(24)]  # fmt: skip


def tune(model: Model, seed: int | None, **settings: Any) -> TunedLens:
    """A tuned lens of this model: the identity, or small random translators."""
    torch.manual_seed(seed or 0)
    translators = Translators.identity(model.layers, WIDTH)
    if seed is not None:
        translators = Translators(0.1 * torch.randn_like(translators.weight), torch.randn(model.layers, WIDTH))
    return TunedLens(translators=translators, origin=Origin(model.name, model.fingerprint), **settings)


def same(one: Evaluation, other: Evaluation, bound: float = 1e-4) -> None:
    """The same values by state, and the same rows but for what they cost."""
    for name in one.data.data_vars:
        np.testing.assert_allclose(one.data[name].values, other.data[name].values, atol=bound, err_msg=str(name))
    for row, wanted in zip(one.rows, other.rows, strict=True):
        assert (row.focal_depth, row.states, row.lens["context"]) == (wanted.focal_depth, wanted.states, wanted.lens["context"])
        for name in ("prediction_depth", "resolution", "effort", "common_effort", "answer_kl"):
            assert getattr(row, name).value == pytest.approx(getattr(wanted, name).value, abs=bound), name


def plain_values(model: Model, texts: Sequence[Sequence[int]], state: int) -> tuple[float, float, float]:
    """KL, bias and next-token loss of the logit lens at a state, all logits of all tokens side by side, in float64."""
    read, own, following = [], [], []
    for ids in texts:
        hidden = layer_states(model.network, torch.tensor([ids]))[state][0, :-1]
        with torch.no_grad():
            read.append(model.splice.head(hidden).double())
        own.append(own_logits(model, ids)[:-1].double())
        following += ids[1:]
    q, p = torch.cat(read).log_softmax(-1), torch.cat(own).log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).mean()
    mean_p, mean_q = p.exp().mean(0), q.exp().mean(0)
    loss = torch.nn.functional.cross_entropy(q, torch.tensor(following))
    return float(kl), float((mean_p * (mean_p / mean_q).log()).sum()), float(loss)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_kl_bias_and_loss_are_those_of_all_logits_side_by_side(family: str) -> None:
    model = loaded(family)
    found = evaluate_lenses(model, TEXTS, [LogitLens()]).data
    for state in (0, 2, LAYERS - 1):
        expected = plain_values(model, TEXTS, state)
        assert [found[name].values[0, state] for name in VALUES] == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_models_own_output_is_read_without_error_and_with_its_own_loss(context: Any) -> None:
    model = loaded("llama")
    found = evaluate_lenses(model, TEXTS, [LogitLens(), HyperLens((1, 4), context)])
    logits = torch.cat([own_logits(model, ids)[:-1] for ids in TEXTS])
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([token for ids in TEXTS for token in ids[1:]]))
    assert found.manifest["output"]["next_token_loss"] == pytest.approx(float(loss), rel=1e-5)
    for number, row in enumerate(found.rows):
        own = found.data.isel(row=number, state=slice(row.states, None))
        assert own.sizes["state"] == row.focal_depth + 1
        assert np.abs(own["kl"].values).max() < 1e-5 and not own["bias"].values.any()
        np.testing.assert_allclose(own["next_token_loss"].values, float(loss), rtol=1e-5)


def test_identity_translators_give_the_row_of_the_logit_lens() -> None:
    model = loaded("gpt2")
    found = evaluate_lenses(model, GRADED, [LogitLens(), tune(model, None)])
    logit, tuned = found.rows
    for name in found.data.data_vars:
        assert np.array_equal(found.data[name].values[0], found.data[name].values[1]), name
    assert replace(tuned, name=logit.name, lens=logit.lens, cost=logit.cost) == logit
    assert (logit.cost.translators, tuned.cost.translators) == (0, LAYERS)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_bias_is_never_above_kl_nor_either_below_zero(family: str) -> None:
    model = loaded(family)
    found = evaluate_lenses(model, TEXTS, [LogitLens(), HyperLens((1, 3)), tune(model, 3)]).data
    assert (found["bias"].values >= 0).all() and (found["kl"].values >= 0).all()
    assert (found["bias"].values <= found["kl"].values + 1e-5).all()
    assert (found["kl_low"].values <= found["kl"].values + 1e-9).all()
    assert (found["kl"].values <= found["kl_high"].values + 1e-9).all()


def test_a_lens_that_says_the_right_things_at_the_wrong_places_has_no_bias() -> None:
    one, other = torch.tensor([[9.0, 0.0], [0.0, 9.0]]), torch.tensor([[0.0, 9.0], [9.0, 0.0]])
    taken = Sums(0)
    taken.add(Seen(0, 0, other[None], one, torch.tensor([0, 1])))
    assert taken.measure_bias(0, 1)[0] == pytest.approx(0, abs=1e-6)
    assert taken.average_loss(0, 1, 2) == pytest.approx([9, 0], abs=1e-3)


def test_a_uniform_lens_has_the_loss_of_guessing_and_the_negentropy_of_the_output_as_its_bias() -> None:
    output, following = torch.randn(7, VOCABULARY) * 3, torch.arange(7)
    taken = Sums(2)
    taken.add(Seen(2, 0, torch.zeros(1, 7, VOCABULARY), output, following))
    mean = output.double().softmax(-1).mean(0)
    assert taken.average_loss(2, 3, 7)[0] == pytest.approx(math.log(VOCABULARY), rel=1e-5)
    assert taken.measure_bias(2, 3)[0] == pytest.approx(float((mean * mean.log()).sum()) + math.log(VOCABULARY), rel=1e-5)


def test_a_token_that_float32_excludes_everywhere_still_has_a_finite_bias() -> None:
    taken = Sums(0)
    taken.add(Seen(0, 0, torch.tensor([[[0.0, -300.0]]]), torch.tensor([[0.0, 0.0]]), torch.tensor([0])))
    assert taken.measure_bias(0, 1)[0] == pytest.approx(150 - math.log(2), rel=1e-5)


@pytest.mark.parametrize(("rows", "tokens", "context"), [(1, 1, "jump"), (3, 20, "cached")])
def test_chunks_change_nothing(rows: int, tokens: int, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, lenses = loaded("gemma2"), [LogitLens(), HyperLens((1, 4), context)]
    whole = evaluate_lenses(model, TEXTS[2:], lenses)
    for name, most in {"logit_rows": rows, "stack_tokens": tokens, "batch_tokens": tokens}.items():
        monkeypatch.setattr(batches.Job, name, most)
    same(evaluate_lenses(model, TEXTS[2:], lenses), whole)


@pytest.mark.parametrize(("family", "side"), [("llama", "left"), ("mistral", "right")])
def test_ragged_batches_and_padding_change_nothing(family: str, side: Any) -> None:
    lenses = [LogitLens(), HyperLens((2,)), tune(loaded(family), 1)]
    together = evaluate_lenses(loaded(family), TEXTS, lenses, Limits(padding_side=side))
    same(together, evaluate_lenses(loaded(family), TEXTS, lenses, Limits(batch_tokens=1)))


def test_sums_that_do_not_fit_at_once_are_made_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, lenses, limits = loaded("llama"), [HyperLens((0, 1, 3))], Limits(memory_mb=1)
    once = evaluate_lenses(model, TEXTS, lenses, limits)
    passes, read = [], reading.read_texts
    monkeypatch.setattr(
        "hyperlens.evaluation.lenses.read_texts", lambda job, texts: passes.append(job.depths) or read(job, texts)
    )
    monkeypatch.setattr(sums, "BYTES", 2**18 // ((LAYERS + 1) * VOCABULARY))
    same(evaluate_lenses(model, TEXTS, lenses, limits), once)
    assert passes == [(0, 1), (3,)]
    monkeypatch.setattr(sums, "BYTES", 2**20)
    with pytest.raises(MemoryLimitError, match=r"give at least \d+ \(--memory-mb\)") as refused:
        evaluate_lenses(model, TEXTS, lenses, limits)
    assert is_one_sentence(str(refused.value))


class _Largest(TorchDispatchMode):
    """Rows of the largest tensor with a vocabulary axis."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, torch.Tensor) and one.ndim and one.shape[-1] == VOCABULARY:
                self.rows = max(self.rows, one.numel() // VOCABULARY)
        return made


def test_no_tensor_holds_states_by_tokens_by_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = loaded("llama"), [random_ids(1, 30, number)[0].tolist() for number in range(4)]
    monkeypatch.setattr(batches.Job, "logit_rows", 32)
    with _Largest() as largest:
        evaluate_lenses(model, texts, [LogitLens(), HyperLens((1, 2)), tune(model, 2)])
    assert 16 <= largest.rows <= 64


def test_the_mean_is_over_tokens_and_its_interval_over_texts() -> None:
    model, texts = loaded("llama"), [random_ids(1, length, length)[0].tolist() for length in (3, 30, 12, 7)]
    whole = evaluate_lenses(model, texts, [LogitLens()]).rows[0].inner.kl
    alone = [evaluate_lenses(model, [ids], [LogitLens()]).rows[0].inner.kl.value for ids in texts]
    assert whole.value == pytest.approx(np.average(alone, weights=[len(ids) - 1 for ids in texts]), rel=1e-5)
    assert whole.n == 4 and min(alone) < whole.low < whole.value < whole.high


def test_intervals_draw_whole_texts_whose_parts_are_read_apart() -> None:
    model, lenses = loaded("llama"), [HyperLens((1,))]
    (once,), (parts,), (apart,) = (
        evaluate_lenses(model, texts, lenses, owners=owners).rows
        for texts, owners in ((TEXTS, None), (TEXTS * 2, [0, 1, 2, 3] * 2), (TEXTS * 2, None))
    )
    for name in ("answer_kl", "prediction_depth", "resolution", "effort", "common_effort"):
        found, expected = getattr(parts, name), getattr(once, name)
        assert asdict(found) == pytest.approx(asdict(expected), rel=1e-4, abs=1e-6), name
    assert (parts.inner.kl.n, apart.inner.kl.n) == (4, 8)
    assert asdict(parts.inner.kl) == pytest.approx(asdict(once.inner.kl), rel=1e-4)
    assert apart.inner.kl.high - apart.inner.kl.low < 0.9 * (parts.inner.kl.high - parts.inner.kl.low)


def test_one_text_and_one_lens_need_no_list() -> None:
    model, text = loaded("llama"), "w20 w21 w22 w23"
    listed = evaluate_lenses(model, [text], [LogitLens()])
    for samples in (text, Sample(text)):
        same(evaluate_lenses(model, samples, LogitLens()), listed)


SEEDED: dict[str, Callable[[int], object]] = {
    "evaluation": lambda seed: evaluate_lenses(loaded("llama"), TEXTS, seed=seed),
    "ablation": lambda seed: Ablation(1, seed=seed),
    "directions": lambda seed: draw_directions(8, 2, seed),
    "correlation": lambda seed: correlate_influences(RESPONSES, seed),
    "alignment": lambda seed: average_alignment(RESPONSES, seed),
}


@pytest.mark.parametrize("name", SEEDED)
@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_some_generator_would_not_take_is_refused(name: str, seed: int) -> None:
    with pytest.raises(InputError, match=f"the seed is {seed}; give a whole number from 0 to") as refused:
        SEEDED[name](seed)
    assert is_one_sentence(str(refused.value))


def test_effort_and_its_trend_are_those_of_a_trace() -> None:
    model = loaded("llama")
    found = evaluate_lenses(model, GRADED, [HyperLens((0, 2))])
    pooled = pool_effort(hl.trace(model, GRADED, HyperLens((0, 2)), reference="output"))["mean"].values
    levels = np.array([sample.level for sample in GRADED], dtype=float)
    for number, row in enumerate(found.rows):
        assert row.effort.value == pytest.approx(pooled[:, number].mean(), abs=1e-5)
        (part,) = row.separation
        assert (part.task, part.levels, part.rho.n) == ("own", (1, 2, 3, 4), len(GRADED))
        assert part.rho.value == pytest.approx(estimate_trend(levels, pooled[:, number]).value, abs=1e-6)
        assert part.rho.low <= part.rho.value <= part.rho.high and 0 <= part.auroc.value <= 1
    assert found.manifest["inputs"]["answer_tokens"] == len(GRADED) and found.manifest["common_states"] == LAYERS - 2
    assert found.rows[1].effort == found.rows[1].common_effort != found.rows[0].common_effort


def test_texts_without_levels_have_no_separation_and_are_read_at_all_tokens() -> None:
    found = evaluate_lenses(loaded("llama"), TEXTS)
    assert not any(row.separation for row in found.rows)
    assert found.manifest["inputs"]["answer_tokens"] == found.manifest["inputs"]["tokens"] == sum(map(len, TEXTS)) - len(TEXTS)
    assert [(row.name, row.focal_depth) for row in found.rows] == [("logit", 0), ("hyper", 1), ("hyper", 2), ("hyper", 4)]
    for row in found.rows:
        assert row.answer_kl.value == pytest.approx(row.common.kl.value, rel=1e-5)


def test_options_are_lettered_and_the_whole_vocabulary_is_read() -> None:
    model, sample = loaded("llama"), Sample("w20 w21", " w31", (" w30", " w31"))
    written = Sample("w20 w21\nA. w30\nB. w31\nAnswer:", " B")
    one, other = (evaluate_lenses(model, [given], [LogitLens()]) for given in (sample, written))
    assert one.manifest["inputs"] == other.manifest["inputs"]
    same(one, other)


def test_identical_inputs_have_one_hash() -> None:
    model = loaded("llama")
    hashes = [evaluate_lenses(model, texts, [LogitLens()]).manifest["inputs"]["sha256"] for texts in (TEXTS, TEXTS, TEXTS[1:])]
    assert hashes[0] == hashes[1] != hashes[2]


@contextmanager
def _counting(model: Model) -> Iterator[list[int]]:
    """Tokens that enter the part of each layer which a bypassed layer does not run."""
    counted: list[int] = []
    layers = study_anatomy(model.network).layers
    handles = [
        layer.mlp.register_forward_hook(lambda _, args, out: counted.append(args[0].shape[:-1].numel())) for layer in layers
    ]
    try:
        yield counted
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(
    "lens",
    [LogitLens(), HyperLens((2,)), HyperLens((3,), "cached"), HyperLens((0,), between=(1, 4)), HyperLens((2,), between=(3, 6))],
    ids=str,
)
def test_passes_are_the_layers_times_tokens_that_are_run(lens: Lens, monkeypatch: pytest.MonkeyPatch) -> None:
    route = reading.route_batch
    monkeypatch.setattr(reading, "route_batch", lambda *given: replace(route(*given), prove=lambda row: 0.0))
    model, ids = loaded("llama"), random_ids(3, 11).tolist()
    with _counting(model) as counted:
        (row,) = evaluate_lenses(model, ids, [lens]).rows
    assert row.cost.passes == pytest.approx(sum(counted) / (LAYERS * 3 * 10))
    assert row.cost.measured is None and row.cost.readouts == LAYERS - row.focal_depth + 1


def test_steps_and_replay_cost_what_they_run() -> None:
    model, lens = loaded("llama"), HyperLens((2,), "cached")
    texts, found = [Encoded(Sample(""), (20, 21, 22, 23), (0, 1, 2))], {}
    for form in ("rows", "steps", "replay"):
        changed = replace(model, certificate=replace(model.certificate, cached_form=form))
        found[form] = count_passes(changed, lens, 2, texts)
    routed = (LAYERS - 2 + 1) * 2 / LAYERS
    assert found == pytest.approx({"rows": 1 + routed, "steps": 2 + routed, "replay": 2 + 2 * routed})


def test_time_is_measured_beside_a_plain_pass() -> None:
    (row,) = evaluate_lenses(loaded("llama"), TEXTS, [HyperLens((2,))], repeats=2).rows
    assert row.cost.measured is not None and row.cost.measured > 0.5


def test_a_lens_of_another_model_is_read_with_transfer_only_and_says_so() -> None:
    lens = tune(loaded("gpt2"), 1)
    with pytest.raises(InputError, match="--transfer"):
        evaluate_lenses(loaded("llama"), TEXTS, [lens])
    (row,) = evaluate_lenses(loaded("llama"), TEXTS, {"base": replace(lens, transfer=True)}).rows
    assert row.name == "base" and row.lens["transfer"] and row.lens["origin"]["fingerprint"] == loaded("gpt2").fingerprint


REFUSED: dict[str, tuple[Any, str]] = {
    "no text": (lambda: evaluate_lenses(loaded("llama"), []), "there is no text to read"),
    "one token": (lambda: evaluate_lenses(loaded("llama"), [[20, 21], [20]]), "text 2 is a single token"),
    "no lens": (lambda: evaluate_lenses(loaded("llama"), TEXTS, []), "there is no lens to evaluate"),
    "all layers": (lambda: evaluate_lenses(loaded("llama"), TEXTS, [HyperLens((1, LAYERS))]), "give one below"),
    "too deep": (lambda: evaluate_lenses(loaded("llama"), TEXTS, [HyperLens((9,))]), "focal depth 9 is above"),
    "repeats": (lambda: evaluate_lenses(loaded("llama"), TEXTS, repeats=-1), "repeats is -1"),
    "owners": (lambda: evaluate_lenses(loaded("llama"), TEXTS, owners=[0]), "1 owners were given for 4 samples"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_evaluated_is_refused_in_one_sentence(name: str) -> None:
    attempt, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason) as refused:
        attempt()
    assert is_one_sentence(str(refused.value))


def test_auto_chooses_a_depth_and_lenses_of_one_kind_are_numbered() -> None:
    model = loaded("llama")
    found = evaluate_lenses(model, TEXTS, [tune(model, 1), tune(model, 2), HyperLens("auto")])
    assert [row.name for row in found.rows[:2]] == ["tuned 1", "tuned 2"]
    assert {row.name for row in found.rows[2:]} == {"hyper"} and len(found.rows) == 4
    assert OUTPUT not in {(row.focal_depth, 0) for row in found.rows}


@pytest.fixture
def call(capsys: Any, monkeypatch: Any) -> Call:
    """The command: its exit status, and what it prints on either side."""
    return make_call(capsys, monkeypatch, "evaluate-lenses")


def test_the_command_prints_a_table_and_stable_json(saved: Path, tmp_path: Path, call: Call, capsys: Any) -> None:
    model = hl.load_model(saved)
    save_lens(tune(model, 1), tmp_path / "mine")
    (tmp_path / "texts.txt").write_text(words(random_ids(1, 200)[0].tolist()), encoding="utf-8")
    usual = (saved, "--text", tmp_path / "texts.txt", "--lens", tmp_path / "mine", "--focal-depth", "1,2")
    status, out, _ = call(*usual, "--repeats", 0, "--json", "--out", tmp_path / "all.json")
    document = json.loads(out)
    assert status == 0 and document == json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert [(row["name"], row["focal_depth"]) for row in document["rows"]] == [
        ("logit", 0),
        ("mine", 0),
        ("hyper", 1),
        ("hyper", 2),
    ]
    assert set(document) == {
        "kind", "sources", "model", "inputs", "limits", "definitions", "versions", "output", "common_states", "seed", "rows",
    }  # fmt: skip
    assert set(document["rows"][0]) == {
        "name", "lens", "focal_depth", "states", "inner", "common", "answer_kl", "prediction_depth", "resolution", "effort",
        "common_effort", "separation", "cost", "by_state",
    }  # fmt: skip
    show_evaluation(Console(width=200), document)
    out = capsys.readouterr().out
    assert all(shown in out for shown in ("mine", "hyper, jump", "nats"))
    for wrong, reason in {
        ("--task", "logic"): "give one of them",
        ("--limit", "0"): "give a number from 1 up",
        ("--lens", str(tmp_path / "hyper")): 'two lenses are called "hyper"',
        ("--out", str(tmp_path)): "is a folder",
        ("--seed", "-1"): "the seed is -1; give a whole number",
    }.items():
        status, out, said = call(*usual, *wrong)
        assert (status, out, said.count("\n")) == (2, "", 1) and reason in said, said


def test_a_seed_is_refused_before_anything_is_read(call: Call) -> None:
    status, out, said = call("no-such-model", "--seed", -1)
    assert (status, out) == (2, "") and "the seed is -1" in said


def test_only_an_evaluation_is_replaced_by_an_evaluation(saved: Path, tmp_path: Path, call: Call) -> None:
    precious, manifest, out = tmp_path / "texts.txt", tmp_path / "lens" / "manifest.json", tmp_path / "all.json"
    precious.write_text(words(random_ids(1, 30)[0].tolist()), encoding="utf-8")
    save_lens(tune(hl.load_model(saved), 1), manifest.parent)
    usual = (saved, "--text", precious, "--focal-depth", 1, "--repeats", 0)
    for file in (precious, manifest):
        before = file.read_bytes()
        status, _, said = call(*usual, "--out", file)
        assert status == 2 and is_one_sentence(said.strip()) and file.read_bytes() == before
    assert [call(*usual, "--out", out)[0] for _ in range(2)] == [0, 0]


def test_each_file_is_read_up_to_the_limit_and_the_output_says_how_much(saved: Path, tmp_path: Path, call: Call) -> None:
    one, other = tmp_path / "one.txt", tmp_path / "other.jsonl"
    one.write_text(words(random_ids(1, 700)[0].tolist()), encoding="utf-8")
    lines = [words(random_ids(1, length, length)[0].tolist()) for length in (9, 300, 7)]
    other.write_text("\n".join(json.dumps({"text": line}) for line in lines), encoding="utf-8")
    usual = (saved, "--text", one, "--text", other, "--limit", 2, "--focal-depth", 1, "--repeats", 0)
    document = json.loads(call(*usual, "--json")[1])
    running, whole = document["sources"]
    assert (running["name"], running["unit"], running["read"]) == ("one.txt", "chunk", 2) and running["texts"] > 2
    assert (whole["name"], whole["unit"], whole["read"], whole["texts"]) == ("other.jsonl", "text", 2, 3)
    assert document["inputs"]["texts"] == 4 < document["inputs"]["parts"]
    assert {row["inner"]["kl"]["n"] for row in document["rows"]} == {4}
    shown = " ".join(call(*usual)[1].split())
    assert f"2 of {running['texts']} chunks of one.txt" in shown and "2 of 3 texts of other.jsonl" in shown


def test_what_is_picked_is_spread_over_all_there_is() -> None:
    assert [text[0] for text in _pick([[number] for number in range(10)], {}, 4).texts] == [0, 2, 5, 7]
    assert len(_pick([[0], [1]], {}, 4).texts) == 2


def test_a_lens_on_the_text_that_it_was_trained_on_is_warned_of(saved: Path, tmp_path: Path, call: Call) -> None:
    mine, text, other = tmp_path / "mine", tmp_path / "a.txt", tmp_path / "b.txt"
    for number, file in enumerate((text, other)):
        file.write_text(words(random_ids(1, 30, number)[0].tolist()), encoding="utf-8")
    save_lens(tune(hl.load_model(saved), 1), mine, {"text": {"sources": [{"sha256": hash_file(text)}]}})
    usual = (saved, "--text", text, "--text", other, "--lens", mine, "--focal-depth", 1, "--repeats", 0)
    document = json.loads(call(*usual, "--json")[1])
    assert [source["trained_on_it"] for source in document["sources"]] == [["mine"], []]
    assert "mine was trained on it" in " ".join(call(*usual)[1].split())
    with pytest.warns(HyperLensWarning, match=r"mine was trained on a\.txt") as said:
        _describe_sources([Picked([], one) for one in document["sources"]], {"mine": str(mine)})
    assert len(said) == 1


def test_a_lens_is_called_as_its_folder_however_it_is_named(saved: Path, tmp_path: Path, call: Call, monkeypatch: Any) -> None:
    save_lens(tune(hl.load_model(saved), 1), tmp_path / "mine")
    (tmp_path / "a.txt").write_text(words(random_ids(1, 30)[0].tolist()), encoding="utf-8")
    monkeypatch.chdir(tmp_path / "mine")
    usual = (saved, "--text", tmp_path / "a.txt", "--lens", ".", "--focal-depth", 1, "--repeats", 0, "--json")
    assert [row["name"] for row in json.loads(call(*usual)[1])["rows"]] == ["logit", "mine", "hyper"]


@pytest.mark.slow
def test_at_rest_again_after_an_evaluation() -> None:
    model = loaded("llama")
    before = own_logits(model, TEXTS[0])
    evaluate_lenses(model, TEXTS)
    with at_rest(model.network):
        assert torch.equal(own_logits(model, TEXTS[0]), before)


def test_every_table_of_the_page_is_made_of_the_committed_numbers(reference: Model) -> None:
    from lenses_page import DOCS, make_tables
    from test_docs import check_tables

    found = json.loads((DOCS / "lenses.json").read_text(encoding="utf-8"))
    assert found["reference"]["model"]["fingerprint"] == reference.fingerprint
    check_tables(DOCS / "lenses.md", make_tables(found), "run benchmarks/lenses.py")
    assert len({(one["limit"], one["seed"]) for one in found.values()}) == 1
    seen, page = found["reference"]["seen"], (DOCS / "lenses.md").read_text(encoding="utf-8")
    assert f"{seen['held_out_asides']} of its {seen['asides']:,} different asides" in page
    assert f"up to {found['reference']['limit']} questions" in page
    assert all(row["cost"]["measured"] for one in found.values() for row in one["rows"])


def test_the_page_about_lenses_runs() -> None:
    from test_docs import run_blocks

    run_blocks("docs/lenses.md")
