"""The certificate of every family of the tests and of the shared models, printed as JSON; exit 1 where one is not exact."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from families import FAMILIES, build_family

from hyperlens.certificate import Certificate
from hyperlens.models import check_model

ROOT = Path(__file__).resolve().parent.parent
BOUND = 1e-5
SHARED = ("stories260K", "bitllama_3M")


def main() -> None:
    """Print a row for each model; exit 1 where a row is outside the bound."""
    rows = [*family_rows(), *shared_rows()]
    broken = [row["model"] for row in rows if not is_exact(row)]
    print(json.dumps({"bound": BOUND, "broken": broken, "models": rows}, indent=2))
    sys.exit(bool(broken))


def is_exact(row: dict[str, Any]) -> bool:
    """Whether a model is certified within the bound; one that is not there breaks nothing."""
    return "skipped" in row or (row["certified"] and row["max_error"] <= BOUND)


def family_rows() -> Iterator[dict[str, Any]]:
    """A small random model of each family, in float32."""
    for name in FAMILIES:
        yield describe(name, check_model(build_family(name)))


def shared_rows() -> Iterator[dict[str, Any]]:
    """The trained models of HYPERLENS_SHARED, or of `../shared` beside the project, in float32."""
    folder = Path(os.environ.get("HYPERLENS_SHARED", ROOT.parent / "shared")) / "models"
    for name in SHARED:
        if (folder / name).is_dir():
            yield describe(name, check_model(folder / name, dtype="float32"))
        else:
            yield {"model": name, "skipped": f"{folder / name} is not there; set HYPERLENS_SHARED to the shared material"}


def describe(name: str, certificate: Certificate) -> dict[str, Any]:
    """What was proved, the error of each context apart."""
    return {
        "model": name,
        "architecture": certificate.architecture,
        "certified": certificate.certified,
        "way": certificate.way,
        "contexts": certificate.contexts,
        "max_error": certificate.max_error,
        "errors": {context: context_error(certificate, context) for context in certificate.contexts},
        "tokens": certificate.tokens,
        "reason": certificate.reason,
    }


def context_error(certificate: Certificate, context: str) -> float:
    """The largest error of the checks in one context."""
    return max(error for name, error in certificate.errors.items() if name.startswith(context))


if __name__ == "__main__":
    main()
