"""The generation monitor: what is said stays what it was, and each token's trajectory is the one that `trace` reads."""

import gc
import json
import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from commands import make_call
from families import build_family
from sentences import is_one_sentence

import hyperlens as hl
from hyperlens.errors import CertificateError, InputError
from hyperlens.monitoring.generation import reading
from hyperlens.monitoring.generation.spelling import Spelling
from hyperlens.splice import Inputs
from hyperlens.tracing.batches import Job
from hyperlens.tracing.reading import read_texts

FAMILIES = ("llama", "mistral", "gemma2", "gpt2", "granite", "bloom", "gpt_neo", "mamba", "jamba", "gemma3n_text")
"""Full attention, windows, soft-capped and scaled read-outs, biases of position, recurrent and hybrid layers, shared keys."""
DEEP = hl.HyperLens((2,), context="cached")
GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest) -> Any:
    """A random model of the family, which nothing ends, with a prompt longer than any window of it."""
    return make_model(request.param)


@pytest.fixture(scope="module")
def llama() -> Any:
    return make_model("llama")


def make_model(name: str, **changes: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what transformers says of kernels that are not there
        model = hl.load_model(build_family(name, **changes))
    model.network.generation_config.eos_token_id = None
    model.network.generation_config.pad_token_id = 0
    return model


def draw_prompt(model: Any, length: int = 20, seed: int = 0) -> list[int]:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(5, len(model.splice.embedding), (length,), generator=random).tolist()


def generate_plainly(model: Any, prompt: list[int], **settings: Any) -> torch.Tensor:
    ids = torch.tensor([prompt])
    return model.network.generate(ids, attention_mask=torch.ones_like(ids), **settings)


def trace_again(generated: Any, lens: hl.Lens) -> np.ndarray:
    """What `trace` reads of the same tokens: [token, state]."""
    (encoded,) = generated.encoded
    depth = lens.focal_depths[0]
    job = Job(generated.job.model, lens, (depth,), ("probability",), "generated", hl.Limits(progress=False))
    with torch.no_grad():
        return read_texts(job, [encoded]).readings["probability"][:, 0]


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_what_is_said_and_the_random_state_are_those_of_a_generation_that_nobody_follows(family: Any) -> None:
    prompt = draw_prompt(family)
    for lens in (hl.LogitLens(), DEEP):
        for settings in (GREEDY, {**GREEDY, "do_sample": True}):
            torch.manual_seed(1)
            plain, state = generate_plainly(family, prompt, **settings), torch.get_rng_state()
            torch.manual_seed(1)
            generated = hl.Monitor(family, lens, top_k=2).generate(prompt, **settings)
            assert torch.equal(generated.ids, plain)
            assert torch.equal(torch.get_rng_state(), state)
            assert [token.token_id for token in generated.tokens] == plain[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
@pytest.mark.parametrize("together", [1, 4])
def test_each_token_has_the_trajectory_that_trace_reads(family: Any, together: int) -> None:
    for lens in (hl.HyperLens((0,), context="cached"), DEEP):
        generated = hl.Monitor(family, lens, together=together).generate(draw_prompt(family), **GREEDY)
        traced = trace_again(generated, lens)
        np.testing.assert_allclose(generated.trajectory().to_numpy()[:, 0], traced, rtol=1e-4, atol=1e-6)
        assert generated.manifest["largest_error_in_run"] <= 1e-5


def test_tokens_are_read_together_where_nobody_waits_for_one(llama: Any) -> None:
    prompt, told = draw_prompt(llama), []
    monitor = hl.Monitor(llama, DEEP)
    alone = monitor.generate(prompt, told.append, stopped=lambda: len(told) == 2, **GREEDY)
    assert alone.manifest["monitor"]["together"] == 1 and len(alone.tokens) == 2  # each was told before the next was made
    both = [monitor.generate(prompt, **GREEDY), hl.Monitor(llama, DEEP, together=1).generate(prompt, **GREEDY)]
    assert [generated.manifest["monitor"]["together"] for generated in both] == [8, 1]
    np.testing.assert_allclose(*(generated.trajectory().to_numpy() for generated in both), rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore:the translators were trained at focal depth 0")
def test_a_tuned_lens_reads_what_its_translators_make() -> None:
    model, text = hl.load_model("reference"), "3 + 4 * 5 - 6 is"
    lens = hl.load_lens("reference", (1,), "cached")
    generated = hl.Monitor(model, lens).generate(text, max_new_tokens=3, do_sample=False)
    traced = hl.trace(model, text, lens, "generated", limits=hl.Limits(max_new_tokens=3, progress=False))
    np.testing.assert_allclose(generated.trajectory().to_numpy(), traced.to_numpy(), rtol=1e-4, atol=1e-6)
    assert generated.manifest["lens"] == traced.manifest["lens"]


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
@pytest.mark.parametrize("together", [1, 3])
def test_texts_of_a_batch_are_followed_as_each_alone(name: str, together: int) -> None:
    model = make_model(name)
    prompts = [draw_prompt(model, 20), draw_prompt(model, 13, seed=1)]
    monitor = hl.Monitor(model, DEEP, together=together)
    both = monitor.generate(prompts, **GREEDY)
    for row, prompt in enumerate(prompts):
        alone, mine = monitor.generate(prompt, **GREEDY), [token for token in both.tokens if token.row == row]
        assert [token.token_id for token in mine] == [token.token_id for token in alone.tokens]
        assert [(token.index, token.position) for token in mine] == [(token.index, token.position) for token in alone.tokens]
        for one, other in zip(mine, alone.tokens, strict=True):
            np.testing.assert_allclose(one.confidence, other.confidence, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("together", [1, 3])
def test_a_text_that_has_ended_gets_no_more_tokens(llama: Any, together: int) -> None:
    prompts = [draw_prompt(llama, 20), draw_prompt(llama, 13, seed=1)]
    monitor = hl.Monitor(llama, DEEP, together=together)
    whole = [[token.token_id for token in monitor.generate(prompt, **GREEDY).tokens] for prompt in prompts]
    end = whole[0][2]
    cut = [ids[: ids.index(end) + 1] if end in ids else ids for ids in whole]
    assert len(cut[0]) < len(whole[0])
    ended = monitor.generate(prompts, **GREEDY, eos_token_id=end)
    for row, ids in enumerate(cut):
        assert [token.token_id for token in ended.tokens if token.row == row] == ids
    assert ended.trajectory().data.sizes["token"] == sum(map(len, cut))


def test_several_answers_to_one_prompt_are_rows_of_their_own(llama: Any) -> None:
    torch.manual_seed(0)
    generated = hl.Monitor(llama).generate(draw_prompt(llama), max_new_tokens=3, do_sample=True, num_return_sequences=2)
    assert generated.ids.shape == (2, 23)
    for row in (0, 1):
        assert [token.token_id for token in generated.tokens if token.row == row] == generated.ids[row, 20:].tolist()


@pytest.mark.parametrize("stride", [2, 3, 100])
def test_a_stride_reads_some_of_the_states_and_always_the_last(llama: Any, stride: int) -> None:
    prompt, last = draw_prompt(llama), llama.layers - 2
    every = hl.Monitor(llama, DEEP).generate(prompt, **GREEDY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hl.HyperLensWarning)
        some = hl.Monitor(llama, DEEP, stride=stride).generate(prompt, **GREEDY)
    states = sorted({*range(0, last, stride), last})
    for one, other in zip(some.tokens, every.tokens, strict=True):
        assert list(one.states) == states
        np.testing.assert_allclose(one.confidence, other.confidence[states], rtol=1e-4, atol=1e-7)
        assert one.effort == pytest.approx(_effort(one.confidence), nan_ok=True)
        assert one.commit is None or one.commit in states
    with pytest.raises(InputError, match="stride"):
        some.trajectory()


def _effort(confidence: np.ndarray) -> float:
    """Ω as its definition has it."""
    own = float(confidence[-1])
    return float("nan") if own < 0.01 else float(np.mean(1 - np.clip(confidence[:-1].astype(float) / own, 0, 1)))


def _generate_both(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None, **settings: Any) -> tuple[Any, Any]:
    """What `generate` gives without a monitor, and with one, from the same random state."""
    torch.manual_seed(3)
    plain = model.network.generate(ids, attention_mask=torch.ones_like(ids) if mask is None else mask, **settings)
    torch.manual_seed(3)
    return plain, hl.Monitor(model, DEEP, together=2).generate(ids, attention_mask=mask, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 3.0, "num_return_sequences": 2},
        {"repetition_penalty": 1.7, "min_new_tokens": 3, "eos_token_id": [5, 6]},
        {"prefill_chunk_size": 7},
        {"stopping_criteria": [transformers.EosTokenCriteria(7)]},
        {"generation_config": transformers.GenerationConfig(max_new_tokens=5, do_sample=True, temperature=2.0)},
    ],
)
def test_whatever_is_asked_of_generate_is_said_as_without_a_monitor(settings: dict[str, Any]) -> None:
    model = make_model("mistral")
    model.network.generation_config.eos_token_id = 8  # mixed into any configuration that does not say
    ids = torch.tensor([draw_prompt(model), [0] * 7 + draw_prompt(model, 13, seed=1)])
    mask = torch.tensor([[1] * 20, [0] * 7 + [1] * 13])
    plain, followed = _generate_both(model, ids, mask, **({} if "generation_config" in settings else GREEDY) | settings)
    assert torch.equal(followed.ids, plain)
    for row in range(len(plain)):
        told = [token.token_id for token in followed.tokens if token.row == row]
        assert told == plain[row, 20 : 20 + len(told)].tolist()
        assert set(plain[row, 20 + len(told) :].tolist()) <= {0, 8}


def test_a_token_that_ends_by_the_models_own_settings_is_the_last_that_is_told(llama: Any) -> None:
    prompt = draw_prompt(llama)
    end = hl.Monitor(llama).generate(prompt, **GREEDY).tokens[1].token_id
    try:
        llama.network.generation_config.eos_token_id = end
        config = transformers.GenerationConfig(max_new_tokens=6, do_sample=False)
        generated = hl.Monitor(llama).generate([prompt, draw_prompt(llama, seed=4)], generation_config=config)
    finally:
        llama.network.generation_config.eos_token_id = None
    assert [token.token_id for token in generated.tokens if token.row == 0][-1] == end
    assert sum(token.row == 0 for token in generated.tokens) <= 2
    assert generated.manifest["generation"]["eos_token_id"] == end


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ([[1] * 15 + [0] * 5], "pad prompts on the left"),
        ([[1] * 5 + [0] * 3 + [1] * 12], "pad prompts on the left"),
        ([[1] * 19], "same shape"),
    ],
)
def test_a_mask_that_is_not_one_of_padding_on_the_left_is_refused(llama: Any, mask: list[list[int]], said: str) -> None:
    with pytest.raises(InputError, match=said):
        hl.Monitor(llama).generate(torch.tensor([draw_prompt(llama)]), attention_mask=torch.tensor(mask), **GREEDY)


