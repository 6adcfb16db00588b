"""The command line as its users meet it. In-process where nothing depends on the process, for speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import make_call
from loading import save_llava


@pytest.fixture
def alone(capsys, monkeypatch, tmp_path):
    """Run `hyperlens` with these words: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    return make_call(capsys, monkeypatch)


@pytest.fixture
def call(alone, loaded_once):
    """The same, without loading the reference model each time."""
    return alone


def refused(result: tuple[int, str, str]) -> str:
    """The one sentence of a refusal."""
    status, out, err = result
    assert status == 2 and out == "" and err.startswith("hyperlens: ") and err.count("\n") == 1, result
    return err


def test_check_prints_its_stable_fields(call):
    status, out, _ = call("check", "reference", "--json")
    document = json.loads(out)
    assert status == 0
    fields = ["architecture", "layers", "certified", "way", "contexts", "max_error", "reason", "cached_form", "paddings"]
    assert list(document) == fields
    assert document["certified"] and document["contexts"] == ["jump", "cached"] and document["max_error"] <= 1e-5
    status, out, _ = call("check", "reference")
    assert status == 0 and "jump, cached" in out


def test_trace_prints_its_stable_fields(alone):
    status, out, _ = alone("trace", "reference", "Ada's friend is", "3 + 4 is", "--focal-depth", "0,2", "--json")
    document = json.loads(out)
    assert status == 0 and set(document) == {"manifest", "samples"}
    assert [sample["text"] for sample in document["samples"]] == ["Ada's friend is", "3 + 4 is"]
    (token,) = document["samples"][1]["tokens"]
    assert set(token) == {
        "position", "token", "output", "output_probability", "reference", "trajectory", "effort", "commit",
    }  # fmt: skip
    assert token["position"] == 4 and token["token"] == "is" and token["output"] == token["reference"] == "7"
    assert len(token["trajectory"]["0"]) == len(token["trajectory"]["2"]) == 17
    assert set(token["trajectory"]["2"][14:]) == {token["output_probability"]}
    assert 0 <= token["effort"]["2"] <= 1 and 0 <= token["commit"]["2"] <= 14


def test_an_answer_token_is_read_where_it_is_predicted(call):
    status, out, _ = call("trace", "reference", "3 + 4 is", "--target", " 9", "--focal-depth", "0", "--json")
    (token,) = json.loads(out)["samples"][0]["tokens"]
    assert status == 0 and token["position"] == 4 and token["reference"] == "9" and token["output"] == "7"
    assert token["effort"]["0"] is None


def test_trace_takes_images_where_the_model_does(call, tmp_path):
    save_llava(tmp_path / "llava", "cat.png")
    image = tmp_path / "llava" / "cat.png"
    words = ("trace", tmp_path / "llava", "w20 <image> w30", "--image", image, "--focal-depth", "0,2", "--json")
    status, out, _ = call(*words)
    assert status == 0 and [token["position"] for token in json.loads(out)["samples"][0]["tokens"]] == [17]
    status, _, err = call("trace", "reference", "Ada's friend is", "--image", image)
    assert status == 2 and "came without a processor of images" in err


def test_trace_draws_and_saves(call, tmp_path):
    status, out, _ = call("trace", "reference", "Ada's friend is", "--out", tmp_path / "t", "--positions", "all")
    assert status == 0 and "█" in out and "commit" in out and "highest resolution" in out
    assert (tmp_path / "t" / "COMPLETE").exists()


def test_trace_reads_options_files_and_generations(call, tmp_path):
    file = tmp_path / "own.txt"
    file.write_text("Ada's friend is\n2 + 2 is\n")
    words = ("trace", "reference", "--file", file, "--json", "--focal-depth", "0")
    options = json.loads(call(*words, "--options", "4,5", "--no-letter", "--limit", 1)[1])
    assert options["manifest"]["options"] == 2 and len(options["samples"]) == 1
    made = json.loads(call(*words, "--positions", "generated", "--max-new-tokens", 3)[1])
    assert [len(sample["tokens"]) for sample in made["samples"]] == [2, 2]  # the answer and the full stop that ends it
    assert made["samples"][1]["tokens"][0]["reference"] == "4"


