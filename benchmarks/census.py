"""Every architecture of transformers: the certificate of a small random model of each, as docs/architectures.{json,md}.

`census.py` measures all names and writes both pages. `census.py --only llama,gpt2` prints rows. `census.py --against FILE`
measures with whatever release of transformers this Python has and prints how its rows differ from FILE's; exit 1 where they do.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import torch
import transformers
from families import ALL_FAMILIES, IMAGE_FAMILIES, IMAGE_PROMPTS, build_family, build_image_family, image_inputs
from rich.progress import track

from hyperlens.certificate import Certificate
from hyperlens.errors import HyperLensError
from hyperlens.lenses import HyperLens
from hyperlens.models import check_model, load_model
from hyperlens.models.quiet import quiet
from hyperlens.tracing import trace

DOCS = Path(__file__).resolve().parent.parent / "docs"
ENCODER = ("as in an encoder", "encoder-decoder")
NEEDS_MORE = "does not run on a plain text"
BUILDERS = {"causal": (ALL_FAMILIES, build_family), "image-text": (IMAGE_FAMILIES, build_image_family)}


def main() -> None:
    """Measure, and write, print or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="names, separated by commas, to measure and print")
    parser.add_argument("--against", type=Path, help="a table to compare with")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else None
    rows = measure_all(chosen, options.workers)
    if options.against:
        differences = list(compare_rows(json.loads(options.against.read_text())["rows"], rows, chosen))
        print(*differences or ["no row differs"], sep="\n")
        sys.exit(bool(differences))
    if chosen:
        print(json.dumps(rows, indent=1))
        return
    table = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
    table |= {"summary": summarise(rows), "rows": rows}
    (DOCS / "architectures.json").write_text(json.dumps(table, indent=1) + "\n")
    (DOCS / "architectures.md").write_text(write_page(table))
    print(json.dumps(table["summary"], indent=1))


def measure_all(chosen: list[str] | None, workers: int) -> list[dict[str, Any]]:
    """The rows of all names, or of the chosen ones, in the order of the registries."""
    work = [(task, name) for task, (names, _) in BUILDERS.items() for name in names if chosen is None or name in chosen]
    with ProcessPoolExecutor(workers, initializer=_settle) as pool:
        return list(track(pool.map(measure_row, *zip(*work, strict=True)), "certifying", len(work), transient=True))


def _settle() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()


def measure_row(task: str, name: str) -> dict[str, Any]:
    """What was proved of one name: in float32, in bfloat16, and with an image in the prompt where there is one."""
    row: dict[str, Any] = {"name": name, "task": task, "outcome": "not built"}
    try:
        with quiet():
            model = BUILDERS[task][1](name)
    except Exception as error:  # whatever the library raises on a class that cannot be built
        return row | {"reason": _first_line(error)}
    row |= {"attention": model.config._attn_implementation} | describe(model)
    if not row["certified"]:
        return row | {"outcome": "refused"}
    row["outcome"] = "certified"
    half = describe(BUILDERS[task][1](name, dtype=torch.bfloat16))
    row["bfloat16"] = {field: half[field] for field in ("certified", "contexts", "max_error", "reason")}
    if task == "image-text" and name in IMAGE_PROMPTS:
        row["image_error"] = measure_image(model, name)
    return row


def describe(model: Any) -> dict[str, Any]:
    """The fields of a certificate; a model that has no splice is refused with the reason."""
    try:
        with quiet():
            found: Certificate = check_model(model)
    except HyperLensError as error:
        found = Certificate(type(model).__name__, 0, False, None, (), None, str(error))
    return found.describe() | {"max_error": None if found.max_error is None else float(f"{found.max_error:.1e}")}


