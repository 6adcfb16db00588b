"""The viewer as its page has it: what it answers over HTTP, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import uvicorn
from commands import make_call
from fabricated import LAYERS, make_table, save_run
from sentences import is_one_sentence
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import hyperlens as hl
from hyperlens import effort
from hyperlens.runs.opening import open_store
from hyperlens.runs.run import sum_up
from hyperlens.viewer import Live, find_errors, find_places, make_app
from hyperlens.viewer.library import Library
from hyperlens.viewer.shelf import Shelf

EACH = 60
TABLE = make_table(EACH, ("sums", "facts"), (1, 2, 3))
INJECTED = "<script>alert(1)</script>\x1b[31m"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs that can be compared, summed up as a study would; one half measured; one that is no run; one of the future."""
    root = tmp_path_factory.mktemp("runs")
    save_run(root / "a", TABLE, shard_samples=30)
    save_run(
        root / "b", TABLE.assign(effort=TABLE["effort"] - 0.1, confidence=TABLE["confidence"] + 0.04), "tuned", shard_samples=30
    )
    for name in "ab":
        store = open_store(root / name)
        model = store.model(0)
        store.add_model(0, {**model, "certificate": {}})
        store.finish(sum_up(store))
    save_run(root / "c", TABLE, asked=INJECTED, shard_samples=30)
    (root / "c" / "COMPLETE").unlink()
    shutil.rmtree(next((root / "c" / "shards").glob("*facts*")))
    shutil.copytree(root / "a", root / "d")
    edit(root / "d" / "manifest.json", format=99)
    (root / "not a run").mkdir()
    return root


@pytest.fixture(scope="module")
def client(folder):
    places = find_places([folder])
    return TestClient(make_app({place.folder.name: place for place in places}))


def edit(file: Path, **more) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | more))


