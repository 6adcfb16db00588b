from __future__ import annotations

import random

import pytest

from hyperlens.errors import InputError
from hyperlens.tasks import GRADED, Sample, read_samples
from hyperlens.tasks.graded import is_held_out
from hyperlens.tasks.graded.knowledge import FACTS, PEOPLE


@pytest.mark.parametrize("name", GRADED)
def test_samples_are_the_same_for_the_same_seed(name):
    task = GRADED[name]
    assert task.samples(20, 1) == task.samples(20, 1) != task.samples(20, 2)
    assert len({sample.id for sample in task.samples(20, 1)}) == 20 * len(task.levels)


@pytest.mark.parametrize("name", GRADED)
def test_no_evaluated_prompt_from_two_steps_on_is_ever_trained_on(name):
    task = GRADED[name]
    evaluated = {sample.prompt for sample in task.samples(200, 0) if sample.level >= task.unseen_from}
    trained = {
        task.draw(level, random.Random(seed), held_out=False)[0]
        for level in task.levels
        if level >= task.unseen_from
        for seed in range(2000)
    }
    assert evaluated and not evaluated & trained
    assert all(map(is_held_out, evaluated)) and not any(map(is_held_out, trained))


@pytest.mark.parametrize("name", GRADED)
def test_answers_are_equally_likely_at_every_level(name):
    task = GRADED[name]
    for level in task.levels:
        rng = random.Random(level)
        answers = [task.ask(level, rng)[1] for _ in range(8000)]
        kinds = set(answers)
        assert len(kinds) == (len(PEOPLE) if name == "knowledge" else 10)
        expected = len(answers) / len(kinds)
        assert all(abs(answers.count(kind) - expected) < 5 * expected**0.5 for kind in kinds)


def test_the_answers_are_right():
    prompt, answer = GRADED["arithmetic"].ask(3, random.Random(0))
    assert sum(int(word) for word in prompt.split() if word.isdigit()) % 10 == int(answer)
    prompt, answer = GRADED["knowledge"].ask(2, random.Random(0))
    person, *relations = prompt.removesuffix(" is").split("'s ")
    for relation in relations:
        person = FACTS[relation][person]
    assert person == answer


def test_a_file_holds_texts_and_objects(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text('Hello there\n\n{"prompt": "2 + 2 =", "target": " 4", "level": 1, "options": ["3", "4"], "more": 1}\n')
    assert read_samples(file) == [
        Sample("Hello there", task="own", id="own/1"),
        Sample("2 + 2 =", " 4", ("3", "4"), "own", 1, "own/3"),
    ]


def test_a_byte_order_mark_and_unicode_line_ends_are_no_lines(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + '{"prompt": "a\u2028b", "target": " c"}\r\nx\u0085y\n'.encode())
    assert [(sample.prompt, sample.target) for sample in read_samples(file)] == [("a\u2028b", " c"), ("x\u0085y", None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'ok\n{"prompt": ', "line 2 of .* is not JSON"),
        (b'{"question": "why"}', r"line 1 of .* has no prompt \(its fields are question\)"),
        (b'{"prompt": 3}', "has int as prompt; expected text"),
        (b'{"prompt": "a", "level": "two"}', "has str as level; expected a whole number"),
        (b'{"prompt": "a", "level": 99999999999999999999}', "expected a number of steps"),
        (b'{"prompt": ' + b"[" * 100000, "is not JSON"),
        (b'{"prompt": "a", "options": "yes"}', "has options that are no list of texts"),
        (b"caf\xe9", r"is not UTF-8 \(byte 3\)"),
        (b"\n \n", "holds no text"),
    ],
)
def test_a_malformed_file_is_refused_in_one_sentence(tmp_path, content, message):
    file = tmp_path / "own.jsonl"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_samples(file)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_samples(tmp_path / "none.txt")
