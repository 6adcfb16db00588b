from __future__ import annotations

import json

import pytest

from hyperlens.errors import InputError
from hyperlens.tasks import Drawn, Sample, TaskSpec, draw_task
from hyperlens.tasks.rows import Row
from hyperlens.tasks.template import fill_template

ROWS = [
    {"q": "1+1", "a": "2", "wrong": ["1", "3"], "steps": 1, "name": "one"},
    {"q": "2+2", "a": "4", "wrong": ["2", "5"], "steps": 2, "name": "two"},
    {"q": "3+3", "a": None, "wrong": ["2", "5"], "steps": 2, "name": "two"},
]


def write(folder, rows, name="rows.jsonl") -> str:
    (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return name


def draw(folder, name, limit=100, seed=0, **fields) -> Drawn:
    return draw_task(TaskSpec("mine", path=str(name), **fields), limit, seed, root=str(folder))


def test_columns_are_put_by_templates_and_rows_without_answer_are_listed(tmp_path):
    drawn = draw(tmp_path, write(tmp_path, ROWS), prompt="{{{q}}} =", target=" {a}", level="steps", id="name")
    assert [(one.prompt, one.target, one.level, one.id, one.task) for one in drawn.samples] == [
        ("{1+1} =", " 2", 1, "mine/one", "mine"),
        ("{2+2} =", " 4", 2, "mine/two", "mine"),
    ]
    assert [(one.row, one.reason) for one in drawn.skipped] == [("mine/two-2", "without an answer")]
    assert (drawn.read, drawn.max_new_tokens, drawn.stop) == ("target", 64, ("\n\n",))


@pytest.mark.parametrize("kind", ["jsonl", "json", "data.json", "lines.json", "csv", "parquet"])
def test_all_kinds_of_files_give_the_same(tmp_path, kind):
    import pandas as pd

    rows = [{"q": 'é\u2028b, "c"', "a": "x"}, {"q": "two\nlines", "a": "y"}]
    file = tmp_path / f"rows.{kind}"
    match kind:
        case "json":
            file.write_text(json.dumps(rows))
        case "data.json":
            file.write_text(json.dumps({"version": 1, "data": rows}))
        case "csv":
            pd.DataFrame(rows).to_csv(file, index=False, encoding="utf-8-sig")
        case "parquet":
            pd.DataFrame(rows).to_parquet(file)
        case _:
            write(tmp_path, rows, file.name)
    drawn = draw(tmp_path, file.name, prompt="{q}", target=" {a}")
    assert [(one.prompt, one.target, one.id) for one in drawn.samples] == [
        (row["q"], f" {row['a']}", f"mine/{number}") for number, row in enumerate(rows, 1)
    ]
    (tmp_path / "folder").mkdir()
    file.rename(tmp_path / "folder" / file.name)
    assert draw(tmp_path, "folder", prompt="{q}", target=" {a}") == drawn


def test_without_a_template_the_columns_are_what_they_are_called(tmp_path):
    rows = [{"text": "a", "target": " b", "level": 3, "id": "x", "images": ["cat.png"]}, {"text": "c", "target": " d"}]
    first, second = draw(tmp_path, write(tmp_path, rows)).samples
    assert (first.prompt, first.target, first.level, first.id) == ("a", " b", 3, "mine/x")
    assert first.images == (str(tmp_path / "cat.png"),)
    assert (second.level, second.id, second.images) == (None, "mine/2", ())


def test_what_is_trained_on_is_measured_chats_and_completions_too(tmp_path):
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)]
    chat = {"shots": (("a", "b"),), "chat": True, "prompt": "c", "target": "d", "task": "mine"}
    assert draw(tmp_path, write(tmp_path, [{"messages": turns}])).samples == (Sample(id="mine/1", **chat),)
    halves = [{"prompt": turns[:3], "completion": turns[3:], "id": "x"}]
    assert draw(tmp_path, write(tmp_path, halves)).samples == (Sample(id="mine/x", **chat),)
    plain = draw(tmp_path, write(tmp_path, [{"prompt": "a", "completion": " b"}])).samples
    assert plain == (Sample("a", " b", task="mine", id="mine/1"),)
    other = draw(tmp_path, write(tmp_path, [{"messages": turns, "gold": " e"}]), target="{gold}").samples[0]
    assert (other.prompt, other.target, other.chat) == ("c", " e", True)


