"""The table of architectures holds: every registered name has its row, and rows measured again do not differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from census import BUILDERS, compare_rows, measure_row, summarise, write_page

DOCS = Path(__file__).parent.parent / "docs"
TABLE: dict[str, Any] = json.loads((DOCS / "architectures.json").read_text())
ROWS = {(row["task"], row["name"]): row for row in TABLE["rows"]}

SAMPLE = (
    "bert bloom cohere2 cpmant deepseek_v3 falcon_h1 gemma3n_text gemma4_text glm4_moe gpt_oss granitemoehybrid hrm_text "
    "inkling2_text jamba kimi_linear lfm2 llama4 longcat_flash mamba2 minimax mpt openai-gpt phi3 qwen3_5 qwen3_next "
    "recurrent_gemma rwkv xlstm zamba2"
).split()
"""One of each kind: windows, biases of position, experts, latent and linear attention, recurrence, shared keys, loops …"""

IMAGES = "llava qwen2_vl qwen3_5 gemma3 idefics3 internvl mllama chameleon paligemma".split()


@pytest.fixture(autouse=True)
def same_release() -> None:
    if transformers.__version__ != TABLE["transformers"]:
        pytest.skip(f"the table is of transformers {TABLE['transformers']}; here is {transformers.__version__}")


def test_every_registered_name_has_its_row() -> None:
    assert list(ROWS) == [(task, name) for task, (names, _) in BUILDERS.items() for name in names]


def test_the_page_and_the_summary_say_what_the_rows_say() -> None:
    assert TABLE["summary"] == summarise(TABLE["rows"])
    assert (DOCS / "architectures.md").read_text() == write_page(TABLE)


@pytest.mark.parametrize("task", BUILDERS)
def test_of_the_decoder_only_models_95_in_100_are_certified_in_jump_and_85_in_cached(task: str) -> None:
    counts = TABLE["summary"][task]
    assert counts["jump"] >= 0.95 * counts["decoder-only and built"]
    assert counts["cached"] >= 0.85 * counts["decoder-only and built"]


def test_the_readme_has_the_counts_of_the_table() -> None:
    words = " ".join((DOCS.parent / "README.md").read_text().split())
    causal, seeing = TABLE["summary"]["causal"], TABLE["summary"]["image-text"]
    assert f"Of the {causal['names']} names that transformers {TABLE['transformers'].rpartition('.')[0]} registers" in words
    assert f"{causal['decoder-only and built']} could be built" in words and f"proved on {causal['jump']} of them" in words
    assert causal["jump"] == causal["cached"], "the sentence says: in both contexts"
    assert f"proved on {seeing['jump']} of the {seeing['decoder-only and built']} image–text models" in words


def test_prompts_with_an_image_are_read_within_the_bound() -> None:
    errors = [row["image_error"] for row in TABLE["rows"] if "image_error" in row]
    assert len(errors) >= 4 and max(errors) <= 1e-5


def test_every_row_that_is_not_certified_says_why() -> None:
    assert all(row["reason"] for row in TABLE["rows"] if not row.get("certified"))


@pytest.mark.filterwarnings("ignore")  # of the library about configurations as odd as these
@pytest.mark.parametrize(("task", "name"), [*(("causal", name) for name in SAMPLE), *(("image-text", name) for name in IMAGES)])
def test_a_row_measured_again_does_not_differ(task: str, name: str) -> None:
    assert compare_rows([ROWS[task, name]], [measure_row(task, name)]) == []