def test_padding_in_front_of_every_text_is_no_part_of_any(llama: Any) -> None:
    prompt = draw_prompt(llama)
    ids, mask = torch.tensor([[0, 0, 0, *prompt]]), torch.tensor([[0, 0, 0] + [1] * 20])
    padded, alone = (
        hl.Monitor(llama, DEEP).generate(given, **GREEDY, **more)
        for given, more in ((ids, {"attention_mask": mask}), (prompt, {}))
    )
    assert padded.encoded[0].ids == alone.encoded[0].ids
    np.testing.assert_allclose(padded.trajectory().to_numpy(), alone.trajectory().to_numpy(), rtol=1e-4, atol=1e-7)


def test_a_batch_that_holds_padding_needs_a_mask(llama: Any) -> None:
    ids = torch.tensor([[0, 0, *draw_prompt(llama)]])
    with pytest.raises(InputError, match="token 0, which pads"):
        hl.Monitor(llama).generate(ids, **GREEDY, eos_token_id=9)


def test_models_with_a_memory_of_their_own_kind_are_followed_one_text_at_a_time() -> None:
    model = make_model("bloom")
    prompts, several = [draw_prompt(model), draw_prompt(model, seed=1)], {"do_sample": True, "num_return_sequences": 2}
    for given, settings in ((prompts, {}), (prompts[0], several)):
        with pytest.raises(InputError, match="one text at a time"):
            hl.Monitor(model, DEEP).generate(given, **{**GREEDY, **settings})
        assert hl.Monitor(model, hl.LogitLens()).generate(given, **{**GREEDY, **settings}).tokens