def test_a_chat_keeps_its_turns_behind_solved_examples_and_is_none_with_earlier_turns(tmp_path):
    def turns(*texts):
        return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, texts, strict=False)]

    rows = [{"messages": turns("a", "b", "c", "d"), "level": 1}, *({"messages": turns(f"q{n}", "e")} for n in range(2))]
    drawn = draw(tmp_path, write(tmp_path, rows), levels=(1,), few_shot=2).samples
    assert [(set(one.shots[:2]), one.shots[2:]) for one in drawn] == [({("q0", "e"), ("q1", "e")}, (("a", "b"),))]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "system", "content": "a"}]}, "row 1 of .* has messages by system; expected user and assistant"),
        ({"messages": [{"role": "user", "content": "a"}]}, "has messages by user; expected"),
        ({"messages": "user: a"}, "has str as messages; expected a list of messages"),
        ({"messages": [{"role": "user"}]}, "has a message without role and content"),
        (
            {"prompt": [{"role": "user", "content": "a"}], "completion": "b"},
            "has str as completion; expected a list of messages",
        ),
        ({"prompt": [{"role": "user", "content": "a"}]}, 'has no column "completion"'),
        ({"messages": None}, "none of the 1 rows .* is without a prompt"),
    ],
)
def test_a_chat_that_is_none_is_refused(tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        draw(tmp_path, write(tmp_path, [row]))


def test_a_file_of_plain_lines_can_be_generated_from_and_has_no_answers(tmp_path):
    (tmp_path / "texts.txt").write_text("one text\n\nanother\n")
    drawn = draw(tmp_path, "texts.txt", read="generated")
    assert [(one.prompt, one.target) for one in drawn.samples] == [("one text", None), ("another", None)]
    with pytest.raises(InputError, match=r'empty data set: none of the 2 rows .*mine/1, is without an answer\); .*"generated"'):
        draw(tmp_path, "texts.txt")


GOLDS = (1, "B", "yes", True)
TEXTS = ("['no', 'yes']", '["no", "yes"]', '["no","yes"]', "['no','yes']")
OPTIONS = [
    {"q": "Which?", "options": ["no", "yes"], "gold": gold, "x": "no", "y": "yes", "text": text}
    for gold, text in zip(GOLDS, TEXTS, strict=True)
]


@pytest.mark.parametrize("columns", ["options", "x,y", "x, y", "text"])
def test_options_are_one_column_or_several_and_the_right_one_is_found(tmp_path, columns):
    drawn = draw(tmp_path, write(tmp_path, OPTIONS), prompt="{q}\nAnswer:", options=columns, gold="gold")
    assert drawn.read == "options" and len(drawn.samples) == 4
    assert {(one.prompt, one.target, one.options) for one in drawn.samples} == {("Which?", " yes", (" no", " yes"))}
    plain = draw(tmp_path, write(tmp_path, OPTIONS), prompt="{q}\nAnswer:", options=columns, gold="gold", read="target")
    assert {(one.prompt, one.target, one.options) for one in plain.samples} == {("Which?\nAnswer:", " yes", ())}


def test_options_may_stand_as_text_beside_their_labels(tmp_path):
    file = write(tmp_path, [{"q": "Which?", "o": {"text": ["no", "yes"], "label": ["A", "B"]}, "gold": "A"}])
    assert draw(tmp_path, file, prompt="{q}", options="o", gold="gold").samples[0].target == " no"


def test_options_without_a_right_one_are_listed_or_refused(tmp_path):
    rows = [{**OPTIONS[0], "gold": gold} for gold in (0, None, "C", 7)] + [{**OPTIONS[0], "options": ["only"]}]
    drawn = draw(tmp_path, write(tmp_path, rows), prompt="{q}", options="options", gold="gold")
    assert [one.reason for one in drawn.skipped] == [
        "without an answer",
        'without an answer: "C" is none of its 2 options',
        'without an answer: "7" is none of its 2 options',
        "without two answer options that have a text",
    ]
    with pytest.raises(InputError, match="has str as q; expected a list of texts, or several columns"):
        draw(tmp_path, "rows.jsonl", prompt="{q}", options="q", gold="gold")


def test_a_template_looks_into_no_value():
    row = Row({"a": "value {b}", "b": 1, "a.b": "dotted", "a:>9": "spec"}, "row 1 of x", ("a", "b", "a.b", "a:>9"))
    assert fill_template("{a}/{b}/{{a}}/{a.b}/{a:>9}", row) == "value {b}/1/{a}/dotted/spec"
    for column in ("a[0]", "a.__class__", "a!r", "0", "b.real"):
        with pytest.raises(InputError, match="row 1 of x has no column"):
            fill_template(f"{{{column}}}", row)
    for template in ("{a", "a}", "{}"):
        with pytest.raises(InputError, match=r"unpaired brace|empty braces"):
            fill_template(template, row)


def test_a_missing_column_is_refused_with_those_there_are_and_the_nearest(tmp_path):
    file = write(tmp_path, [{"question": "a", "answer": "b"}, {"question": "c"}])
    with pytest.raises(
        InputError, match=r'no column "qestion" \(its columns are question, answer\); did you mean "question"\?'
    ):
        draw(tmp_path, file, prompt="{qestion}", target=" {answer}")
    with pytest.raises(InputError, match=r'row 1 of .*rows.jsonl has no column "prompt" \(its columns are question, answer'):
        draw(tmp_path, file)
    (tmp_path / "wide.jsonl").write_text(json.dumps({f"c{number}": number for number in range(40)}))
    with pytest.raises(
        InputError, match=r"its columns are c0, .*, c11 …\); rename them to prompt and target, or give messages"
    ):
        draw(tmp_path, "wide.jsonl")
    for field in ("level", "id", "options"):
        with pytest.raises(InputError, match='no column "steps"'):
            draw(tmp_path, file, prompt="{question}", **{field: "steps"})
    with pytest.raises(InputError, match='no column "steps"'):
        draw(tmp_path, file, prompt="{question}", options="question,answer", gold="steps")
    assert [one.reason for one in draw(tmp_path, file, prompt="{question}", target=" {answer}").skipped] == [
        "without an answer"
    ]


@pytest.mark.parametrize(("level", "read"), [("3", 3), (3, 3), (3.0, 3), ("Level 3", 3), ("-1", -1), ("", None), (None, None)])
def test_levels_are_whole_numbers_however_written(tmp_path, level, read):
    file = write(tmp_path, [{"q": "a", "a": "b", "level": level}])
    assert draw(tmp_path, file, prompt="{q}", target="{a}", level="level").samples[0].level == read


@pytest.mark.parametrize("level", ["hard", 1.5, True, 2**40, "1 to 2"])
def test_other_levels_are_refused(tmp_path, level):
    file = write(tmp_path, [{"q": "a", "a": "b", "level": level}])
    with pytest.raises(InputError, match=r"row 1 of .* as level; expected a (whole number|number of steps)"):
        draw(tmp_path, file, prompt="{q}", target="{a}", level="level")


def test_an_empty_data_set_is_refused(tmp_path):
    for name, content in (("a.jsonl", "\n"), ("a.csv", ""), ("b.csv", "q,a\n"), ("a.json", "[]")):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=rf'"mine" is an empty data set: .*{name} has no rows'):
            draw(tmp_path, name, prompt="{q}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"q": ', "line 1 of .* is not JSON"),
        ("a.json", b'[{"q": ', "a.json is not JSON|line 1"),
        ("a.json", b"[1, 2]", "no list of objects"),
        ("a.json", b'{"data": {"q": 1}}', "no list of objects"),
        ("a.txt", b"caf\xe9", "is not UTF-8"),
        ("a.csv", b"q,a\ncaf\xe9,1\n", "cannot be read"),
        ("a.csv", b'q,a\n1,2\n1,2,3,4\n', "cannot be read"),
        ("a.parquet", b"PAR1 not", "cannot be read .*give a parquet file"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        draw(tmp_path, name, prompt="{q}", target=" {a}")
    assert "\n" not in str(caught.value)


def test_a_path_or_folder_that_does_not_serve_is_refused(tmp_path):
    with pytest.raises(InputError, match='the path of task "mine", does not exist'):
        draw(tmp_path, "none.jsonl")
    with pytest.raises(InputError, match="has no file for test"):
        draw(tmp_path, ".")
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("q\n1\n")
    with pytest.raises(InputError, match=r"has several files \(a.csv, b.csv\) for test"):
        draw(tmp_path, ".")
    for name in ("x_test.csv", "y_test.csv"):
        (tmp_path / name).write_text("q\n1\n")
    with pytest.raises(InputError, match=r"has several files for test \(x_test.csv, y_test.csv\)"):
        draw(tmp_path, ".")
    with pytest.raises(InputError, match='the dataset of task "mine", does not exist'):
        draw_task(TaskSpec("mine", dataset="./nowhere"), 1, 0, root=str(tmp_path))


def test_a_folder_is_read_by_its_splits_and_examples_come_from_its_training_split(tmp_path):
    for split in ("train", "test", "dev"):
        write(tmp_path, [{"prompt": f"{split} {n}", "target": f" {n}"} for n in range(5)], f"{split}.jsonl")
    drawn = draw(tmp_path, ".", few_shot=2)
    assert [one.prompt for one in drawn.samples] == [f"test {n}" for n in range(5)]
    assert all(prompt.startswith("train") for one in drawn.samples for prompt, _ in one.shots)
    assert draw(tmp_path, ".", split="dev").samples[0].prompt == "dev 0"


def test_examples_of_one_file_are_rows_that_are_not_measured(tmp_path):
    file = write(tmp_path, [{"prompt": f"row {n % 8}", "target": f" {n}"} for n in range(10)])
    drawn = draw(tmp_path, file, limit=4, few_shot=3)
    measured = {one.prompt for one in drawn.samples}
    assert len(drawn.samples) == 4 and not measured & {prompt for one in drawn.samples for prompt, _ in one.shots}
    assert drawn == draw(tmp_path, file, limit=4, few_shot=3) != draw(tmp_path, file, limit=4, few_shot=3, seed=1)
    with pytest.raises(InputError, match="has 0 rows that are not measured, of 3 that few_shot asks for"):
        draw(tmp_path, file, few_shot=3)


def test_a_known_data_set_can_be_put_by_ones_own_template(shared):
    drawn = draw_task(TaskSpec("svamp", prompt="{Body} {Question} =", target=" {Answer}"), 3, 0, str(shared / "data"))
    assert all(one.prompt.endswith(" =") and (one.target or "").endswith(".0") for one in drawn.samples)


def test_the_limit_of_a_task_wins_and_is_of_each_level(tmp_path):
    file = write(tmp_path, [{"prompt": f"row {n}", "target": " x", "level": n % 3} for n in range(30)])
    assert [one.level for one in draw(tmp_path, file, limit=1).samples].count(2) == 1
    assert len(draw(tmp_path, file, limit=1, **{"levels": (0, 2)}).samples) == 2
    assert len(draw_task(TaskSpec("mine", path=file, limit=4), 1, 0, root=str(tmp_path)).samples) == 12