def test_several_readings_are_all_printed(call):
    _, out, _ = call("trace", "reference", "2 + 2 is", "--focal-depth", "0", "--reading", "entropy,rank", "--json")
    (token,) = json.loads(out)["samples"][0]["tokens"]
    assert token["trajectory"]["0"][-1] < token["trajectory"]["0"][0] and set(token["readings"]) == {"probability", "rank"}
    assert token["readings"]["rank"]["0"][-1] == 0


def test_study_prints_its_stable_fields_and_keeps_its_results(call, tmp_path):
    words = ("study", "--limit", 4, "--level", 1, "--level", 3, "--out", tmp_path / "run", "--focal-depth", "0,2")
    status, out, _ = call(*words, "--json")
    document = json.loads(out)
    assert status == 0 and {"manifest", "models", "groups", "trends", "choices", "contrasts", "signs"} <= set(document)
    assert {"model", "task", "level", "n", "accuracy", "confidence", "effort"} <= set(document["groups"][0])
    assert set(document["groups"][0]["effort"]["2"]) == {"mean", "low", "high"}
    assert {"model", "task", "depth", "rho", "low", "high"} <= set(document["trends"][0])
    status, out, _ = call(*words)
    assert status == 0 and "mathematics" in out and "Spearman's rho" in out and str(tmp_path / "run") in out.replace("\n", "")
    page = tmp_path / "run.html"
    assert f"Page: {page}" in out.replace("\n", "") and page.stat().st_size > 4_000_000
    page.unlink()
    status, out, _ = call("report", tmp_path / "run", "--out", tmp_path / "other" / "page.html")
    assert status == 0 and (tmp_path / "other" / "page.html").exists() and not page.exists()
    status, out, _ = call("report", tmp_path / "run", "--format", "md")
    assert status == 0 and (tmp_path / "run.md").read_text(encoding="utf-8").count("| mathematics |") >= 2
    assert "docx" in refused(call("report", tmp_path / "run", "--format", "docx"))
    assert "bmp" in refused(call("report", tmp_path / "run", "--figures", "bmp"))


def test_a_study_in_a_file_is_planned_measured_and_gone_on_with(call, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\nlimit = 2\n[[tasks]]\nname = "logic"\nlevels = [1]\n[[lenses]]\nfocal_depths = [0]\n')
    words = ("study", file, "--out", tmp_path / "run", "--json", "--no-report")
    status, out, _ = call(*words, "--plan")
    plan = json.loads(out)
    assert status == 0 and not (tmp_path / "run").exists()
    assert plan["samples"] == 2 and plan["models"][0]["parameters"] == 2_639_488 and plan["seconds"] > 0
    status, out, _ = call("study", file, "--plan")
    assert status == 0 and "What would be read" in out and "2 samples" in out
    first, again = call(*words), call(*words)
    assert first[0] == 0 and first[:2] == again[:2] and not (tmp_path / "run.html").exists()
    file.write_text(file.read_text().replace("limit = 2", "limit = 3"))
    assert "limit is 2 there and 3 here" in refused(call(*words))
    status, out, _ = call(*words, "--restart")
    assert status == 0 and json.loads(out)["drawn"] == {"logic": 3}


def test_control_signs_of_a_text_never_reach_the_terminal(call):
    status, out, _ = call("trace", "reference", "Ada's friend is \x1b[31m [bold]x[/bold]", "--focal-depth", "0")
    assert status == 0 and "\x1b" not in out and "\\u001b" in out and "[bold]" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["check", "/no/such/folder"], "there is no folder /no/such/folder"),
        (["check", "nobody/nothing"], "the hub could not give it"),
        (["trace", "reference", ""], "text 1 is empty"),
        (["trace", "reference"], "there is no text to read"),
        (["trace", "reference", "a " * 300], "has 301 tokens, and this model's context holds 256"),
        (["trace", "reference", "Ada's friend is", "--target", ""], "target of text 1 is empty or tokenises to nothing"),
        (["trace", "reference", "Ada's friend is", "--target", "   "], "is empty or tokenises to nothing"),
        (["trace", "reference", "x", "--focal-depth", "-1"], "focal depth -1 is not a whole number from 0 up"),
        (["trace", "reference", "x", "--focal-depth", "17"], "focal depth 17 is above this model's 16 layers"),
        (["trace", "reference", "x", "--focal-depth", "two"], 'focal depth "two" is not a number'),
        (["trace", "reference", "x", "--reading", "mood"], '"mood" is not a reading'),
        (["trace", "reference", "x", "--context", "leap"], '"leap" is not a context; choose from jump, cached'),
        (["trace", "reference", "x", "--positions", "some"], '"some" is not a choice of positions'),
        (["trace", "reference", "x", "--positions", "answer"], "has no target"),
        (["trace", "reference", "x", "--file", "/no/file"], "/no/file cannot be read"),
        (["trace", "reference", "x", "--batch-tokens", "0"], "batch_tokens is 0"),
        (["trace", "reference", "2 + 2 is", "--options", "4 1,4 2,5", "--no-letter"], "2 of the 3 options of text 1 share"),
        (["trace", "reference", "x", "--dtype", "int3"], '"int3" is not a dtype'),
        (["trace", "reference", "x", "--device", "abacus"], 'device "abacus" is not to be had here'),
        (["study", "--task", "chess"], 'there is no task "chess"'),
        (["study", "--task", "logic:long"], "choose from matched, plain, stepwise, reworded, wide"),
        (["study", "--level", "7"], "there is no level 7; choose from 1, 2, 3, 4, 5"),
        (["study", "--context", "leap"], '"leap" is not a context; choose from jump, cached'),
        (["study", "--reading", "mood"], '"mood" is not a reading'),
        (["study", "--workers", "-1"], "there are -1 workers; give a number from 1 up"),
        (["study", "--ray-address", "auto"], "say how many workers it is to run with --workers"),
        (["study", "--few-shot", "-1"], 'few_shot of task "mathematics" is -1'),
        (["study", "no.toml"], "no.toml cannot be read"),
        (["study", "no.toml", "--task", "logic", "--limit", "3"], "no.toml says what is measured; leave --limit, --task away"),
        (["report", "/no/such/run"], "/no/such/run does not exist; expected the folder of a study"),
        (["train-reference", "--out", "model", "--steps", "0"], "the training has 0 steps; give a number from 1 up"),
        (["train-reference", "--out", "model", "--device", "abacus"], 'device "abacus" is not to be had here'),
        (["study", "--limit", "none"], "see hyperlens --help"),
        (["tarce"], "see hyperlens --help"),
    ],
)
def test_bad_input_is_one_sentence_and_status_two(call, words, sentence):
    assert sentence in refused(call(*words))


