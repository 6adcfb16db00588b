"""The Python in the pages runs as it stands, from top to bottom of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from loading import adapt, deprecated, needs, save_llava

ROOT = Path(__file__).parent.parent


def run_blocks(page: str) -> None:
    """All Python of a page, one block after the other, in one scope."""
    found = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    exec(compile("\n".join(found), page, "exec"), {})


def check_tables(page: Path, tables: Mapping[str, str], remedy: str) -> None:
    """That a page has a mark for each of these tables and for no other, and behind each mark its table."""
    text = page.read_text(encoding="utf-8")
    assert sorted(re.findall("<!-- table: (.*) -->", text)) == sorted(tables), remedy
    for name, table in tables.items():
        assert f"<!-- table: {name} -->\n\n{table}\n\n<!-- end -->" in text, f"{remedy}: {name}"


@pytest.mark.parametrize("left", ["<!-- table: b -->\n<!-- end -->", ""])
def test_a_table_that_was_not_made_or_has_no_mark_is_noticed(tmp_path: Path, left: str) -> None:
    page, tables = tmp_path / "page.md", {"a": "| 1 |", **({} if left else {"b": "| 2 |"})}
    page.write_text(f"<!-- table: a -->\n\n| 1 |\n\n<!-- end -->\n{left}", encoding="utf-8")
    with pytest.raises(AssertionError, match="run it"):
        check_tables(page, tables, "run it")


def test_the_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_blocks("README.md")
    assert re.fullmatch(r"\[\[0\.\d+ +0\.\d+ *\]\n \[0\.\d+ +0\.\d+ *\]\]\n", capsys.readouterr().out)


@needs("peft")
@needs("PIL")
@deprecated
def test_the_page_about_models_runs(tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").symlink_to(saved)
    adapt(Path("my-model"), tmp_path / "my-adapter")
    save_llava(tmp_path / "my-image-model", "cat.png")
    (tmp_path / "my-image-model" / "cat.png").rename("cat.png")
    run_blocks("docs/models.md")


def test_the_tables_of_the_page_about_studies_are_those_of_the_code() -> None:
    from studies_page import PAGE, make_tables

    page = PAGE.read_text(encoding="utf-8")
    assert [name for name, table in make_tables().items() if table not in page] == [], "run benchmarks/studies_page.py"


def test_the_page_about_studies_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks("docs/studies.md")


def test_the_studies_in_the_page_can_be_read(tmp_path: Path) -> None:
    from hyperlens.runs import read_study

    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/studies.md").read_text(encoding="utf-8"), re.DOTALL)
    for number, block in enumerate(blocks):
        (tmp_path / f"{number}.toml").write_text(block)
    whole, lenses = (read_study(tmp_path / f"{number}.toml") for number in range(2))
    assert [task.name for task in whole.tasks] == ["svamp", "gsm8k", "exam"] and len(blocks) == 2
    assert [lens.kind for lens in lenses.lenses] == ["hyper", "logit", "tuned", "hyper"]


@pytest.mark.slow
def test_the_page_about_the_tuned_lens_runs() -> None:
    run_blocks("docs/tuned-lens.md")


def test_the_tables_of_the_page_about_the_tuned_lens_are_those_that_were_measured() -> None:
    import json

    from tuned_lens_kl import PAGE, RESULTS, find_worse, make_tables

    page, results = PAGE.read_text(encoding="utf-8"), json.loads(RESULTS.read_text(encoding="utf-8"))
    assert [name for name, table in make_tables(results).items() if table not in page] == [], "run benchmarks/tuned_lens_kl.py"
    assert set(results) == {"reference", "stories260K", "bitllama_3M"} and find_worse(results) == []


def test_the_page_about_the_tuned_lens_has_the_numbers_that_were_measured_and_no_others() -> None:
    import json

    import transfer
    import tuned_lens_kl
    import tuned_lens_page

    tables: dict[str, str] = {}
    for script in (tuned_lens_page, tuned_lens_kl, transfer):
        tables |= script.make_tables(json.loads(script.RESULTS.read_text(encoding="utf-8")))
    check_tables(tuned_lens_page.PAGE, tables, "run benchmarks/transfer.py, or benchmarks/tuned_lens.py --only draw")


def test_the_page_about_odd_inputs_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_blocks("docs/anomalies.md")
    assert len(re.findall(r"\d\.\d+", capsys.readouterr().out)) == 10


def test_the_page_about_the_causal_check_runs() -> None:
    run_blocks("docs/causal.md")


@pytest.mark.slow
@needs("trl")
@needs("peft")
def test_the_page_about_fine_tuning_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks("docs/fine-tuning.md")


def test_the_page_about_fine_tuning_has_every_pattern_with_its_condition() -> None:
    from hyperlens.diagnosis import PATTERNS

    page = (ROOT / "docs" / "fine-tuning.md").read_text(encoding="utf-8")
    for pattern in PATTERNS:
        sides = [side.split(" ", 1)[1] for side in pattern.condition.split(", ")]
        assert f"{pattern.name}{'**' if pattern is PATTERNS[0] else ''} | {' | '.join(sides)} |" in page, pattern.name
    assert len(re.findall(r"^\| \**[a-z ]+\** \|(?: [a-z ]+ \|){3}$", page, re.MULTILINE)) == len(PATTERNS) + 1  # and the head


def test_the_page_about_blind_confidence_is_made_of_the_committed_numbers() -> None:
    import json

    from blind_confidence_page import PAGE, make_tables

    found = json.loads(PAGE.with_suffix(".json").read_text(encoding="utf-8"))
    check_tables(PAGE, make_tables(found), "run benchmarks/blind_confidence.py --only draw")


def test_the_page_about_the_monitor_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_blocks("docs/monitor.md")
    assert "'index': 1" in capsys.readouterr().out


def test_the_page_about_serving_runs() -> None:
    run_blocks("docs/serving.md")
