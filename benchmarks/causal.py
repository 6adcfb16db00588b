"""The causal check on the reference model: does what matters to each lens matter to the model, and in the same way?

`python benchmarks/causal.py` writes docs/causal.json and fills the tables of docs/causal.md. Directions come from one part of
the questions, all that is said of them from the other.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from causal_page import DEPTHS, PAGE, make_tables
from findings import as_dict, draw_samples
from findings_page import fill_tables

import hyperlens as hl
from hyperlens.artefact import to_json
from hyperlens.contrast import estimate_mean
from hyperlens.resampling import split_groups

STATES = (4, 8, 12)
DIRECTIONS, COMPONENTS, RANDOM = 10, 6, 4
Found = dict[str, Any]


def main() -> None:
    """Measure what was asked for, keep the rest, fill the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extracting", type=int, default=1, help="questions per domain and level that directions come from")
    parser.add_argument("--measuring", type=int, default=2, help="other questions per domain and level, for the rest")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="a lens, such as tuned, or draw for the tables alone; other rows stay as they are")
    given = parser.parse_args()
    file = PAGE.with_suffix(".json")
    found = json.loads(file.read_text(encoding="utf-8")) if given.only else {"cells": []}
    if given.only != "draw":
        torch.set_num_threads(1)
        found = measure_all(given, found["cells"], file)
    fill_tables(PAGE, make_tables(found))


def measure_all(given: argparse.Namespace, cells: list[Found], file: Path) -> Found:
    """Each lens at each state where it is not the model itself, written as they come."""
    began, model = time.monotonic(), hl.load_model("reference")
    drawn = draw_samples(given.extracting + given.measuring, given.seed)
    each = given.extracting + given.measuring
    halves = tuple([one for number, one in enumerate(drawn) if (number % each < given.extracting) == first] for first in (1, 0))
    about = {"model": model.fingerprint, "seed": given.seed, "extracting": len(halves[0]), "measuring": len(halves[1])}
    for name, lens in name_lenses(given.only).items():
        cells = [cell for cell in cells if cell["lens"] != name]
        for state in STATES:
            if state < model.layers - lens.focal_depths[0]:
                cells.append({"lens": name, "state": state} | measure_cell(model, lens, state, halves, given.seed))
                print(f"{time.monotonic() - began:6.0f} s  {name}, state {state}", flush=True)
        file.write_text(to_json({"about": about, "cells": cells}, indent=1) + "\n", encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def name_lenses(only: str | None) -> dict[str, hl.Lens]:
    """The lenses by the names that the tables give them."""
    lenses: dict[str, hl.Lens] = {"logit": hl.LogitLens(), "tuned": hl.load_lens("reference")}
    lenses |= {f"HyperLens, m = {depth}": hl.HyperLens((depth,)) for depth in DEPTHS}
    return {name: lens for name, lens in lenses.items() if only in (None, name)}


def measure_cell(model: hl.Model, lens: hl.Lens, state: int, halves: tuple[list[hl.Sample], ...], seed: int) -> Found:
    """One lens at one state: its own directions, principal components and random directions, on the questions held out."""
    ablation = hl.Ablation(state, seed=seed)
    basis = hl.extract_causal_basis(model, lens, halves[0], ablation, DIRECTIONS)
    components = hl.find_components(model, halves[0], ablation, DIRECTIONS)
    spans = {"causal": basis.vectors, "components": components, "random": hl.draw_directions(len(components), DIRECTIONS, seed)}
    counts = {"causal": DIRECTIONS, "components": COMPONENTS, "random": RANDOM}
    every = torch.cat([spans[name][:, :count] for name, count in counts.items()], 1)
    singly = hl.align_responses(model, lens, halves[1], every, ablation)
    parts = dict(zip(counts, split_groups(tuple(counts.values())), strict=True))
    single = {name: pick(singly, part) for name, part in parts.items()}
    resampled = hl.Ablation(state, "resample", seed=seed)
    together = {name: hl.align_responses(model, lens, halves[1], some, resampled, True) for name, some in spans.items()}
    return {
        "translators": basis.lens.get("fingerprint"),
        "extracted": basis.influences.tolist(),
        "rho": as_dict(hl.correlate_influences(single["causal"], seed)),
        "rho_with_controls": as_dict(hl.correlate_influences(singly, seed)),
        "single": {name: describe(one, seed) for name, one in single.items()},
        "together": {name: describe(one, seed) for name, one in together.items()},
    }


def pick(responses: hl.Responses, part: slice) -> hl.Responses:
    """The responses to some of the directions."""
    names = ("lens_influence", "model_influence", "alignment")
    return replace(responses, **{name: getattr(responses, name)[part] for name in names})


def describe(responses: hl.Responses, seed: int) -> Found:
    """Influences by direction, their means over directions with intervals over questions, and the alignment."""
    sides = {"lens": responses.lens_influence, "model": responses.model_influence}
    return {
        "alignment": as_dict(hl.average_alignment(responses, seed)),
        "alignments": np.nanmean(responses.alignment, 1).tolist(),
        **{name: as_dict(estimate_mean(values.mean(0), seed)) for name, values in sides.items()},
        **{f"{name}_influences": values.mean(1).tolist() for name, values in sides.items()},
    }


if __name__ == "__main__":
    main()