def test_others_may_use_the_model_meanwhile(llama: Any) -> None:
    """A listener may trace, and other threads may call the network, on the very same weights."""
    prompt, over, strange, nested = draw_prompt(llama), threading.Event(), [], []
    expected = llama.network(torch.tensor([prompt])).logits

    def call() -> None:
        while not over.is_set():
            found = llama.network(torch.tensor([prompt])).logits
            if found.shape != expected.shape or not torch.allclose(found, expected, atol=1e-5):
                strange.append(found.shape)

    alone = hl.Monitor(llama, DEEP, candidates=4).generate(prompt, **GREEDY)
    other = threading.Thread(target=call)
    other.start()
    try:
        for _ in range(5):
            nested.clear()
            beside = hl.Monitor(llama, DEEP, candidates=4).generate(
                prompt, lambda token: nested.append(hl.Monitor(llama).generate(prompt, max_new_tokens=1)), **GREEDY
            )
            assert torch.equal(beside.ids, alone.ids) and len(nested) == 6
            for one, two in zip(beside.tokens, alone.tokens, strict=True):
                np.testing.assert_allclose(one.confidence, two.confidence, rtol=1e-4, atol=1e-7)
    finally:
        over.set()
        other.join()
    assert not strange


def test_an_error_of_who_listens_comes_out_as_it_is(llama: Any) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        hl.Monitor(llama).generate(draw_prompt(llama), lambda token: int("x"), **GREEDY)