@pytest.mark.parametrize("command", [["trace", "reference", "Ada's friend is"], ["study", "--limit", "2"]])
def test_a_folder_that_is_not_ours_is_refused_before_the_work(call, tmp_path, command):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "does not hold results of HyperLens" in refused(call(*command, "--out", tmp_path))
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_too_little_memory_says_what_to_lower(call, monkeypatch):
    def allocate(*args, **kwargs):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("hyperlens.tracing.reading.route_batch", allocate)
    assert "memory did not suffice with batch_tokens 4096" in refused(call("trace", "reference", "x", "--focal-depth", "0"))


def test_help_and_version_are_quick(call):
    status, out, _ = call("--version")
    assert status == 0 and out.startswith("hyperlens ")
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([Path(sys.executable).with_name("hyperlens"), "--help"], check=True, capture_output=True)
        took = time.perf_counter() - began
        if took < 1.0:  # the aim is 0.3 s; benchmarks/ measures it, this only notices a heavy import
            return
    pytest.fail(f"--help took {took:.1f} s, five times more than 1 s")


def test_a_page_of_someone_else_is_not_replaced(call, tmp_path):
    page = tmp_path / "run.html"
    page.write_text("my own page")
    assert "was not written by HyperLens" in refused(call("study", "--limit", 2, "--out", tmp_path / "run"))
    assert page.read_text() == "my own page" and not (tmp_path / "run").exists()


def test_a_file_brings_its_own_tasks(call, tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text('{"prompt": "2 + 2 is", "target": " 4"}\n')
    assert "leave --task and --level away" in refused(call("study", "--file", file, "--level", 1, "--out", tmp_path / "run"))


@pytest.mark.parametrize("option", ["--out", "--checkpoint"])
def test_a_training_that_could_not_be_kept_does_not_begin(call, tmp_path, option):
    (tmp_path / "file").write_text("")
    words = {"--out": tmp_path / "model", "--checkpoint": tmp_path / "checkpoint", option: tmp_path / "file" / "inside"}
    given = [part for pair in words.items() for part in pair]
    assert f"choose another {option}" in refused(call("train-reference", *given))
