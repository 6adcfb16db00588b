"""The texts that a lens is trained on: read, written by the model, cut, and divided."""

from __future__ import annotations

import json
import random

import pytest
import torch
from sentences import is_one_sentence

import hyperlens as hl
from hyperlens.artefact import hash_file
from hyperlens.errors import InputError
from hyperlens.training import texts
from hyperlens.training.texts import Corpus, cut_text, divide_texts, generate_source, read_source

TEXTS = [f"w{number % 50} w{number % 37} w{number % 23} w{number % 11} w{number}" for number in range(10, 60)]


def test_no_text_and_no_chunk_is_both_trained_on_and_validated_with(plain):
    texts = [cut_text(plain, text, 16, "text") for text in [*TEXTS, *TEXTS[:20]]]
    longer = [(*one, *other) for one, other in zip(texts[:10], texts[20:30], strict=True)]
    for seed in range(5):
        corpus = divide_texts([*texts, *longer], 0.2, 1000, seed)
        assert not set(corpus.training) & set(corpus.validation)
        held = [text for text in {*texts, *longer} if set(text) <= set(corpus.validation)]
        assert held and not any(text[0] in corpus.training for text in held)
    assert divide_texts(texts, 0.2, 1000, 3) == divide_texts(texts, 0.2, 1000, 3) != divide_texts(texts, 0.2, 1000, 4)


@pytest.mark.parametrize("lengths", [[5000], [3000, 2000], [900, 5, 900, 900, 900], [1000, *[20] * 100], [2, 2000, 2000]])
@pytest.mark.parametrize("most", [300, 10_000])
def test_about_a_tenth_is_held_out_and_never_more_than_asked_for_of_few_and_of_long_texts(lengths, most):
    draw = random.Random(0)
    tokens = [tuple(draw.randrange(10**6) for _ in range(length)) for length in lengths]
    texts = [tuple(text[first : first + 32] for first in range(0, len(text), 32)) for text in tokens]
    for seed in range(5):
        corpus = divide_texts(texts, 0.1, most, seed)
        room = min(most, 0.1 * sum(lengths))
        assert room / 2 <= sum(map(len, corpus.validation)) <= room
        assert not set(corpus.training) & set(corpus.validation)
        assert corpus.tokens + sum(map(len, corpus.validation)) == sum(lengths)
    assert len(divide_texts([((1, 2, 3),), ((4, 5),)], 0.1, 1000, 0).validation) == 1
    often = divide_texts([((number, 1),) for number in range(20)] * 100, 0.1, 1000, 0)
    assert len(often.validation) == 2 and len(often.training) == 1800


def test_every_chunk_is_drawn_once_before_one_is_drawn_again():
    corpus = Corpus(tuple((number, number) for number in range(10)), ((99,),))
    drawn = [chunk for step in range(10) for chunk in corpus.draw(step, 6, 0)]
    assert len(drawn) == 30
    for first in (0, 10, 20):
        assert sorted(drawn[first : first + 10]) == sorted(corpus.training)
    assert drawn[:10] != drawn[10:20] and drawn[:3] == corpus.draw(0, 6, 0)
    assert set(corpus.draw(1, 50, 0)) == set(corpus.training) and len(corpus.draw(1, 50, 0)) == 25


def test_chunks_begin_as_texts_do_and_hold_all_of_the_text(stories):
    model = hl.load_model(stories)
    text = "Once upon a time there was a dog. " * 20
    chunks, whole = cut_text(model, text, 16, "text"), model.tokenizer(text)["input_ids"]
    assert all(chunk[0] == model.tokenizer.bos_token_id and len(chunk) <= 16 for chunk in chunks)
    assert [token for chunk in chunks for token in chunk[1:]] == whole[1:]
    begin, end = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id
    several = cut_text(model, [begin, end, *whole[1:]], 16, "text")
    assert all(chunk[:2] == (begin, end) for chunk in several)
    assert [token for chunk in several for token in chunk[2:]] == whole[1:]
    assert cut_text(model, [begin] * 5, 3, "text") == ((begin,) * 3,) * 3


def test_files_give_texts_as_their_kind_has_them(plain, tmp_path):
    (tmp_path / "plain.txt").write_text("w10 w11 w12\n\nw13 w14 w15 w16 w17")
    rows = [{"text": "w10 w11"}, {"prompt": "w12 w13", "target": " w14"}, {"text": "w15 " * 9}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    running, lines = (read_source(plain, tmp_path / name, 4) for name in ("plain.txt", "rows.jsonl"))
    assert [len(text) for text in running.texts] == [1] * len(running.texts) and len(running.texts) > 1
    assert [len(text) for text in lines.texts] == [1, 1, 3]
    assert lines.describe() == {
        "kind": "file",
        "name": "rows.jsonl",
        "sha256": hash_file(tmp_path / "rows.jsonl"),
        "texts": 3,
        "tokens": 14,
    }


def test_what_the_model_writes_depends_on_the_seed_alone_and_leaves_the_random_state(stories, tmp_path):
    model = hl.load_model(stories)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = generate_source(model, 3, 24, 7)
    assert torch.equal(torch.rand(3), expected)
    assert one.texts == generate_source(model, 3, 24, 7).texts != generate_source(model, 3, 24, 8).texts
    assert len(set(one.texts)) == 3 and all(len(chunk) <= 24 for (chunk,) in one.texts)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "The dog ran"}\n{"prompt": "A cat"}\n')
    prompted = generate_source(model, 3, 24, 7, tmp_path / "prompts.jsonl")
    written = [model.tokenizer.decode(chunk, skip_special_tokens=True) for (chunk,) in prompted.texts]
    assert [text.startswith("The dog ran") for text in written] == [True, True, False]


def test_a_model_that_writes_nothing_or_always_the_same_is_given_prompts(plain, monkeypatch):
    for written in ([(1, 5)] * 4, [(1, 5), (1, 6), (1, 7), (1, 8)], [(1, 5, 6)] * 4):
        monkeypatch.setattr(texts, "_begin", lambda model: (1,))
        monkeypatch.setattr(texts, "_sample", lambda *given, written=written: written)
        with pytest.raises(
            InputError, match=r"4 texts, [14] of them different, the longest of [23] tokens.*--prompts"
        ) as caught:
            generate_source(plain, 4, 16, 0)
        assert is_one_sentence(str(caught.value))