class Late:
    """A check for the end that is heard one call later, as on devices that do not wait for it."""

    def __init__(self, *given: Any) -> None:
        self.ended = False

    @staticmethod
    def is_supported(*given: Any, **more: Any) -> bool:
        return True

    def __call__(self, unfinished: torch.Tensor, tokens: torch.Tensor, length: int) -> bool:
        before, self.ended = self.ended, bool(unfinished.max() == 0)
        return before

    def finish(self) -> int:
        return 1


def test_where_the_end_is_heard_late_nothing_more_is_told(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = draw_prompt(llama)
    whole = hl.Monitor(llama, DEEP).generate(prompt, **GREEDY)
    end = whole.tokens[2].token_id
    length = [token.token_id for token in whole.tokens].index(end) + 1
    monkeypatch.setattr("transformers.generation.utils.DeferredStopCheck", Late)
    ended = hl.Monitor(llama, DEEP).generate(prompt, **GREEDY, eos_token_id=end)
    assert len(ended.tokens) == length == ended.ids.shape[1] - len(prompt)
    assert ended.trajectory().data.sizes["token"] == length


def test_reading_together_keeps_no_more_than_one_memory(llama: Any) -> None:
    kept: list[int] = []
    read = reading.Reader.read

    def count(self: Any, steps: Any) -> Any:
        kept.append(sum(part.shape[-2] for step in steps for pair in step.seen.values() for part in pair))
        return read(self, steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading.Reader, "read", count)
        hl.Monitor(llama, DEEP, together=8).generate(draw_prompt(llama), max_new_tokens=8, do_sample=False)
    assert kept == [2 * 2 * (20 + 7)]


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "cohere2", "gpt2", "falcon"])
def test_the_logits_of_some_tokens_are_those_of_the_whole_vocabulary(name: str) -> None:
    model = make_model(name)
    inputs = torch.tensor([draw_prompt(model)])
    with torch.no_grad():
        states = model.splice.run(Inputs(inputs), record=[3]).states[3][0]
        tokens = torch.randint(len(model.splice.embedding), (len(states), 5))
        before = dict(model.network.get_output_embeddings().__dict__)
        some, every = model.splice.head(states, tokens), model.splice.head(states)
    torch.testing.assert_close(some, every.gather(-1, tokens), rtol=1e-5, atol=1e-6)
    assert model.network.get_output_embeddings().__dict__.keys() == before.keys()


def test_candidates_are_the_models_own_top_tokens_and_share_all_confidence(llama: Any) -> None:
    prompt, vocabulary = draw_prompt(llama), len(llama.splice.embedding)
    every = hl.Monitor(llama, DEEP, top_k=4).generate(prompt, **GREEDY)
    four = hl.Monitor(llama, DEEP, candidates=4).generate(prompt, **GREEDY)
    for one, other in zip(four.tokens, every.tokens, strict=True):
        shares = [share for _, share in other.top[-1]]
        assert one.confidence[-1] == pytest.approx(shares[0] / sum(shares), rel=1e-4)
        assert one.output_probability == pytest.approx(shares[0], rel=1e-4)
    assert four.manifest["guess"] == 0.25
    all_of_them = hl.Monitor(llama, DEEP, candidates=vocabulary).generate(prompt, **GREEDY)
    for one, other in zip(all_of_them.tokens, every.tokens, strict=True):
        np.testing.assert_allclose(one.confidence, other.confidence, rtol=1e-4, atol=1e-7)