def measure_image(model: Any, name: str) -> float:
    """The largest error of a trace, in both contexts, of a prompt with an image, against the model's own output."""
    loaded, depths = load_model(model), (0, 1, 2)
    found = [trace(loaded, image_inputs(name), HyperLens(depths, context)) for context in ("jump", "cached")]
    with torch.no_grad():
        own = model(**image_inputs(name)).logits[0, -1].float().softmax(-1)
    read = [abs(float(one.data["output_probability"][0]) - float(own.max())) for one in found]
    errors = [float(one.manifest["largest_error_in_run"]) for one in found]
    return float(f"{max(*errors, *read):.1e}")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def is_decoder(row: dict[str, Any]) -> bool:
    """Whether a row is of a decoder-only model that was built and takes a text: all that do not show themselves otherwise."""
    return row["outcome"] != "not built" and not any(word in (row["reason"] or "") for word in (*ENCODER, NEEDS_MORE))


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts for each task: outcomes, and shares of the decoder-only models that were built."""
    summary = {}
    for task in BUILDERS:
        mine = [row for row in rows if row["task"] == task]
        decoders = [row for row in mine if is_decoder(row)]
        certified = [row for row in decoders if row["certified"]]
        summary[task] = {
            "names": len(mine),
            **Counter(row["outcome"] for row in mine),
            "decoder-only and built": len(decoders),
            "jump": len(certified),
            "cached": sum("cached" in row["contexts"] for row in certified),
            "cached_forms": dict(Counter(row["cached_form"] for row in certified if row["cached_form"])),
            "bfloat16": sum(row["bfloat16"]["certified"] for row in certified),
            "largest_error": max(row["max_error"] for row in certified),
        }
    return summary


def compare_rows(before: list[dict[str, Any]], after: list[dict[str, Any]], chosen: list[str] | None = None) -> list[str]:
    """How rows differ, in words, but for the size of errors."""
    old = {(row["task"], row["name"]): row for row in before if chosen is None or row["name"] in chosen}
    new = {(row["task"], row["name"]): row for row in after}
    found = []
    for key in dict.fromkeys([*old, *new]):
        if key not in new or key not in old:
            found.append(f"{' '.join(key)}: {'is new' if key in new else 'is gone'}")
            continue
        one, other = _comparable(old[key]), _comparable(new[key])
        changed = [field for field in one.keys() | other.keys() if one.get(field) != other.get(field)]
        found += [f"{' '.join(key)}: {field} {one.get(field)} -> {other.get(field)}" for field in sorted(changed)]
    return found


def _comparable(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its numbers, which depend on the machine: errors as whether they are there, reasons by their words."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {field: plain(each) for field, each in value.items()}
        return (
            "a number" if isinstance(value, float) else re.sub(r"\d[\d.e+-]*", "#", value) if isinstance(value, str) else value
        )

    return {field: value if field in ("name", "task", "architecture") else plain(value) for field, value in row.items()}


def write_page(table: dict[str, Any]) -> str:
    """The table as a page."""
    lines = [
        "# Architectures",
        "",
        "Written by `benchmarks/census.py`; do not edit. Each name that transformers "
        f"{table['transformers']} registers, as a small random model (6 layers, windows shorter than the texts, vectors "
        "randomised, soft-caps, experts and special layers switched on), proved as `hyperlens check` proves a model: see "
        "[the method](method.md). *Form* is how the context `cached` runs: query rows, steps of generation, or replay of the "
        "text. *Padding* names the sides on which texts of different length may be batched. *bf16* has the contexts that hold "
        "in bfloat16. The error is the largest of all checks in float32, relative to the largest value; it must be below 1e-5.",
        "",
    ]
    for task, title in {
        "causal": "Causal language models",
        "image-text": "Image–text models, text alone in the prompt",
    }.items():
        lines += _write_section(title, table["summary"][task], [row for row in table["rows"] if row["task"] == task])
    return "\n".join(lines) + "\n"


def _write_section(title: str, counts: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    decoders = counts["decoder-only and built"]
    lines = [
        f"## {title}",
        "",
        f"{counts['names']} names; {decoders} are decoder-only, take a text alone and could be built. Of these "
        f"{counts['jump']} are certified in `jump` ({counts['jump'] / decoders:.1%}), "
        f"{counts['cached']} in `cached` ({counts['cached'] / decoders:.1%}; "
        + ", ".join(f"{number} by {form}" for form, number in counts["cached_forms"].items())
        + f"), {counts['bfloat16']} in bfloat16. Largest error {counts['largest_error']:.1e}.",
        "",
        "| name | architecture | way | cached form | padding | bf16 | largest error |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["outcome"] == "certified":
            half = ", ".join(row["bfloat16"]["contexts"]) or "refused"
            image = f"; with an image {row['image_error']:.1e}" if "image_error" in row else ""
            cells = [row["name"], row["architecture"], row["way"], row["cached_form"] or "–", ", ".join(row["paddings"]) or "–"]
            lines.append(f"| {' | '.join(cells)} | {half} | {row['max_error']:.1e}{image} |")
    lines += ["", "| not certified | what | why |", "|---|---|---|"]
    for row in rows:
        if row["outcome"] != "certified":
            lines.append(f"| {row['name']} | {row['outcome']} | {_escape(row['reason'])} |")
    notes = [row for row in rows if row["outcome"] == "certified" and (row["reason"] or not row["bfloat16"]["certified"])]
    lines += ["", "Where something less than everything holds:", ""]
    for row in notes:
        half = row["bfloat16"]["reason"]
        words = [row["reason"] or "", "" if row["bfloat16"]["certified"] else f"in bfloat16: {half}"]
        lines.append(f"- {row['name']}: {_escape('; '.join(filter(None, words)))}")
    return [*lines, ""]


def _escape(words: str) -> str:
    return words.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


if __name__ == "__main__":
    main()