def ask(client, path: str, **parameters):
    answer = client.get(f"/api/{path}", params=parameters)
    assert answer.status_code == 200, answer.text
    return json.loads(answer.text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def refuse(client, status: int, path: str, **parameters) -> dict:
    answer = client.get(f"/api/{path}", params=parameters)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert list(error) == ["message", "field"] and is_one_sentence(error["message"])
    return error


def list_runs(client) -> dict[str, dict]:
    return {row["place"]: row for row in ask(client, "runs")["runs"]}


# runs


def test_the_overview_has_a_row_for_each_run_in_a_folder(client):
    runs = list_runs(client)
    assert [row["id"] for row in runs.values()] == ["0", "1", "2", "3"]
    assert [row["state"] for row in runs.values()] == ["finished", "finished", "running", "unreadable"]
    assert runs["a"] | {"created": ""} == {
        "id": "0", "name": "made", "place": "a", "state": "finished", "error": None, "created": "", "models": ["base"],
        "lenses": ["jump"], "tasks": ["sums", "facts"], "samples": 2 * EACH, "shards": [4, 4],
    }  # fmt: skip
    assert runs["c"]["shards"] == [2, 4] and runs["b"]["models"] == ["tuned"]


def test_a_run_of_a_newer_version_is_a_row_with_the_reason(client):
    row = list_runs(client)["d"]
    assert "newer HyperLens" in row["error"] and is_one_sentence(row["error"]) and row["samples"] == 0
    assert refuse(client, 409, "runs/3")["message"] == row["error"]


def test_a_finished_run_says_what_its_results_say(client, folder):
    page, kept = ask(client, "runs/0"), json.loads((folder / "a" / "results.json").read_text())
    assert page["results"] == kept and page["tasks"] == ["sums", "facts"] and page["state"] == "finished"
    assert page["models"]["base"]["layers"] == LAYERS and page["models"]["base"]["lenses"]["jump"]["focal_depths"] == [0, 2]
    assert page["models"]["base"]["lenses"]["jump"]["main"] == 2
    assert page["manifest"]["study"]["name"] == "made" and page["caveats"] == hl.runs.caveats.find_caveats(kept)


def test_a_run_that_is_being_written_is_shown_so_far_and_grows(folder, tmp_path):
    run = shutil.copytree(folder / "a", tmp_path / "run")
    later = shutil.move(next((run / "shards").glob("*facts*")), tmp_path / "later")
    (run / "COMPLETE").unlink()
    (run / "results.json").unlink()
    client = TestClient(make_app({"run": find_places([run])[0]}))
    page = ask(client, "runs/0")
    assert page["state"] == "running" and page["shards"] == [2, 4] and page["tasks"] == ["sums"]
    assert ask(client, "runs/0/samples")["total"] == EACH
    assert [row["n"] for row in ask(client, "runs/0/effort")["rows"]] == [EACH // 3] * 6
    assert "finished" in refuse(client, 400, "compare", before=0, after=0)["message"]
    entry = next((run / "shards").glob("*sums*/00001.json"))
    shutil.move(entry, tmp_path / "entry")
    assert ask(client, "runs/0/samples")["total"] == EACH // 2 and ask(client, "runs/0")["shards"] == [1, 4]
    shutil.move(tmp_path / "entry", entry)
    assert ask(client, "runs/0/samples")["total"] == EACH
    shutil.move(later, next((run / "shards").iterdir()).with_name("001-base-facts-jump"))
    assert ask(client, "runs/0")["shards"] == [4, 4] and ask(client, "runs/0/samples")["total"] == 2 * EACH
    open_store(run).finish(sum_up(open_store(run)))
    assert ask(client, "runs/0")["state"] == "finished"


def test_a_run_of_which_nothing_is_measured_yet_is_shown_empty(folder, tmp_path):
    run = shutil.copytree(folder / "a", tmp_path / "run")
    for name in ("shards", "models"):
        shutil.rmtree(run / name)
    (run / "COMPLETE").unlink()
    client = TestClient(make_app({"run": find_places([run])[0]}))
    assert list_runs(client)["run"]["shards"] == [0, 4]
    page = ask(client, "runs/0")
    assert page["results"]["groups"] == [] == page["caveats"] and page["tasks"] == ["sums", "facts"]
    assert refuse(client, 400, "runs/0/samples")["field"] == "model"
    shutil.rmtree(run / "tasks")
    assert list_runs(client)["run"]["shards"] == [0, 0] and ask(client, "runs/0")["state"] == "running"


def test_effort_is_that_of_the_results_flat(client, folder):
    page, kept = ask(client, "runs/0/effort", model="base", lens="jump"), ask(client, "runs/0")["results"]
    assert [(row["task"], row["level"], row["depth"]) for row in page["rows"][:4]] == [
        ("sums", 1, 0), ("sums", 1, 2), ("sums", 2, 0), ("sums", 2, 2),
    ]  # fmt: skip
    group = kept["groups"][0]
    row = page["rows"][1]
    assert {"mean": row["effort"], "low": row["low"], "high": row["high"]} == group["effort"]["2"]
    assert (row["n"], row["accuracy"], row["confidence"]) == (group["n"], group["accuracy"], group["confidence"])
    assert page["trends"] == kept["trends"] and page["contrasts"] == kept["contrasts"]


# samples


def test_samples_are_sorted_by_each_measure_either_way(client):
    columns = {name: name for name in ("effort", "confidence", "commit", "struggle")} | {"accuracy": "correct"}
    for sort, column in columns.items():
        down, up = (
            [float(row[column]) for row in ask(client, "runs/0/samples", sort=sort, order=order, limit=2 * EACH)["rows"]]
            for order in ("down", "up")
        )
        assert len(down) == 2 * EACH and down == sorted(down, reverse=True) and up == sorted(down)
    first = ask(client, "runs/0/samples", sort="sample", order="up", limit=3)["rows"]
    assert [(row["task"], row["sample"]) for row in first] == [("sums", 0), ("sums", 1), ("sums", 2)]


def test_the_hardest_sample_has_its_numbers_beside_it(client):
    row = ask(client, "runs/0/samples", depth=2, limit=1)["rows"][0]
    wanted = TABLE.loc[TABLE["effort"].idxmax()]
    assert row == {
        "task": wanted["spec"], "spec": wanted["spec"], "sample": wanted["sample"], "id": str(wanted["sample"]),
        "level": wanted["level"], "correct": bool(wanted["correct"]), "tokens": wanted["read"],
        **{name: round(wanted[name], 4) for name in ("confidence", "effort", "commit", "struggle")},
        "prompt": f"What is {wanted['sample']}?",
    }  # fmt: skip


def test_pages_of_samples_are_parts_of_the_whole_list(client):
    whole = ask(client, "runs/0/samples", limit=2 * EACH)
    parts = [ask(client, "runs/0/samples", offset=offset, limit=50) for offset in range(0, 2 * EACH + 50, 50)]
    assert [row for part in parts for row in part["rows"]] == whole["rows"] and {part["total"] for part in parts} == {2 * EACH}


def test_samples_are_chosen_by_task_level_and_outcome(client):
    mine = TABLE[(TABLE["spec"] == "facts") & (TABLE["level"] == 2)]
    chosen = {"task": "facts", "level": 2, "limit": 2 * EACH}
    counts = {show: ask(client, "runs/0/samples", show=show, **chosen)["total"] for show in ("all", "right", "wrong")}
    assert counts == {"all": len(mine), "right": mine["correct"].sum(), "wrong": (~mine["correct"]).sum()}
    page = ask(client, "runs/0/samples", show="wrong_confident", **chosen)
    least = mine[mine["correct"]]["confidence"].median()
    assert page["confident_from"] == round(least, 4)
    assert {row["sample"] for row in page["rows"]} == set(mine[~mine["correct"] & (mine["confidence"] >= least)]["sample"])


def test_a_search_looks_into_prompts_targets_and_names_in_any_case(client):
    assert ask(client, "runs/0/samples", search="WHAT is 49?")["total"] == 2
    found = ask(client, "runs/0/samples", search=" 4", limit=2 * EACH)["rows"]
    assert {row["sample"] for row in found} == {4, *range(40, 50)}
    assert ask(client, "runs/0/samples", search="nobody asked")["total"] == 0
    assert ask(client, "runs/2/samples", search=INJECTED)["total"] == EACH


def test_texts_come_as_they_are_for_the_page_to_show_as_text(client):
    assert ask(client, "runs/2/samples", limit=1)["rows"][0]["prompt"].startswith(INJECTED)


# one sample


def test_a_sample_has_the_numbers_that_were_read_of_it(client, folder):
    row = TABLE[(TABLE["spec"] == "facts") & (TABLE["read"] == 3)].iloc[0]
    page = ask(client, "runs/0/sample", task="facts", sample=int(row["sample"]))
    assert (page["layers"], page["depths"], page["readings"], page["top"]) == (LAYERS, [0, 2], ["probability"], None)
    assert (page["prompt"], page["target"]) == (f"What is {row['sample']}?", f" {row['sample']}")
    trajectory = np.float32(row["confidence"]) * np.linspace(0.2, 1, LAYERS + 1)
    for depth in (0, 2):
        states = trajectory[: LAYERS + 1 - depth]
        key = str(depth)
        np.testing.assert_allclose(page["confidence"][key], [states] * 3, atol=1e-4)
        progress = effort.measure_progress(states)
        assert page["effort"][key] == [round(float(effort.measure_effort(states)), 4)] * 3
        assert page["onset"][key] == [int(effort.find_onset(progress))] * 3
        assert page["commit"][key] == [int(effort.find_commit(progress))] * 3
    assert [token["token"] for token in page["tokens"]] == [f"base{row['sample']}"] * 3
    positions = [token["position"] for token in page["tokens"]]
    assert positions == sorted(positions)


def test_a_measured_sample_is_what_the_trajectory_says(stories, tmp_path, monkeypatch):
    study = hl.Study(
        "stories",
        (hl.ModelSpec(str(stories), "stories"),),
        (hl.TaskSpec("own"),),
        (hl.LensSpec(focal_depths=(0, 1), readings=("probability", "entropy", "top_probability"), top_k=3),),
    )
    samples = [hl.Sample("Once upon a", " time there was"), hl.Sample("The cat", " sat on")]
    run = hl.run_study(study, tmp_path / "run", samples={"own": samples})
    client = TestClient(make_app({"run": find_places([tmp_path / "run"])[0]}))
    page = ask(client, "runs/0/sample", task="own", sample=0, reading="entropy")
    trajectory = run.trajectory()
    mine = trajectory.data["sample"].values == 0
    measured = hl.measure_effort(trajectory)
    for place, depth in enumerate((0, 1)):
        key, states = str(depth), trajectory.layers - depth + 1
        np.testing.assert_allclose(page["confidence"][key], trajectory.confidence(depth)[mine], atol=6e-5)
        np.testing.assert_allclose(page["effort"][key], measured["effort"].values[mine, place], atol=6e-5)
        np.testing.assert_allclose(page["commit"][key], measured["commit"].values[mine, place])
        np.testing.assert_allclose(page["values"][key], trajectory.to_numpy("entropy")[mine, place, :states], atol=6e-5)
    assert [token["reference"] for token in page["tokens"]] == trajectory.data["reference_text"].values[mine].tolist()
    assert page["readings"] == ["probability", "entropy", "top_probability"] and page["reading"] == "entropy"
    spelled, data = trajectory.manifest["top_tokens"], trajectory.data
    for place, depth in enumerate((0, 1)):
        states = trajectory.layers - depth + 1
        ids, shares = (data[name].values[mine, place, :states].tolist() for name in ("top_ids", "top_probabilities"))
        wanted = [
            [
                [[spelled[str(one)], round(share, 4)] for one, share in zip(*state, strict=True)]
                for state in zip(*token, strict=True)
            ]
            for token in zip(ids, shares, strict=True)
        ]
        assert page["top"][str(depth)] == wanted
    monkeypatch.setattr("hyperlens.viewer.tokens.MOST_TOP", mine.sum() * 2 * (trajectory.layers + 1) * 2)
    fewer = ask(client, "runs/0/sample", task="own", sample=0)["top"]
    assert fewer == {depth: [[state[:2] for state in token] for token in top] for depth, top in page["top"].items()}


def test_a_sample_is_found_in_a_shard_of_many_parts(client, tmp_path, monkeypatch):
    monkeypatch.setattr("hyperlens.artefact.ROWS_TOGETHER", 7)
    monkeypatch.setattr("hyperlens.viewer.tokens.ROWS_AT_A_TIME", 3)
    save_run(tmp_path / "run", TABLE, shard_samples=30)
    parts = TestClient(make_app({"run": find_places([tmp_path / "run"])[0]}))
    for number in range(0, EACH, 3):
        page, whole = (ask(one, "runs/0/sample", task="sums", sample=number) for one in (parts, client))
        assert page == whole and len(page["tokens"]) == TABLE["read"][number]


def test_only_the_shard_of_a_sample_is_opened(folder, tmp_path):
    run = shutil.copytree(folder / "a", tmp_path / "run")
    shard = next(shard for shard in open_store(run).shards if 7 in shard.samples and shard.cell.task == 1)
    for file in (run / "shards").glob("*/*.parquet"):
        if file not in (open_store(run).file(shard, part) for part in ("tokens", "samples")):
            file.write_bytes(b"gone")
    client = TestClient(make_app({"run": find_places([run])[0]}))
    other = next(number for number in range(EACH) if number not in shard.samples)
    assert ask(client, "runs/0/sample", task="facts", sample=7)["sample"] == 7
    assert "cannot be read" in refuse(client, 409, "runs/0/sample", task="facts", sample=other)["message"]


# two runs


def test_two_runs_are_compared_as_the_command_compares_them(client, folder):
    page, wanted = ask(client, "compare", before=0, after=1), hl.compare_runs(folder / "a", folder / "b").describe()
    assert page["sides"] == {"before": wanted["before"], "after": wanted["after"], "lens": wanted["lens"]}
    assert page["verdicts"] == wanted["verdicts"] and page["broken"] == wanted["broken"]
    change = next(row for row in page["changes"] if (row["task"], row["level"], row["measure"]) == ("sums", 2, "effort"))
    row = next(row for row in wanted["changes"] if (row["task"], row["level"], row["depth"]) == ("sums", 2, 2))
    assert {name: change[name] for name in ("value", "low", "high", "n")} == row["effort"]["difference"]


def test_runs_that_cannot_be_compared_are_refused_in_a_sentence(client):
    assert "only the model base" in refuse(client, 400, "compare", before=0, after=0)["message"]
    assert "newer HyperLens" in refuse(client, 409, "compare", before=0, after=3)["message"]
    assert refuse(client, 404, "compare", before=0, after=9)["field"] == "id"
    assert refuse(client, 400, "compare", before=0)["field"] == "after"


# what is refused


@pytest.mark.parametrize(
    ("status", "path", "parameters", "field"),
    [
        (404, "runs/9", {}, "id"),
        (404, "runs/00", {}, "id"),
        (404, f"runs/{'9' * 5000}", {}, "id"),
        (404, "runs/٣", {}, "id"),
        (404, "runs/..%2f..%2fetc", {}, None),
        (404, "runs/0/effort", {"model": "other"}, "model"),
        (404, "runs/0/effort", {"lens": "other"}, "lens"),
        (404, "runs/0/samples", {"task": "other"}, "task"),
        (404, "runs/0/samples", {"depth": 1}, "depth"),
        (400, "runs/0/samples", {"depth": "x"}, "depth"),
        (400, "runs/0/samples", {"depth": "9" * 400}, "depth"),
        (400, "runs/0/samples", {"level": "9" * 400}, "level"),
        (400, "runs/0/samples", {"level": "-" + "9" * 400}, "level"),
        (400, "runs/0/sample", {"task": "sums", "sample": "9" * 400}, "sample"),
        (400, "compare", {"before": 0, "after": 1, "depth": "9" * 400}, "depth"),
        (400, "runs/0/samples", {"sort": "size"}, "sort"),
        (400, "runs/0/samples", {"order": "sideways"}, "order"),
        (400, "runs/0/samples", {"show": "some"}, "show"),
        (400, "runs/0/samples", {"limit": 10_000}, "limit"),
        (400, "runs/0/samples", {"offset": -1}, "offset"),
        (400, "runs/0/samples", {"search": "x" * 501}, "search"),
        (404, "runs/0/sample", {"task": "sums", "sample": EACH}, "sample"),
        (404, "runs/0/sample", {"task": "other", "sample": 0}, "sample"),
        (400, "runs/0/sample", {"task": "sums"}, "sample"),
        (400, "runs/0/sample", {"task": "sums", "sample": 0, "reading": "entropy"}, "reading"),
        (404, "nothing", {}, None),
    ],
)
def test_what_does_not_exist_is_refused_with_its_field(client, status, path, parameters, field):
    assert refuse(client, status, path, **parameters)["field"] == field


@pytest.mark.parametrize(
    ("content", "field"), [(b'{"prompt": ', "body"), (b"[]", "body"), (b'{"prompt": 1}', "prompt"), (b"{}", "prompt"),
                           (b'{"prompt": "x", "max_tokens": 0}', "max_tokens"), (b'{"prompt": "x", "secret": 0}', "secret"),
                           (b"[" * 100_000, "body"), (b"9" * 5000, "body"), (b'"\xff"', "body"),
                           *((f'{{"prompt": "x", "{name}": {10**9}}}'.encode(), name)
                             for name in ("max_tokens", "focal_depth", "stride", "candidates", "top_k"))]
)  # fmt: skip
def test_a_malformed_request_is_refused_with_its_field(client, content, field):
    answer = client.post("/api/live", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["field"] == field
    assert is_one_sentence(answer.json()["error"]["message"]) and "nothing at" not in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("POST", "/api/runs", "GET"), ("DELETE", "/api/live", "GET, POST"), ("POST", "/static/plotly.min.js", "GET, HEAD"),
     ("POST", "/static/other", "GET, HEAD")],
)  # fmt: skip
def test_a_method_that_is_not_there_is_refused_with_those_that_are(client, method, path, allowed):
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert f"nothing at {path} for {method}" in answer.json()["error"]["message"]


# folders


def test_links_that_lead_out_of_a_given_folder_are_not_followed(folder, tmp_path):
    root, secret = tmp_path / "given", tmp_path / "secret"
    root.mkdir()
    shutil.copytree(folder / "a", secret)
    for name in ("inside", "own"):
        shutil.copytree(folder / "a", root / name)
    (root / "out").symlink_to(secret)
    results = root / "inside" / "results.json"
    results.unlink()
    results.symlink_to(secret / "results.json")
    shard = next((root / "own" / "shards").glob("*sums*"))
    shutil.move(shard, root / "elsewhere")
    shard.symlink_to(root / "elsewhere")
    client = TestClient(make_app({place.folder.name: place for place in find_places([root])}))
    runs = list_runs(client)
    assert {name: row["state"] for name, row in runs.items()} == {
        "inside": "unreadable",
        "out": "unreadable",
        "own": "finished",
    }
    assert all("leads out of" in runs[name]["error"] and is_one_sentence(runs[name]["error"]) for name in ("inside", "out"))
    assert ask(client, f"runs/{runs['own']['id']}/samples")["total"] == 2 * EACH
    (root / "elsewhere" / "00009.json").symlink_to(secret / "manifest.json")
    (root / "own" / "tasks" / "link").symlink_to(secret)
    assert list_runs(client)["own"]["state"] == "unreadable"


def test_a_link_is_found_also_where_the_time_of_its_folder_is_set_back(folder, tmp_path):
    run = shutil.copytree(folder / "a", tmp_path / "run")
    client = TestClient(make_app({"run": find_places([run])[0]}))
    assert ask(client, "runs/0/sample", task="sums", sample=0)
    file = next((run / "shards").glob("*sums*/00000.tokens.parquet"))
    before = file.parent.stat()
    shutil.move(file, tmp_path / "outside")
    file.symlink_to(tmp_path / "outside")
    os.utime(file.parent, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "leads out of" in refuse(client, 409, "runs/0/sample", task="sums", sample=0)["message"]


def test_a_run_is_found_by_any_name_and_shown_once(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder / "a")
    places = find_places([folder / "a", tmp_path / "link", folder / "b" / ".." / "a", folder, tmp_path / "none"])
    assert [place.folder.name for place in places] == ["a", "b", "c", "d", "none"]
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    places = find_places([tmp_path, folder / "a", tmp_path / "circle"])
    assert [place.folder for place in places] == [tmp_path / "link", folder / "a", tmp_path / "circle"]


def test_a_damaged_run_is_told_apart_from_a_missing_page(folder, tmp_path, caplog):
    run = shutil.copytree(folder / "a", tmp_path / "run")
    edit(run / "results.json", groups=[{"task": "sums"}])
    client = TestClient(make_app({"run": find_places([run])[0], "b": find_places([folder / "b"])[0]}))
    assert f"{run} is damaged (KeyError" in refuse(client, 409, "runs/0/effort")["message"]
    file = next((run / "shards").glob("*sums*/00000.samples.parquet"))
    table = pq.read_table(file)
    pq.write_table(table.set_column(table.column_names.index("effort@0"), "effort@0", [["private"] * len(table)]), file)
    said = refuse(client, 409, "runs/0/samples", depth=0)["message"]
    assert "is damaged" in said and "private" not in said and not caplog.records
    assert f"{run} or {folder / 'b'} is damaged" in refuse(client, 409, "compare", before=0, after=1)["message"]
    assert ask(client, "runs/1/effort")
    (run / "results.json").write_text("{")
    assert "no results that can be read" in list_runs(client)["run"]["error"]
    (run / "file").write_text("")
    assert find_errors(find_places([run / "file"]))[0].endswith("is a file; expected the folder of a study")


def test_whatever_a_document_of_a_run_says_the_answer_is_one_sentence(folder, tmp_path):
    source, random = folder / "a", np.random.default_rng(0)
    for _ in range(25):
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(source, run)
        file = random.choice(sorted(run.rglob("*.json")))
        document = json.loads(file.read_text())
        damage(document, random)
        file.write_text(json.dumps(document))
        if random.random() < 0.4:
            (run / "COMPLETE").unlink()
        places = find_places([run])
        find_errors(places)
        client = TestClient(make_app({"run": places[0]}), raise_server_exceptions=False)
        for path in ("", "/0", "/0/effort", "/0/samples", "/0/samples?search=a", "/0/sample?task=sums&sample=0"):
            answer = client.get(f"/api/runs{path}")
            assert answer.status_code < 500, (file.name, path, answer.text)
            assert answer.status_code == 200 or is_one_sentence(answer.json()["error"]["message"])


def damage(document, random) -> None:
    """Take away one value anywhere in a document, or put another in its place."""
    while True:
        keys = list(document) if isinstance(document, dict) else range(len(document))
        key = keys[random.integers(len(keys))]
        if not document[key] or not isinstance(document[key], dict | list) or random.random() < 0.3:
            break
        document = document[key]
    wrong = [None, "x", [], {}, -1, 10**400, float("nan"), True, [[[]]]]
    if random.random() < 0.5:
        del document[key]
    else:
        document[key] = wrong[random.integers(len(wrong))]


def test_a_run_that_was_begun_anew_is_read_anew(folder, tmp_path):
    run = shutil.copytree(folder / "a", tmp_path / "run")
    library = Library({"run": find_places([run])[0]})
    before = library.open("0")
    assert library.open("0") is before and library.results(before)
    shutil.rmtree(run)
    shutil.copytree(folder / "b", run)
    after = library.open("0")
    assert list(after.run.models) == ["tuned"]
    assert [key[1] for key in library.shelf._things] == [after.stamp], "what is outdated is not kept"


def test_a_folder_of_any_name_can_be_shown(folder, tmp_path):
    run = shutil.copytree(folder / "a", tmp_path / os.fsdecode(b"\xff\x1b[31m<script>"))
    client = TestClient(make_app({"run": find_places([run])[0]}))
    assert ask(client, "runs")["runs"][0]["state"] == "finished"
    edit(run / "manifest.json", format=99)
    assert "<script>" in ask(client, "runs")["runs"][0]["error"]


# pages


def test_the_pages_scripts_come_from_the_same_server(client):
    script = client.get("/static/plotly.min.js")
    assert script.status_code == 200 and "javascript" in script.headers["content-type"] and len(script.content) > 10**6
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd", "/static/"):
        assert client.get(path).status_code == 404, path


# what is kept


def test_a_shelf_keeps_what_was_used_last_within_its_bound():
    shelf, made = Shelf(100), []

    def get(key: str, weight: int = 40) -> str:
        return shelf.get(key, lambda: made.append(key) or key, lambda _: weight)

    assert [get(key) for key in "aabaca"] == list("aabaca") and made == ["a", "b", "c"]
    assert get("b") == "b" and made == ["a", "b", "c", "b"] and shelf.bytes == 80
    get("large", 101)
    assert shelf.bytes == 0
    with pytest.raises(ZeroDivisionError):
        shelf.get("fails", lambda: 1 // 0)
    assert shelf.get("fails", lambda: 1) == 1


def test_a_thing_is_made_once_however_many_ask_for_it():
    shelf, made, answers = Shelf(), [], []

    def make() -> int:
        time.sleep(0.05)
        return made.append(1) or len(made)

    threads = [threading.Thread(target=lambda: answers.append(shelf.get("key", make))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [1] * 8


# live


MISSHAPEN = (
    "[]",
    "3",
    "{",
    "[" * 5000,
    "9" * 5000,
    '{"hyperlens": "x"}',
    '{"choices": 3}',
    '{"choices": [{"hyperlens": [1]}]}',
)


class Upstream:
    """A server that answers as `hyperlens serve` does, slowly where asked to, and knows what it was asked and who left."""

    def __init__(self):
        self.asked, self.left = [], threading.Event()
        routes = [Route("/v1/hyperlens", self.describe), Route("/v1/{kind:path}", self.write, methods=["POST"])]
        self.app = Starlette(routes=routes)

    async def describe(self, request):
        if request.headers.get("authorization") != "Bearer upstream-token":
            return JSONResponse({"error": {"message": "no"}}, 401)
        return JSONResponse({"model": "tiny", "layers": 4, "focal_depth": 2})

    async def write(self, request):
        body = await request.json()
        self.asked.append((request.url.path, body))
        if body["max_tokens"] > 1000:
            message = "this server writes at most 1000 tokens; ask for fewer"
            return JSONResponse({"error": {"message": message, "param": "max_tokens"}}, 400)
        return StreamingResponse(self.send(body), media_type="text/event-stream")

    async def send(self, body):
        import anyio

        try:
            for index in range(body["max_tokens"]):
                token = {"index": index, "text": INJECTED, "effort": None}
                yield f"data: {json.dumps({'choices': [{'text': INJECTED, 'hyperlens': {'tokens': [token]}}]})}\n\n"
                await anyio.sleep(0.02 if body["max_tokens"] > 100 else 0)
            if body["prompt"] == "memory":
                yield 'data: {"error": {"message": "memory did not suffice"}}\n\n'
            if body["prompt"] == "text":
                yield 'data: {"error": "out of order"}\n\n'
            if body["prompt"] in MISSHAPEN:
                yield f"data: {body['prompt']}\n\n"
            end = {
                "choices": [{"finish_reason": "length"}],
                "hyperlens": {"summary": {"tokens": body["max_tokens"]}, "layers": 4},
            }
            yield f"data: {json.dumps(end)}\n\ndata: [DONE]\n\n"
        finally:
            self.left.set()


@pytest.fixture(scope="module")
def upstream():
    made = Upstream()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as opened:
        opened.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(made.app, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        made.url = f"http://127.0.0.1:{opened.getsockname()[1]}"
        yield made
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def viewer(folder, upstream, tmp_path_factory):
    """A viewer as a user starts it, in a process of its own."""
    tokens = tmp_path_factory.mktemp("tokens")
    (tokens / "ours").write_text("the-token-of-the-viewer\n")
    (tokens / "theirs").write_text("upstream-token\n")
    words = ["view", folder, "--port", "0", "--json", "--token-file", tokens / "ours", "--live", upstream.url]
    command = [
        sys.executable,
        "-c",
        "from hyperlens.cli import main; main()",
        *map(str, [*words, "--live-token-file", tokens / "theirs"]),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = json.loads(process.stdout.readline())
    assert said["token"] == "the-token-of-the-viewer" and said["url"] == f"http://127.0.0.1:{said['port']}"
    with httpx.Client(base_url=said["url"], headers={"Authorization": f"Bearer {said['token']}"}, trust_env=False) as client:
        yield process, client, said["port"]
    process.kill()
    process.wait()


def read_events(answer) -> list[tuple[str, dict]]:
    events = [part.split("\n") for part in answer.text.split("\n\n") if part]
    return [(lines[0].removeprefix("event: ") if len(lines) > 1 else "", json.loads(lines[-1][6:])) for lines in events]


def test_the_live_page_has_the_tokens_of_the_server_it_is_connected_to(viewer, upstream):
    _, client, _ = viewer
    assert client.get("/api/live").json() == {"model": "tiny", "layers": 4, "focal_depth": 2, "connected": True, "error": None}
    wanted = {"prompt": "Once", "max_tokens": 3, "temperature": 0.5, "focal_depth": 0, "candidates": None}
    events = read_events(client.post("/api/live", json=wanted))
    assert [name for name, _ in events] == ["", "", "", "end"]
    assert [token for _, token in events[:3]] == [{"index": index, "text": INJECTED, "effort": None} for index in range(3)]
    assert events[3][1] == {"summary": {"tokens": 3}, "layers": 4, "finish_reason": "length"}
    path, body = upstream.asked[-1]
    assert path == "/v1/completions" and body["model"] == "tiny" and body["stream"] and body["prompt"] == "Once"
    assert body["hyperlens"] == {"focal_depth": 0, "candidates": None}, "what is left away is the server's to choose"
    client.post("/api/live", json=wanted | {"chat": True})
    path, body = upstream.asked[-1]
    assert path == "/v1/chat/completions" and body["messages"] == [{"role": "user", "content": "Once"}]


def test_a_refusal_of_the_server_arrives_in_its_words(viewer):
    answer = viewer[1].post("/api/live", json={"prompt": "Once", "max_tokens": 2000})
    assert answer.status_code == 400
    assert answer.json()["error"] == {"message": "this server writes at most 1000 tokens; ask for fewer", "field": "max_tokens"}


def test_an_answer_that_fails_half_way_says_so(viewer):
    events = read_events(viewer[1].post("/api/live", json={"prompt": "memory", "max_tokens": 2}))
    assert [name for name, _ in events] == ["", "", "error"] and events[2][1] == {"message": "memory did not suffice"}


@pytest.mark.parametrize("event", MISSHAPEN)
def test_what_is_no_answer_of_ours_ends_the_page_with_a_sentence(viewer, event):
    events = read_events(viewer[1].post("/api/live", json={"prompt": event, "max_tokens": 1}))
    assert [name for name, _ in events] == ["", "error"]
    assert "cannot be read" in events[1][1]["message"] and is_one_sentence(events[1][1]["message"])


def test_an_error_need_not_be_an_object(viewer):
    events = read_events(viewer[1].post("/api/live", json={"prompt": "text", "max_tokens": 1}))
    assert events[1:] == [("error", {"message": "out of order"})]


def test_leaving_the_page_ends_the_writing_there(viewer, upstream):
    upstream.left.clear()
    with viewer[1].stream("POST", "/api/live", json={"prompt": "Once", "max_tokens": 1000}) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ") and not upstream.left.is_set()
    assert upstream.left.wait(5), "it still writes"


def test_a_server_that_does_not_answer_is_said_to_in_a_sentence(folder, upstream):
    place = {"a": find_places([folder / "a"])[0]}
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as free:
        free.bind(("127.0.0.1", 0))
        gone = TestClient(make_app(place, Live(f"http://127.0.0.1:{free.getsockname()[1]}")))
        found = gone.get("/api/live").json()
        assert not found["connected"] and "does not answer" in found["error"] and is_one_sentence(found["error"])
        assert gone.post("/api/live", json={"prompt": "x"}).status_code == 502
    locked = TestClient(make_app(place, Live(f"{upstream.url}/v1/", "wrong-token"))).get("/api/live").json()
    assert not locked["connected"] and "--live-token-file" in locked["error"]
    none = TestClient(make_app(place))
    assert "--live" in none.get("/api/live").json()["error"]
    assert none.post("/api/live", json={"prompt": "x"}).status_code == 409


# the command


@pytest.fixture
def call(capsys, monkeypatch):
    monkeypatch.delenv("HYPERLENS_TOKEN", raising=False)
    return make_call(capsys, monkeypatch, "view")


def refused(result: tuple[int, str, str]) -> str:
    status, out, err = result
    assert status == 2 and out == "" and is_one_sentence(err.splitlines()[-1]), result
    return err.splitlines()[-1]


def test_the_command_refuses_what_cannot_be_shown(call, folder, viewer, tmp_path):
    assert "does not exist" in refused(call(tmp_path / "none"))
    assert "manifest.json" in refused(call(folder / "not a run"))
    assert "and 1 more" in refused(call(folder / "not a run", tmp_path / "none"))
    assert "newer HyperLens" in refused(call(folder / "d"))
    assert f"port {viewer[2]} of 127.0.0.1 is taken" in refused(call(folder / "a", "--port", viewer[2]))
    assert "--token-file" in refused(call(folder / "a", "--host", "0.0.0.0"))
    assert "cannot be read" in refused(call(folder / "a", "--token-file", tmp_path / "none"))
    for address in ("file:///etc/passwd", "http://name:word@host", "http://host/?a=b", "http://host/#a", "http://"):
        assert "no address of a server" in refused(call(folder / "a", "--live", address))


def test_what_is_not_installed_is_said_with_the_command_that_installs_it(call, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "pip install 'hyperlens[view]'" in refused(call(folder))


@pytest.mark.parametrize("given", [True, False])
def test_a_token_that_was_given_is_not_printed_and_none_is_in_the_list_of_processes(call, folder, tmp_path, monkeypatch, given):
    def look(address: str) -> None:
        page = Path(address.removeprefix("file://"))
        seen.append((address, page, page.stat().st_mode, page.parent.stat().st_mode, page.read_text()))

    seen: list = []
    monkeypatch.setattr("webbrowser.open", look)
    monkeypatch.setattr("hyperlens.web.serve_app", lambda *_: seen.append(seen[0][1].exists()))
    monkeypatch.setattr("hyperlens.web.new_token", lambda: "the-token-of-this-start")
    (tmp_path / "token").write_text("the-token-of-the-viewer")
    status, out, err = call(folder / "a", "--port", 0, "--open", *(["--token-file", tmp_path / "token"] if given else []))
    token = "the-token-of-the-viewer" if given else "the-token-of-this-start"
    assert status == 0 and (token in out) == (not given) and token not in err
    (address, page, *modes, content), still_there = seen
    assert address.startswith("file:///") and token not in address and f"/#token={token}" in content
    assert [mode & 0o777 for mode in modes] == [0o600, 0o700] and still_there and not page.parent.exists()


def test_the_viewer_asks_for_its_token_and_hides_the_rest(viewer):
    _, client, _ = viewer
    assert client.get("/api/runs").json()["live"] is True
    assert client.get("/api/runs", headers={"Authorization": "Bearer another-token"}).status_code == 401
    assert client.get("/api/runs", headers={"Host": "evil.example"}).status_code == 400
    assert client.post("/api/live", content=b"x" * 2**21).status_code == 413


def test_the_viewer_ends_when_it_is_told_to(viewer):
    process = viewer[0]
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    out, err = process.communicate()
    assert out == "" and [line for line in err.splitlines() if "newer HyperLens" not in line] == []