def test_a_token_that_was_drawn_is_among_its_candidates(llama: Any) -> None:
    drawn = {"max_new_tokens": 12, "do_sample": True, "temperature": 50.0, "top_k": 0}
    tokens = hl.Monitor(llama, candidates=2).generate(draw_prompt(llama), **drawn).tokens
    unlikely = [token for token in tokens if token.token_id != token.output_id]
    assert unlikely and all(0 < token.confidence[-1] < 0.5 for token in unlikely)


def test_guessing_among_candidates_is_no_progress(llama: Any) -> None:
    for token in hl.Monitor(llama, candidates=4).generate(draw_prompt(llama), **GREEDY).tokens:
        own, states = float(token.confidence[-1]), token.confidence[:-1].astype(float)
        expected = np.nan if own <= 0.25 else float(np.mean(1 - np.clip((states - 0.25) / (own - 0.25), 0, 1)))
        assert token.effort == pytest.approx(expected, nan_ok=True)


def test_the_trajectory_is_that_of_a_trace_and_can_be_saved(plain: Any, tmp_path: Any) -> None:
    lens, text = hl.HyperLens((1,), context="cached"), "w20 w30 w40 w21"
    generated = hl.Monitor(plain, lens).generate(text, max_new_tokens=4, do_sample=False)
    generated.trajectory().save(tmp_path / "said")
    saved = hl.Trajectory.load(tmp_path / "said")
    traced = hl.trace(plain, text, lens, "generated", limits=hl.Limits(max_new_tokens=4, progress=False))
    np.testing.assert_allclose(saved.to_numpy(), traced.to_numpy(), rtol=1e-4, atol=1e-7)
    for name in ("position", "token_id", "reference_id", "output_id"):
        assert (saved.data[name].values == traced.data[name].values).all()
    assert saved.manifest["lens"] == {**traced.manifest["lens"], "context": "cached"}
    measured = hl.measure_effort(traced)["effort"].values[:, 0]
    np.testing.assert_allclose([token.effort for token in generated.tokens], measured, rtol=1e-4, atol=1e-6)


def test_the_focal_depth_is_chosen_on_the_prompt(llama: Any) -> None:
    generated = hl.Monitor(llama).generate(draw_prompt(llama), **GREEDY)
    auto = generated.manifest["lens"]["auto"]
    assert generated.manifest["lens"]["focal_depths"] == [auto["chosen"]]
    assert generated.manifest["lens"]["context"] == "cached"


def test_nothing_stays_behind_whatever_happens(llama: Any) -> None:
    network, prompt = llama.network, draw_prompt(llama)

    def find_traces() -> list[Any]:
        wrapped = [layer for layer in llama.splice.layers if "forward" in layer.__dict__]
        return [*wrapped, *network._forward_hooks.values(), *network._forward_pre_hooks.values()]

    def fail(token: Any) -> None:
        raise RuntimeError("whoever listens has gone")

    assert not find_traces()
    kept = hl.Monitor(llama, DEEP).generate(prompt, **GREEDY, return_dict_in_generate=True)
    assert not any("update" in layer.__dict__ for layer in kept.output.past_key_values.layers)
    with pytest.raises(RuntimeError, match="has gone"):
        hl.Monitor(llama, DEEP).generate(prompt, fail, **GREEDY)
    assert not find_traces()
    assert torch.equal(generate_plainly(llama, prompt, **GREEDY), kept.ids)


def test_who_watches_can_end_it(llama: Any) -> None:
    told: list[Any] = []
    generated = hl.Monitor(llama).generate(draw_prompt(llama), told.append, lambda: len(told) >= 2, **GREEDY)
    assert len(generated.tokens) == len(told) == 2


