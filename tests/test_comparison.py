from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from commands import make_call
from fabricated import LAYERS, make_table, save_run
from loading import adapt, deprecated, needs
from sentences import is_one_sentence

import hyperlens as hl
from hyperlens.diagnosis import OUTCOMES, PATTERNS, QUADRANTS
from hyperlens.errors import InputError
from hyperlens.runs.comparison import rank_verdicts

BASE = make_table(150, ("sums", "facts"), (1, 2, 3))
RISEN = BASE.assign(confidence=BASE["confidence"] + 0.04, effort=BASE["effort"] - 0.1)
TUNED = RISEN.assign(correct=BASE["correct"] & (np.arange(len(BASE)) % 4 > 0))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("base") / "base", BASE)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("tuned") / "tuned", TUNED, "tuned")


@pytest.fixture(scope="module")
def found(base, tuned):
    return hl.compare_runs(base, tuned)


@pytest.fixture
def call(capsys, monkeypatch):
    return make_call(capsys, monkeypatch, "compare")


def refusal(base, tuned, **more) -> str:
    with pytest.raises(InputError) as refused:
        hl.compare_runs(base, tuned, **more)
    assert is_one_sentence(str(refused.value).replace(str(base.folder), "BASE").replace(str(tuned.folder), "TUNED"))
    return str(refused.value)


# laws


def test_a_run_compared_with_itself_has_not_changed_at_all(base):
    found = hl.compare_runs(base, base)
    differences = [row[name]["difference"] for row in found.changes for name in ("accuracy", "confidence", "effort", "commit")]
    assert all((one["value"], one["low"], one["high"]) == (0, 0, 0) for one in differences)
    assert {row["verdict"] for row in found.changes} == {"no change shown"} == {row["name"] for row in found.verdicts}
    assert set(found.samples["quadrant"]) == {"tied"} and found.broken == () and found.count_broken == 0


def test_swapped_sides_negate_what_changed(base, tuned, found):
    back = hl.compare_runs(tuned, base)
    for one, other in zip(found.changes, back.changes, strict=True):
        for name in ("accuracy", "confidence", "effort", "struggle"):
            first, second = one[name], other[name]
            assert first["before"] == second["after"]
            assert second["difference"]["value"] == pytest.approx(-first["difference"]["value"])
            assert second["difference"]["low"] == pytest.approx(-first["difference"]["high"])
    assert found.count_broken == (back.samples["outcome"] == "mended").sum()


def test_the_order_in_which_samples_were_read_changes_nothing(base, found, tmp_path):
    other = save_run(tmp_path / "tuned", TUNED, "tuned", shard_samples=40)
    one, two = found.describe(), hl.compare_runs(base, other).describe()
    assert {**one, "after": None} == {**two, "after": None}


def test_planted_blind_confidence_is_found_everywhere(found):
    assert [(row["task"], row["name"]) for row in found.verdicts] == [
        (None, "blind confidence"),
        ("sums", "blind confidence"),
        ("facts", "blind confidence"),
    ]
    assert [(row["task"], row["level"], row["n"]) for row in found.changes if row["depth"] == 0] == [
        (None, None, 300),
        ("sums", None, 150),
        *(("sums", level, 50) for level in (1, 2, 3)),
        ("facts", None, 150),
        *(("facts", level, 50) for level in (1, 2, 3)),
    ]
    overall = found.changes[0]
    assert overall["effort"]["difference"]["value"] == pytest.approx(-0.1)
    assert overall["accuracy"]["difference"]["value"] == pytest.approx(TUNED["correct"].mean() - BASE["correct"].mean())


def test_every_pair_is_counted_once_in_the_quadrants(found):
    for task, count in ((None, 300), ("sums", 150), ("facts", 150)):
        rows = [row for row in found.quadrants if row["task"] == task]
        assert [row["quadrant"] for row in rows] == list(QUADRANTS)
        assert sum(row[name] for row in rows for name in OUTCOMES) == count
    assert {row["quadrant"] for row in found.quadrants if row["broke"]} == {"confidence up, effort down"}


def test_the_samples_that_broke_come_with_both_trajectories(tmp_path, base):
    gained = TUNED.assign(confidence=TUNED["confidence"] + np.linspace(0, 0.3, len(TUNED)))
    found = hl.compare_runs(base, save_run(tmp_path / "gained", gained, "tuned"))
    assert found.count_broken == (found.samples["outcome"] == "broke").sum() > len(found.broken) == 20
    gains = [one.confidence_after - one.confidence_before for one in found.broken]
    assert gains == sorted(gains, reverse=True)
    first = found.broken[0]
    mine = BASE[(BASE["spec"] == first.spec) & (BASE["sample"] == first.sample)].iloc[0]
    assert (first.prompt, first.target) == (f"What is {first.sample}?", f" {first.sample}")
    assert len(first.tokens) == mine["read"] and first.left_out == 0 and first.level == mine["level"]
    token = first.tokens[0]
    assert (token.top_before, token.top_after) == (f"base{first.sample}", f"tuned{first.sample}")
    assert len(token.before) == LAYERS + 1 and token.before[-1] == pytest.approx(first.confidence_before)
    assert token.after[-1] == pytest.approx(first.confidence_after)


