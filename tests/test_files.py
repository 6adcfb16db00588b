from __future__ import annotations

import pytest

from hyperlens.errors import InputError
from hyperlens.tasks import Sample, read_samples


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