def test_a_stream_gives_the_same_tokens_and_ends_when_it_is_closed(llama: Any) -> None:
    prompt = draw_prompt(llama)
    whole = hl.Monitor(llama, DEEP).generate(prompt, **GREEDY)
    told = list(hl.Monitor(llama, DEEP).stream(prompt, **GREEDY))
    assert [token.describe() for token in told] == [token.describe() for token in whole.tokens]
    stream = hl.Monitor(llama, DEEP).stream(prompt, max_new_tokens=40, do_sample=False)
    next(stream)
    stream.close()
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name == "hyperlens-monitor"]
    assert llama.splice.lock.acquire(blocking=False)
    llama.splice.lock.release()


def test_an_error_comes_out_of_the_stream(llama: Any) -> None:
    with pytest.raises(InputError, match="num_beams"):
        list(hl.Monitor(llama).stream(draw_prompt(llama), num_beams=2))


def test_a_lens_that_is_not_the_models_own_output_is_refused(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    route = reading.route_cached
    monkeypatch.setattr(reading, "route_cached", lambda *given: route(*given).roll(1, -1))
    for candidates in (None, 4):
        with pytest.raises(CertificateError, match="differs from the model's own output"):
            hl.Monitor(llama, DEEP, candidates=candidates).generate(draw_prompt(llama), told.append, **GREEDY)
    assert not told


def test_logits_that_are_not_numbers_are_refused() -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.network.get_output_embeddings().weight[7] = float("nan")
    with pytest.raises(hl.HyperLensError, match="NaN or infinite"):
        hl.Monitor(model).generate(draw_prompt(model), **GREEDY)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_beams": 3}, "beam_search"),
        ({"num_beams": 3, "do_sample": True}, "beam_sample"),
        ({"prompt_lookup_num_tokens": 3}, "assisted_generation"),
        ({"guidance_scale": 2.0}, "guidance_scale"),
        ({"use_cache": False}, "use_cache=True"),
        ({"cache_implementation": "static"}, "StaticCache"),
        ({"past_key_values": None}, "past_key_values"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"max_new_tokens": None, "max_length": 5}, "max_length is 5"),
        ({"penalty_alpha": 0.5, "top_k": 4}, "contrastive_search"),
        ({"stop_strings": [""]}, "at least one character"),
        ({"stopping_criteria": 7}, "no list"),
        ({"generation_config": "x"}, "GenerationConfig"),
        ({"eos_token_id": "x"}, "number of a token"),
        ({"position_ids": torch.zeros(1, 20)}, "position_ids"),
        ({"attention_mask": torch.ones(1, 20)}, "attention_mask"),
        ({"no_such_setting": 1}, "no_such_setting"),
    ],
)
def test_other_ways_to_generate_are_refused(llama: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        hl.Monitor(llama, DEEP).generate(draw_prompt(llama), **{**GREEDY, **settings})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lens": hl.HyperLens((6,))}, "leaves no state to read"),
        ({"lens": hl.HyperLens((0, 2))}, "one focal depth"),
        ({"lens": hl.HyperLens("sweep")}, "one focal depth"),
        ({"lens": hl.HyperLens((1,), between=(2,))}, "in between"),
        ({"lens": "no-such-lens"}, "no lens"),
        ({"candidates": 1}, "candidates is 1; give a whole number from 2 up"),
        ({"candidates": 4, "top_k": 2}, "candidates"),
        ({"stride": 0}, "stride"),
        ({"together": 0}, "together"),
        ({"top_k": -1}, "top_k is -1"),
        ({"candidates": True}, "candidates is True"),
    ],
)
def test_settings_that_do_not_fit_are_refused(llama: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        hl.Monitor(llama, **settings)


def test_a_model_without_a_memory_is_followed_by_the_logit_lens_alone() -> None:
    model = make_model("rwkv")
    with pytest.raises(InputError, match="focal depth 0"):
        hl.Monitor(model, DEEP)
    assert hl.Monitor(model, hl.LogitLens()).generate(draw_prompt(model), **GREEDY).tokens


def test_prompts_that_do_not_fit_are_refused(plain: Any, llama: Any) -> None:
    monitor = hl.Monitor(plain)
    for prompt, said in (("", "empty"), ([], "no text|tokenises|at least"), ([1, 10**9], "token ids")):
        with pytest.raises(InputError, match=said):
            monitor.generate(prompt)
    context = llama.network.config.max_position_embeddings
    with pytest.raises(InputError, match=str(context)):
        hl.Monitor(llama).generate([5] * context, **GREEDY)
    fitted = hl.Monitor(llama).generate([5] * (context - 2), max_new_tokens=50, do_sample=False)
    assert len(fitted.tokens) == 2


def test_a_model_in_training_is_refused() -> None:
    model = make_model("llama")
    model.network.train()
    with pytest.raises(InputError, match="eval"):
        hl.Monitor(model).generate(draw_prompt(model), **GREEDY)


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize("text", ["plain", "naïve", "日本語 ok", "🙂🙂", "a\ufb01b"])
def test_pieces_are_whole_characters_and_add_up_to_the_text(text: str) -> None:
    spelling = Spelling(Bytes(), list(b"prompt "))
    pieces = [spelling.add(byte) for byte in text.encode()]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_the_last_piece_keeps_what_was_cut_in_the_middle_of_a_character() -> None:
    spelling = Spelling(Bytes(), [])
    assert spelling.add("é".encode()[0]) == ""
    assert "\ufffd" in spelling.add("é".encode()[0], last=True)


def test_the_texts_are_what_the_tokens_add_to_the_prompt(stories: Any) -> None:
    model = hl.load_model(stories)
    prompt = "Once upon a time"
    generated = hl.Monitor(model, hl.LogitLens()).generate(prompt, max_new_tokens=12, do_sample=False)
    whole = model.tokenizer.decode(generated.ids[0], skip_special_tokens=True)
    assert (
        whole
        == model.tokenizer.decode(generated.encoded[0].ids[: -len(generated.tokens)], skip_special_tokens=True)
        + generated.texts[0]
    )
    stopped = hl.Monitor(model, hl.LogitLens()).generate(prompt, max_new_tokens=12, do_sample=False, stop_strings=["was"])
    assert stopped.texts[0] == generated.texts[0][: generated.texts[0].index("was") + 3]
    several = hl.Monitor(model, hl.LogitLens()).generate(
        [prompt, "The dog"], max_new_tokens=12, do_sample=False, stop_strings=["was"]
    )
    assert several.texts[0] == stopped.texts[0]


@pytest.fixture
def call(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    return make_call(capsys, monkeypatch, "monitor")


def test_the_command_shows_tokens_as_they_come_and_what_was_measured(call: Any, saved: Any, tmp_path: Any) -> None:
    status, out, err = call(
        saved, "w20 w30 \x1b[31mw40[bold]", "--max-new-tokens", 4, "--focal-depth", 2, "--out", tmp_path / "t"
    )
    assert (status, err) == (0, "")
    assert "\x1b" not in out and "[bold]" in out
    assert "m = 2, states 0…4" in out and "mean Ω" in out
    assert hl.Trajectory.load(tmp_path / "t").data.sizes["token"] == 4


def test_the_command_prints_an_object_for_each_token(call: Any, saved: Any) -> None:
    status, out, _ = call(saved, "w20 w30", "--max-new-tokens", 3, "--json", "--temperature", 2, "--seed", 5, "--top-k", 2)
    *tokens, last = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and [token["index"] for token in tokens] == [0, 1, 2]
    assert all(len(token["top"][0]) == 2 for token in tokens)
    assert last["text"] == "".join(token["text"] for token in tokens)
    assert (
        call(saved, "w20 w30", "--max-new-tokens", 3, "--json", "--temperature", 2, "--seed", 5, "--top-k", 2)[1].splitlines()[
            :3
        ]
        == out.splitlines()[:3]
    )


@pytest.mark.parametrize(
    "words",
    [
        ("--focal-depth", "0,2"),
        ("--focal-depth", "99"),
        ("--temperature", "-1"),
        ("--top-p", "0"),
        ("--max-new-tokens", "0"),
        ("--candidates", "1"),
        ("--stride", "2", "--out", "x"),
        ("--lens", "nowhere"),
        ("--seed", "99999999999999999999999"),
        ("--temperature", "1e-320"),
        ("--stop", ""),
        ("--chat",),
    ],
)
def test_the_command_refuses_in_one_sentence(call: Any, saved: Any, words: tuple[str, ...]) -> None:
    status, out, err = call(saved, "w20 w30", *words)
    assert (status, out) == (2, "")
    assert is_one_sentence(err.removeprefix("hyperlens: ").strip())