def test_answers_that_were_written_freely_are_shown_place_by_place(tmp_path):
    long = BASE.assign(read=3)
    one, two = (save_run(tmp_path / name, table, name, read="generated") for name, table in (("a", long), ("b", TUNED)))
    broken = next(one for one in hl.compare_runs(one, two).broken if sum(bool(token.after) for token in one.tokens) == 1)
    assert [token.text for token in broken.tokens] == [None] * 3 and [len(token.after) for token in broken.tokens][1:] == [0, 0]
    assert broken.tokens[2].top_after is None and broken.tokens[2].top_before == f"a{broken.sample}"


def test_a_sample_that_one_model_could_not_read_is_left_out_and_said(base, tmp_path):
    found = hl.compare_runs(base, save_run(tmp_path / "less", TUNED, "tuned", left_out=(3, 5)))
    assert len(found.samples) == 296 and {3, 5}.isdisjoint(found.samples["sample"])
    assert any("4 samples were read by one of the models only" in one for one in found.verdicts[0]["weakened"])


def test_other_number_formats_are_said(base, tmp_path):
    found = hl.compare_runs(base, save_run(tmp_path / "half", TUNED, "tuned", document={"dtype": "bfloat16"}))
    assert any("read as float32 and bfloat16" in one for one in found.verdicts[0]["weakened"])


def test_an_adapter_that_is_compared_with_its_base_the_wrong_way_round_is_asked_about(base, tmp_path):
    adapter = save_run(tmp_path / "adapter", TUNED, "adapter", document={"base": "base's"})
    note = "adapter is an adapter on base: is the order turned round?"
    assert all(row["weakened"].count(note) == 1 for row in hl.compare_runs(adapter, base).verdicts)
    assert not any(note in row["weakened"] for row in hl.compare_runs(base, adapter).verdicts)


def test_the_most_alarming_verdict_comes_first_and_of_like_ones_that_on_all_samples():
    def rank(*named):
        tones = {pattern.name: pattern.tone for pattern in PATTERNS}
        rows = [{"task": place or None, "name": name, "tone": tones[name]} for place, name in enumerate(named)]
        return [row["task"] or 0 for row in rank_verdicts(rows)]

    assert rank("lost accuracy", "learning", "overconfidence", "blind confidence") == [3, 0, 2, 1]
    assert rank("no change shown", "learning", "lost effort", "lost accuracy") == [3, 2, 0, 1]
    assert rank("blind confidence", "lost accuracy", "blind confidence") == [0, 2, 1]


def test_runs_are_opened_where_their_folders_are_given(base, tuned, found):
    assert hl.compare_runs(str(base.folder), tuned.folder).describe() == found.describe()


def test_the_description_is_all_of_it_as_strict_json(found):
    document = json.loads(json.dumps(found.describe(), allow_nan=False))
    assert document["samples"] == 300 and document["count_broken"] == found.count_broken
    assert document["changes"][0]["verdict"] == "blind confidence" and len(document["broken"]) == 20


def test_the_main_depth_is_the_one_chosen_for_the_base_where_both_have_it(base, tuned, found, tmp_path):
    chosen = {"auto": {"chosen": 0, "beside": [0]}}
    run = save_run(tmp_path / "auto", BASE, "auto", lens_document=chosen)
    assert hl.compare_runs(run, tuned).lens["depth"] == 0 and hl.compare_runs(tuned, run).lens["depth"] == 2
    assert found.lens == {
        "name": "jump",
        "said": "context jump",
        "context": "jump",
        "depths": [0, 2],
        "depth": 2,
    }
    assert hl.compare_runs(base, tuned, focal_depth=0).lens["depth"] == 0
    assert "focal depth 1 was not read on both sides; choose from 0, 2" in refusal(base, tuned, focal_depth=1)


# refusals


