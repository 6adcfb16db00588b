from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pytest

from hyperlens.artefact import FORMAT, MARKER, check_place, is_artefact, read_document, read_table, to_json, write_artefact
from hyperlens.errors import ArtefactError


def table(seed: int = 0, rows: int = 50) -> pa.Table:
    values = np.random.default_rng(seed).random((rows, 9), dtype=np.float32)
    return pa.table({"token": ["a"] * rows, "probability@2": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 9)})


def test_what_is_written_is_read_back_to_the_last_bit(tmp_path):
    folder = write_artefact(tmp_path / "run", {"seed": 1}, {"tokens": table()}, {"results": {"groups": []}})
    assert read_table(folder, "tokens").equals(table())
    assert read_document(folder) == {"written_by": "hyperlens", "format": FORMAT, "seed": 1}
    assert read_document(folder, "results") == {"groups": []}
    assert sorted(os.listdir(tmp_path)) == ["run"]


def test_results_of_ours_are_replaced_whole(tmp_path):
    write_artefact(tmp_path / "run", {"seed": 1}, {"tokens": table(0), "old": table(0)})
    write_artefact(tmp_path / "run", {"seed": 2}, {"tokens": table(1)})
    assert read_document(tmp_path / "run")["seed"] == 2
    assert not (tmp_path / "run" / "old.parquet").exists()
    assert sorted(os.listdir(tmp_path)) == ["run"]


def test_results_of_another_kind_are_left_alone(tmp_path):
    write_artefact(tmp_path / "lens", {"kind": "tuned lens"}, {}, files={"translators.safetensors": b"days of work"})
    for write in (
        lambda: write_artefact(tmp_path / "lens", {"kind": "trajectory"}, {}),
        lambda: check_place(tmp_path / "lens"),
    ):
        with pytest.raises(ArtefactError, match=r"holds other results of HyperLens \(tuned lens\); nothing was written"):
            write()
    assert (tmp_path / "lens" / "translators.safetensors").read_bytes() == b"days of work"
    assert check_place(tmp_path / "lens", "tuned lens") == tmp_path / "lens"


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtefactError, match="does not hold results of HyperLens; nothing was written"):
        write_artefact(tmp_path, {}, {})
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_files_of_others_are_never_removed_with_ours(tmp_path):
    folder = write_artefact(tmp_path / "run", {}, {})
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtefactError, match="nothing was written"):
        write_artefact(folder, {}, {})
    (tmp_path / "manifest.json").write_text('{"format": 1, "name": "somebody else"}')
    assert not is_artefact(tmp_path) and (folder / "thesis.txt").exists()


@pytest.mark.parametrize("taken", ["file", "file/below"])
def test_a_place_that_cannot_be_a_folder_is_refused(tmp_path, taken):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtefactError, match=r"is a file|not a writable folder"):
        check_place(tmp_path / taken)


def test_a_failing_write_leaves_what_was_there(tmp_path, monkeypatch):
    write_artefact(tmp_path / "run", {"seed": 1}, {"tokens": table()})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hyperlens.artefact.pq.write_table", full)
    with pytest.raises(ArtefactError, match="No space left on device"):
        write_artefact(tmp_path / "run", {"seed": 2}, {"tokens": table()})
    assert read_document(tmp_path / "run")["seed"] == 1
    assert os.listdir(tmp_path) == ["run"]


def test_an_unfinished_foreign_newer_or_missing_folder_is_not_read(tmp_path):
    with pytest.raises(ArtefactError, match="does not exist"):
        read_document(tmp_path / "none")
    with pytest.raises(ArtefactError, match=r"holds no manifest\.json"):
        read_document(tmp_path)
    folder = write_artefact(tmp_path / "run", {}, {})
    (folder / MARKER).unlink()
    with pytest.raises(ArtefactError, match="was not finished"):
        read_document(folder)
    (folder / MARKER).touch()
    (folder / "manifest.json").write_text(json.dumps({"written_by": "hyperlens", "format": FORMAT + 1}))
    with pytest.raises(ArtefactError, match="newer HyperLens"):
        read_document(folder)


def test_a_damaged_table_is_named(tmp_path):
    folder = write_artefact(tmp_path / "run", {}, {"tokens": table()})
    (folder / "tokens.parquet").write_bytes((folder / "tokens.parquet").read_bytes()[:100])
    with pytest.raises(ArtefactError, match=r"tokens\.parquet cannot be read"):
        read_table(folder, "tokens")


def test_json_is_strict():
    assert to_json({"a": float("nan"), 2: (1.5, float("inf"))}) == '{"a": null, "2": [1.5, null]}'


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_complete_folder_or_none(tmp_path):
    script = """
        import itertools, sys
        sys.path.insert(0, "tests")
        from test_artefact import table
        from hyperlens.artefact import write_artefact
        made = table(0, 20000)
        print("ready", flush=True)
        for seed in itertools.count():
            write_artefact(sys.argv[1], {"seed": seed}, {"tokens": made})
            print(seed, flush=True)
    """
    rng = np.random.default_rng(0)
    for number in range(6):
        folder = tmp_path / str(number)
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        try:
            process.wait(timeout=0.05 + rng.random() * 0.4)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        reported = process.stdout.read().split()
        process.stdout.close()
        process.wait()
        if folder.exists():
            assert read_table(folder, "tokens").num_rows == 20000
            assert read_document(folder)["seed"] >= len(reported) - 1
        else:
            assert not reported or is_artefact(next(tmp_path.glob(f".{number}.*.before")))
