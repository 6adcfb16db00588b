"""The tables of docs/causal.md, made of the numbers that causal.py has measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from findings_page import bracket, tabulate

PAGE = Path(__file__).resolve().parent.parent / "docs" / "causal.md"
DEPTHS = (1, 2, 4, 8)
Found = dict[str, Any]


def make_tables(found: Found) -> dict[str, str]:
    """Markdown tables by name."""
    order = ["logit", "tuned", *(f"HyperLens, m = {depth}" for depth in DEPTHS)]
    cells = sorted(found["cells"], key=lambda cell: (cell["state"], order.index(cell["lens"])))
    return {
        "influence": tabulate(
            ["state", "lens", "first direction: lens", "model", "model, ten together", "ten components", "ten random"],
            [
                [
                    *(cell[name] for name in ("state", "lens")),
                    *(cell["single"]["causal"][f"{side}_influences"][0] for side in ("lens", "model")),
                    *(spell(cell["together"][name]["model"]) for name in ("causal", "components", "random")),
                ]
                for cell in cells
            ],
        ),
        "correlation": tabulate(
            ["state", "lens", "rho over its ten directions", "rho with six components and four random"],
            [[cell["state"], cell["lens"], spell(cell["rho"]), spell(cell["rho_with_controls"])] for cell in cells],
        ),
        "alignment": tabulate(
            ["state", "lens", "its directions", "components", "random", "its ten together", "ten components", "ten random"],
            [
                [
                    *(cell[name] for name in ("state", "lens")),
                    *(spell(cell["single"][name]["alignment"]) for name in ("causal", "components", "random")),
                    *(spell(cell["together"][name]["alignment"]) for name in ("causal", "components", "random")),
                ]
                for cell in cells
            ],
        ),
    }


def spell(row: Found) -> str:
    """An estimate and its interval."""
    return bracket(*(row[name] for name in ("value", "low", "high")))