def test_other_samples_are_refused_with_how_many_are_the_same(base, tmp_path):
    more = make_table(160, ("sums", "facts"), (1, 2, 3))
    said = refusal(base, save_run(tmp_path / "tuned", more, "tuned"))
    assert "the samples of sums differ: base (base) has 150, tuned (tuned) has 160, and 150 of them are the same" in said
    assert f"hyperlens compare {base.folder} tuned" in said
    asked = refusal(base, save_run(tmp_path / "asked", TUNED, "tuned", asked="How much is"))
    assert "and 0 of them are the same" in asked


def test_a_task_that_one_run_has_not_is_refused(base, tmp_path):
    less = save_run(tmp_path / "less", TUNED.query("spec == 'sums'"), "tuned")
    assert "base (base) has read facts, which tuned (less) has not" in refusal(base, less)
    assert "base (base) has read facts, which tuned (less) has not" in refusal(less, base)


@pytest.mark.parametrize(
    ("lens", "document", "said"),
    [
        (hl.LensSpec(focal_depths=(0, 2), context="cached"), {}, "context jump, tuned (other) through context cached"),
        (hl.LensSpec(kind="logit"), {"name": "logit"}, "the lens context jump, tuned (other) through logit lens"),
        (hl.LensSpec(focal_depths=(1, 3)), {}, "at the focal depths 0, 2, tuned (other) at 1, 3, none of which is the same"),
        (hl.LensSpec(focal_depths=(0, 2)), {"between": [1]}, "by way of layer 1"),
        (hl.LensSpec(focal_depths=(0, 2)), {"fingerprint": "another"}, "(another)"),
    ],
)
def test_another_lens_context_or_focal_depth_is_refused(base, tmp_path, lens, document, said):
    refused = refusal(base, save_run(tmp_path / "other", TUNED, "tuned", lens, lens_document=document))
    assert said in refused and "measure the second as the first was" in refused


def test_answers_that_were_read_differently_are_refused(base, tmp_path):
    said = refusal(base, save_run(tmp_path / "written", TUNED, "tuned", read="generated"))
    assert "sums was measured differently (read as target in base (base), generated in tuned (written))" in said


def test_a_model_of_another_size_is_refused(base, tmp_path):
    said = refusal(base, save_run(tmp_path / "deep", TUNED, "tuned", document={"layers": 9}))
    assert "has 4 layers and tuned (deep) 9" in said


def test_an_adapter_of_another_base_is_refused_and_that_of_this_one_is_not(base, tmp_path):
    wrong, right, other = (
        save_run(tmp_path / name, TUNED, name, document={"base": below})
        for name, below in (("wrong", "another's"), ("right", "base's"), ("other", "base's"))
    )
    said = refusal(base, wrong)
    assert "wrong (wrong) is an adapter of another base than base (base)" in said
    assert "wrong (wrong) is an adapter of another base than base (base)" in refusal(wrong, base)
    assert "another base" in refusal(right, wrong)
    assert hl.compare_runs(base, right).after["base"] == "base's" and hl.compare_runs(right, other).count_broken == 0


def test_a_model_or_a_second_run_that_is_missing_is_refused(base, tuned):
    assert 'there is no model "third" in this run' in refusal(base, tuned, tuned_model="third")
    with pytest.raises(InputError, match="has only the model base; give a second run"):
        hl.compare_runs(base)


# the command


def test_the_command_shows_what_changed_and_writes_the_page(base, tuned, call):
    status, out, err = call(base.folder, tuned.folder, "--no-html")
    assert (status, err) == (0, "") and "blind confidence" in out and "samples broke: right before, wrong after" in out
    page = Path(f"{tuned.folder}.comparison.html")
    assert not page.exists()
    status, out, _ = call(base.folder, tuned.folder, "--json", "--focal-depth", "0")
    assert status == 0 and json.loads(out)["lens"]["depth"] == 0 and page.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "logic"], "a saved run says what was measured; leave --task away"),
        (["--focal-depth", "0,2"], "give one number"),
        (["--format", "pdf"], 'there is no format "pdf"'),
        (["--tuned-model", "third"], 'there is no model "third"'),
    ],
)
def test_the_command_refuses_what_does_not_fit_saved_runs(base, tuned, call, words, said):
    status, out, err = call(base.folder, tuned.folder, *words)
    assert (status, out) == (2, "") and said in err and is_one_sentence(err.strip())


def test_the_folder_of_a_comparison_is_opened_alone_and_refused_beside_another(call, tmp_path):
    folder = tmp_path / "compare-a-b"
    save_run(folder / "base", BASE)
    status, out, err = call(folder, "--no-html")
    assert (status, out) == (2, "") and "holds a comparison that was not finished" in err and is_one_sentence(err.strip())
    save_run(folder / "tuned", TUNED, "tuned")
    status, out, _ = call(folder, "--no-html", "--json")
    assert status == 0 and json.loads(out)["verdicts"][0]["name"] == "blind confidence"
    for words in ((folder, "reference"), (folder / "base", folder)):
        status, out, err = call(*words, "--no-html")
        assert (status, out) == (2, "") and is_one_sentence(err.strip().replace(str(tmp_path), ""))
        assert f"holds two runs of a comparison; give it alone, or one of them, {folder / 'base'} or" in err


