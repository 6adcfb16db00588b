"""What detectors of odd trajectories find of the reference model: a contradiction, its harmless twin, novelty, difficulty.

    .venv/bin/python benchmarks/anomalies.py [--limit 30] [--seed 1] [--only draw]

Fits on half of the matched questions of each domain and scores, beside the other half, questions with a wrong claim and with a
right one (the same questions), in the other wording and with other operands; and levels 4 and 5 beside 1 to 3. Writes
docs/anomalies.json and puts the tables between their marks in docs/anomalies.md; `--only draw` does the latter alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

from findings_page import DOCS, fill_tables

from hyperlens.anomalies import DETECTORS, Features, compare_with_normal, gather_features, halve_features
from hyperlens.artefact import to_json

SCORED = ("contradicted", "confirmed", "wide", "reworded")
DEPTHS = (0, 2, 4)
SCORES = (*DETECTORS, "mahalanobis", "confidence", "length")
VIEWS: dict[str, tuple[str, tuple[int, ...] | None]] = {
    "m = 0": ("probability", (0,)),
    "m = 2": ("probability", (2,)),
    "m = 4": ("probability", (4,)),
    "m = 0, 2 and 4": ("probability", DEPTHS),
    "m = 0, ln p": ("log_probability", (0,)),
}
"""What detectors see: a reading at some focal depths. The tuned lens, at the depth it was trained for, comes on top."""
TUNED = "tuned lens"
SHOWN = "m = 0, 2 and 4"


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=30, help="questions per level")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=["draw"])
    given = parser.parse_args()
    file = DOCS / "anomalies.json"
    if given.only is None:
        file.write_text(to_json(measure_all(given.limit, given.seed), indent=1) + "\n", encoding="utf-8")
    fill_tables(DOCS / "anomalies.md", make_tables(json.loads(file.read_text(encoding="utf-8"))))


def measure_all(limit: int, seed: int) -> dict[str, Any]:
    """All domains, with what was measured and how long it took."""
    import hyperlens as hl
    from hyperlens.tasks import GRADED

    began, model, tuned = time.monotonic(), hl.load_model("reference"), hl.load_lens("reference")
    domains = {}
    for name, task in GRADED.items():
        domains[name] = measure_domain(model, tuned, task, limit, seed)
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    about = {"model": model.fingerprint, "lens": tuned.fingerprint, "limit": limit, "seed": seed}
    return {"about": {**about, "seconds": round(time.monotonic() - began)}, "domains": domains}


def measure_domain(model: Any, tuned: Any, task: Any, limit: int, seed: int) -> dict[str, Any]:
    """Accuracy and confidence of each group, and how well each score tells it from normal questions, by view.

    The scored questions are of another seed than the normal ones, those with a right and with a wrong claim of the same.
    """
    import hyperlens as hl

    drawn = {"normal": task.samples(limit, seed), **{name: task.samples(limit, seed + 1, name) for name in SCORED}}
    seen: dict[str, dict[str, Features]] = {name: {} for name in (*VIEWS, TUNED)}
    about: dict[str, Any] = {}
    for group, samples in drawn.items():
        trajectory = hl.trace(model, samples, hl.HyperLens(DEPTHS), reference="output", readings=("log_probability",))
        for name, (reading, depths) in VIEWS.items():
            seen[name][group] = gather_features(trajectory, [reading], depths)
        seen[TUNED][group] = gather_features(hl.trace(model, samples, tuned, reference="output"))
        rows = seen["m = 0"][group].samples
        right = trajectory.samples["correct"].astype(float)
        means = {name: float(rows[name].mean()) for name in ("confidence", "tokens")}
        about[group] = {"n": len(samples), "accuracy": float(right.mean()), **means}
    return {"groups": about, "views": {name: compare_view(features, seed) for name, features in seen.items()}}


def compare_view(features: dict[str, Features], seed: int) -> dict[str, Any]:
    """AUROC of each score: groups against held-out normal questions, wrong claims against right ones, hard against easy.

    Wrong claims stand against right ones twice: scored beside normal questions, and with right claims being what is normal;
    there the wrong ones are those of the questions that are held out.
    """
    scored = {name: features[name] for name in SCORED}
    wrong, right = (set(features[name].samples["id"]) for name in SCORED[:2])
    labels = {name: True for name in wrong} | {name: False for name in right}
    found = compare_with_normal(features["normal"], scored, DETECTORS, seed, labels)
    held_out = halve_features(features["confirmed"], seed)[1].samples["id"]
    twins = features["contradicted"].samples["id"].str.replace("contradicted", "confirmed").isin(held_out.to_list())
    wrong_ones = {"wrong": features["contradicted"].pick(twins.to_numpy())}
    familiar = compare_with_normal(features["confirmed"], wrong_ones, DETECTORS, seed)
    levels = features["normal"].samples["level"].to_numpy()
    easy, hard = features["normal"].pick(levels <= 3), features["normal"].pick(levels > 3)
    difficulty = compare_with_normal(easy, {"hard": hard}, DETECTORS, seed)
    return {
        **{group["group"]: group["auroc"] for group in found["groups"]},
        "wrong or right": found["labels"]["auroc"],
        "wrong, claims being normal": familiar["groups"][0]["auroc"],
        "levels 4 and 5": difficulty["groups"][0]["auroc"],
    }


def make_tables(found: dict[str, Any]) -> dict[str, str]:
    """The tables of the page, in Markdown."""
    domains = found["domains"]
    groups = [
        [domain, name, f"{one['n']}", f"{one['accuracy']:.2f}", f"{one['confidence']:.2f}", f"{one['tokens']:.0f}"]
        for domain, part in domains.items()
        for name, one in part["groups"].items()
    ]

    def compare(name: str) -> list[list[str]]:
        return [[domain, *_put_scores(part["views"][SHOWN][name])] for domain, part in domains.items()]

    def by_view(*names: str) -> list[list[str]]:
        return [
            [domain, view, *(_put(one[name][method]) for name in names for method in DETECTORS)]
            for domain, part in domains.items()
            for view, one in part["views"].items()
        ]

    scores = ["domain", "isolation forest", "local outlier factor", "mahalanobis", "confidence alone", "length alone"]
    both = ["forest", "LOF"]
    return {
        "groups": _draw(["domain", "questions", "n", "accuracy", "confidence", "tokens"], groups),
        **{name: _draw(scores, compare(name)) for name in (*SCORED, "wrong or right", "levels 4 and 5")},
        "familiar": _draw(scores, compare("wrong, claims being normal")),
        "views": _draw(
            ["domain", "view", *(f"{what}, {one}" for what in ("wrong or right", "wide", "levels 4 and 5") for one in both)],
            by_view("wrong or right", "wide", "levels 4 and 5"),
        ),
    }


def _put_scores(auroc: dict[str, Any]) -> list[str]:
    return [_put(auroc[name]) for name in SCORES]


def _put(interval: dict[str, float]) -> str:
    return f"{interval['value']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


def _draw(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
