"""What detectors of odd trajectories find of the reference model: a contradiction, its harmless twin, novelty, difficulty.

    .venv/bin/python benchmarks/anomalies.py [--limit 30] [--seed 1] [--only claims | draw]

Fits on half of the matched questions of each domain and scores, beside the other half, questions with a wrong claim and with a
right one (the same questions), in the other wording and with other operands; and levels 4 and 5 beside 1 to 3. Writes
docs/anomalies.json and puts the tables between their marks in docs/anomalies.md; `--only claims` measures nothing but whether
wrong claims are followed, `--only draw` nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from typing import Any

from findings_page import DOCS, fill_tables, tabulate, value

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
ANSWERS = ("led", "again", "right", "other")
"""What a model may answer to a wrong claim: see `measure_claims`."""


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=30, help="questions per level")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=["claims", "draw"])
    given = parser.parse_args()
    file = DOCS / "anomalies.json"
    if given.only != "draw":
        found = json.loads(file.read_text(encoding="utf-8")) if given.only else measure_all(given.limit, given.seed)
        found["claims"] = measure_claims(given.limit, given.seed)
        file.write_text(to_json(found, indent=1) + "\n", encoding="utf-8")
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


def measure_claims(limit: int, seed: int) -> list[dict[str, Any]]:
    """What the model answers to wrong claims about facts, as shares of the questions of each level.

    `led` is what the claimed person leads to by the relations that follow the claim, `again` what they lead to by the relation
    before it and those that follow. Relations are permutations that leave nobody in place, so that two of these and the right
    answer are the same only where the claimed person is the one that the question starts with; that counts as right.
    """
    import hyperlens as hl
    from hyperlens.tasks import GRADED

    wrong, right = (GRADED["knowledge"].samples(limit, seed + 1, name) for name in SCORED[:2])
    read = hl.trace(hl.load_model("reference"), wrong, hl.LogitLens(), reference="output").data["output_text"].values
    counts: dict[int, Counter[str]] = {}
    for question, twin, answer in zip(wrong, right, read, strict=True):
        led, again = follow_claim(question.prompt, twin.prompt)
        kinds = {led: "led", again: "again", question.target.strip(): "right"}
        counts.setdefault(question.level or 0, Counter())[kinds.get(str(answer).strip(), "other")] += 1
    return [
        {"level": level, "n": sum(one.values()), **{kind: one[kind] / sum(one.values()) for kind in ANSWERS}}
        for level, one in counts.items()
    ]


def follow_claim(question: str, twin: str) -> tuple[str, str]:
    """Whom the person claimed in a question leads to, without and with the relation before the claim; `twin` claims rightly."""
    from hyperlens.tasks.graded.knowledge import FACTS

    words, others = (text.replace("'s ", " ").split() for text in (question, twin))
    (place,) = (place for place, pair in enumerate(zip(words, others, strict=True)) if pair[0] != pair[1])
    after = words[place + 1 : -1]

    def lead(person: str, relations: list[str]) -> str:
        for relation in relations:
            person = FACTS[relation][person]
        return person

    return lead(words[place], after), lead(words[place], [words[place - 1], *after])


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
        [domain, name, one["n"], one["accuracy"], one["confidence"], f"{one['tokens']:.0f}"]
        for domain, part in domains.items()
        for name, one in part["groups"].items()
    ]
    claims = [[row["level"], row["n"], *(float(row[kind]) for kind in ANSWERS)] for row in found["claims"]]
    told = ["what the claimed person leads to", "the same by the relation before it too", "the right answer", "another"]
    return {
        "groups": tabulate(["domain", "questions", "n", "accuracy", "confidence", "tokens"], groups),
        "claims": tabulate(["level", "n", *told], claims),
        **{name: compare_domains(domains, name) for name in (*SCORED, "wrong or right", "levels 4 and 5")},
        "familiar": compare_domains(domains, "wrong, claims being normal"),
        "views": compare_views(domains, ["wrong or right", "wide", "levels 4 and 5"]),
    }


def compare_domains(domains: dict[str, Any], name: str) -> str:
    """How well each score tells one group apart, by domain."""
    head = ["domain", "isolation forest", "local outlier factor", "mahalanobis", "confidence alone", "length alone"]
    parts = {domain: part["views"][SHOWN][name] for domain, part in domains.items()}
    return tabulate(head, [[domain, *(value(auroc[score]) for score in SCORES)] for domain, auroc in parts.items()])


def compare_views(domains: dict[str, Any], names: list[str]) -> str:
    """How well both detectors tell some groups apart, by what they see."""
    rows = [
        [domain, view, *(value(one[name][method]) for name in names for method in DETECTORS)]
        for domain, part in domains.items()
        for view, one in part["views"].items()
    ]
    return tabulate(["domain", "view", *(f"{name}, {one}" for name in names for one in ("forest", "LOF"))], rows)


if __name__ == "__main__":
    main()