@pytest.mark.parametrize("format", ["md", "html"])
def test_a_task_that_became_blindly_confident_stands_before_all_samples_that_did_not(base, call, tmp_path, format):
    mended = RISEN.assign(correct=(BASE["spec"] == "facts") | TUNED["correct"])
    after = save_run(tmp_path / "after", mended, "tuned")
    status, out, _ = call(base.folder, after.folder, "--format", format)
    assert status == 0
    for text in (out, Path(f"{after.folder}.comparison.{format}").read_text(encoding="utf-8")):
        first, *others = (text.index(f"{name}: ") for name in ("sums", "all samples", "facts"))
        assert text[first:].startswith("sums: blind confidence") and first < others[0] < others[1]
        assert text.count("no interval is adjusted for their number") == 1


def test_numbers_of_the_table_have_one_minus_sign_and_none_before_0(call, tmp_path):
    less = BASE.assign(confidence=BASE["confidence"] - 0.0001, effort=BASE["effort"] - 0.1)
    one, two = save_run(tmp_path / "one", BASE), save_run(tmp_path / "two", less, "tuned")
    status, out, _ = call(one.folder, two.folder, "--no-html")
    assert status == 0 and "▼ −0.100 [−0.100, −0.100]" in out and "effort Ω" in out
    assert re.search(r"-\d|[-−]0\.0*[^\d.]", out) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reference", "/nowhere/at/all"], "there is no folder /nowhere/at/all"),
        (["reference", "SAVED"], "reference has 16 layers and"),
        pytest.param(["reference-blind", "SAVED"], "reference-blind has 16 layers and", marks=needs("peft")),
        pytest.param(
            ["WIDE", "reference-blind"],
            "reference-blind is an adapter of another base (a qwen3 of width 128) than wide (a llama of width 64)",
            marks=needs("peft"),
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_the_base_is_measured(saved, call, tmp_path, monkeypatch, words, said):
    def measure(*_, **__):
        raise AssertionError("the base was measured")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hyperlens.runs.run_study", measure)
    (tmp_path / "wide").mkdir()
    config = {**json.loads((saved / "config.json").read_text()), "num_hidden_layers": 16, "hidden_size": 64}
    (tmp_path / "wide" / "config.json").write_text(json.dumps(config))
    (tmp_path / "wide" / "model.safetensors").write_bytes(b"not read")
    places = {"SAVED": saved, "WIDE": "wide"}
    status, out, err = call(*(places.get(word, word) for word in words), "--task", "mathematics", "--no-html")
    assert (status, out) == (2, "") and said in err and is_one_sentence(err.strip())


def test_a_file_without_prompts_is_refused_with_its_columns_and_what_to_do(saved, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text(json.dumps({"prompts": "a", "answer": "b"}))
    status, out, err = call(saved, saved, "--file", "mine.jsonl", "--no-html")
    assert (status, out) == (2, "") and is_one_sentence(err.strip().replace(str(tmp_path), ""))
    assert 'no column "prompt" (its columns are prompts, answer); rename them to prompt and target, or give messages' in err


def test_a_model_alone_is_refused(saved, call):
    status, _, err = call(saved, "--no-html")
    assert status == 2 and "not an adapter; say what it is to be compared with" in err


@pytest.mark.slow
@needs("peft")
@deprecated
def test_an_adapter_is_compared_with_its_base_and_gives_what_its_runs_give(saved, tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapt(saved, tmp_path / "adapter")
    asked = [{"prompt": f"one two {word}", "target": " two"} for word in ("one", "two", "three", "four")]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, asked)))
    words = ("--file", "mine.jsonl", "--focal-depth", "0,1", "--no-html", "--json")
    status, out, err = call("adapter", *words)
    assert status == 0, err
    found = json.loads(out)
    assert (found["before"]["fingerprint"], found["samples"]) == (found["after"]["base"], 4)
    assert found["changes"][0]["confidence"]["difference"]["value"] != 0
    folder = tmp_path / "runs" / f"compare-{saved.name}-adapter"
    _, again, _ = call(folder / "base", folder / "tuned", "--no-html", "--json")
    _, mixed, _ = call(folder / "base", "adapter", "--out", "other", "--no-html", "--json")
    assert json.loads(again) == found
    assert json.loads(mixed)["changes"] == found["changes"]
