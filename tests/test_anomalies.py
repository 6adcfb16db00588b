"""Odd trajectories: laws of detectors on made-up features, and the command on small runs."""

from __future__ import annotations

import builtins
import importlib.util
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import make_call
from sentences import is_one_sentence

import hyperlens as hl
from hyperlens.anomalies import (
    METHODS,
    Features,
    compare_with_normal,
    fit_detector,
    gather_features,
    halve_features,
    join_features,
)
from hyperlens.errors import InputError
from hyperlens.tasks import GRADED, VARIANTS, Sample, Variant

ALL_METHODS = pytest.mark.parametrize("method", METHODS)
ALL_TASKS = pytest.mark.parametrize("name", GRADED)


def make_features(count, seed, shift=0.0, source=None):
    """Made-up features: eight, normal and independent, each shifted by so many standard deviations; of made-up texts."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(count, 8)) * np.arange(1, 9) + 5
    values += shift * np.arange(1, 9)
    rows = {
        "id": [f"{seed}/{n}" for n in range(count)],
        "task": "made",
        "level": 1,
        "text": [f"{seed} {n}" for n in range(count)],
    }
    frame = pd.DataFrame({**rows, "tokens": rng.integers(5, 15, count), "confidence": rng.uniform(size=count)})
    names = tuple(("probability", 0, state) for state in range(8))
    frame["level"] = pd.array([1, None] * (count // 2) + [1] * (count % 2), dtype="Int64")
    about = {"model": "one", "readings": ["probability"], "focal depths": [0]}
    return Features(values, names, frame, about | (source or {}))


@ALL_METHODS
def test_the_same_normal_samples_in_any_order_and_seed_give_the_same_scores(method):
    normal, others = make_features(80, 0), make_features(30, 1)
    scores = fit_detector(normal, method, 3).score(others)
    mixed = np.random.default_rng(0).permutation(80)
    np.testing.assert_array_equal(scores, fit_detector(normal.pick(mixed), method, 3).score(others))
    turned = np.random.default_rng(1).permutation(30)
    detector = fit_detector(normal, method, 3)
    np.testing.assert_allclose(detector.score(others.pick(turned)), scores[turned], rtol=1e-9)
    np.testing.assert_allclose(detector.score(others.pick(np.arange(1))), scores[:1], rtol=1e-9)


def test_another_seed_grows_another_forest():
    normal, others = make_features(80, 0), make_features(30, 1)
    assert (
        fit_detector(normal, "isolation-forest", 0).score(others) != fit_detector(normal, "isolation-forest", 1).score(others)
    ).any()


@ALL_METHODS
def test_scores_do_not_depend_on_the_units_of_a_feature(method):
    normal, others = make_features(80, 0), make_features(30, 1)
    units = np.array([1e-6, 1e4, 1, 1, 1, 1, 1, 1])

    def rescale(features):
        return Features(features.values * units + units, features.names, features.samples, features.source)

    expected = fit_detector(normal, method).score(others)
    np.testing.assert_allclose(fit_detector(rescale(normal), method).score(rescale(others)), expected, rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_more_of_the_normal_samples_are_told_from_them_by_chance_alone(seed):
    found = compare_with_normal(make_features(200, seed), {"more": make_features(100, seed + 10)}, METHODS, seed)
    for score, auroc in found["groups"][0]["auroc"].items():
        assert auroc["low"] - 0.03 < 0.5 < auroc["high"] + 0.03, (score, auroc)


def test_a_planted_shift_is_found_and_the_more_so_the_larger_it_is():
    normal = make_features(200, 0)
    groups = {str(shift): make_features(100, 1, shift) for shift in (0.0, 2.0, 8.0)}
    found = compare_with_normal(normal, groups, METHODS)
    for method in METHODS:
        chance, some, all_of_it = (group["auroc"][method]["value"] for group in found["groups"])
        assert chance < some < all_of_it and all_of_it > 0.98
    for score in ("confidence", "length"):
        assert {group["auroc"][score]["value"] for group in found["groups"]} == {found["groups"][0]["auroc"][score]["value"]}


def test_the_oddest_sample_scores_highest_by_every_method():
    others = make_features(40, 1)
    others.values[17] += 100.0
    for method in METHODS:
        assert fit_detector(make_features(80, 0), method).score(others).argmax() == 17


def test_a_sample_that_was_fitted_on_is_never_scored_so_that_normal_samples_are_not_odd():
    normal = make_features(120, 0)
    found = compare_with_normal(normal, {"itself": normal})
    (group,) = found["groups"]
    assert (group["n"], group["seen"], found["normal"]) == (60, 60, {"fitted": 60, "held_out": 60})
    assert {auroc["value"] for auroc in group["auroc"].values()} == {0.5}


def test_halves_depend_on_the_texts_alone_and_keep_equal_ones_together():
    normal = make_features(201, 0)
    normal.samples.loc[100:, "text"] = normal.samples.loc[:100, "text"].to_numpy()
    first, second = halve_features(normal, 5)
    assert len(first.values) + len(second.values) == 201
    assert not set(first.samples["text"]) & set(second.samples["text"])
    turned, _ = halve_features(normal.pick(np.arange(201)[::-1]), 5)
    assert set(turned.samples["text"]) == set(first.samples["text"])


def test_a_sample_with_a_reading_that_is_not_finite_is_left_out_and_counted():
    normal, others = make_features(120, 0), make_features(30, 1)
    normal.values[:5, 3], others.values[7, 0], others.values[8, 1] = np.nan, np.nan, -np.inf
    detector = fit_detector(normal)
    assert detector.normal == 115
    assert np.flatnonzero(np.isnan(detector.score(others))).tolist() == [7, 8]
    (group,) = compare_with_normal(normal, {"others": others})["groups"]
    assert (group["n"], group["left_out"]) == (28, 2)


def test_a_feature_that_no_normal_sample_has_is_not_used():
    normal, others = make_features(80, 0), make_features(30, 1)
    normal.values[:, 2] = others.values[:20, 2] = np.nan
    scores = fit_detector(normal, "mahalanobis").score(others)
    assert np.isfinite(scores).all()


def test_a_feature_that_never_varies_among_normal_samples_tells_once_it_does():
    normal, others = make_features(80, 0), make_features(5, 1)
    normal.values[:, 4], others.values[:, 4] = 0.5, [0.5, 0.5, 0.5, 0.5, 0.6]
    for method in ("local-outlier-factor", "mahalanobis"):
        scores = fit_detector(normal, method).score(others)
        assert np.isfinite(scores).all() and scores.argmax() == 4


def test_labels_compare_the_scored_samples_with_each_other():
    groups = {"usual": make_features(50, 1), "odd": make_features(50, 2, shift=8.0)}
    labels = {name: name.startswith("2") for features in groups.values() for name in features.samples["id"]}
    found = compare_with_normal(make_features(100, 0), groups, labels=labels)
    assert (found["labels"]["odd"], found["labels"]["others"]) == (50, 50)
    assert found["labels"]["auroc"]["local-outlier-factor"]["value"] > 0.98
    with pytest.raises(InputError, match="0 are labelled odd and 50 are labelled otherwise; at least 2"):
        compare_with_normal(make_features(100, 0), groups, labels={name: False for name in groups["usual"].samples["id"]})


def test_labels_of_no_sample_are_counted_and_those_without_a_score_are_not():
    groups = {"usual": make_features(50, 1), "odd": make_features(50, 2, shift=8.0)}
    groups["odd"].values[:7, 0] = np.nan
    labels = {name: name.startswith("2") for features in groups.values() for name in features.samples["id"]}
    found = compare_with_normal(make_features(100, 0), groups, labels=labels | {"nobody": True, "none": False})["labels"]
    assert (found["odd"], found["others"], found["unmatched"]) == (43, 50, 2)
    assert all(auroc["n"] == 93 for name, auroc in found["auroc"].items() if name in METHODS)


def test_a_label_of_several_samples_is_refused_and_says_where_they_are():
    groups = {"one": make_features(50, 1), "two": make_features(50, 2)}
    groups["two"].samples["id"] = groups["one"].samples["id"]
    assert len(compare_with_normal(make_features(100, 0), groups)["samples"]) == 100
    with pytest.raises(InputError, match=r'have the labelled id "1/3" \(in one and two\)') as error:
        compare_with_normal(make_features(100, 0), groups, labels={"1/3": True})
    assert is_one_sentence(str(error.value))


def test_what_cannot_be_fitted_is_refused_in_one_sentence(monkeypatch):
    lost = make_features(60, 0)
    lost.values[:] = np.nan
    cases = [
        (lambda: fit_detector(make_features(39, 0)), "there are 39 normal samples to fit on; at least 40 are needed"),
        (lambda: fit_detector(lost), r"0 normal samples to fit on \(60 more have a reading that is not finite\)"),
        (lambda: fit_detector(lost, "forest"), '"forest" is no method; choose from isolation-forest, local-outlier-factor'),
    ]
    for name, other in (("model", "two"), ("focal depths", [0, 2]), ("readings", ["entropy"])):
        theirs = make_features(60, 1, source={name: other})
        cases.append((lambda theirs=theirs: fit_detector(make_features(60, 0)).score(theirs), f"the {name} of the normal"))
        cases.append((lambda theirs=theirs: join_features([make_features(60, 0), theirs]), f"the {name} of the normal"))
    for refused, words in cases:
        with pytest.raises(InputError, match=words) as error:
            refused()
        assert is_one_sentence(str(error.value)), error.value
    load = builtins.__import__
    monkeypatch.setattr(
        builtins, "__import__", lambda name, *rest: load("nothing" if name.startswith("sklearn") else name, *rest)
    )
    with pytest.raises(InputError, match=r"need scikit-learn; install it with: pip install 'hyperlens\[anomalies\]'"):
        fit_detector(make_features(60, 0))


def test_features_are_means_over_tokens_of_what_the_lens_can_change_and_the_final_reading_once(plain):
    samples = [Sample("w1 w2 w3", " w4 w5"), Sample("w6 w7", " w8"), Sample("w9 w10 w11 w12", " w13 w14")]
    read = ("probability", "entropy")
    trajectory = hl.trace(plain, samples, hl.HyperLens((0, 1)), readings=read)
    features, layers = gather_features(trajectory, read), trajectory.layers
    assert features.names[0] == ("probability", 0, 0) and len(set(features.names)) == len(features.names) == 2 * 2 * layers
    for place, (reading, depth, state) in enumerate(features.names):
        tokens = trajectory.to_numpy(reading)[:, trajectory.focal_depths.index(depth), state]
        for number in range(3):
            mine = tokens[trajectory.data["sample"].values == number]
            assert features.values[number, place] == pytest.approx(mine.mean(dtype=float))
    alone = gather_features(hl.trace(plain, samples[::-1], hl.HyperLens((0, 1)), readings=read), read)
    np.testing.assert_allclose(alone.values[::-1], features.values, rtol=1e-4, atol=1e-7)
    with pytest.raises(InputError, match="focal depth 2 was not read"):
        gather_features(trajectory, focal_depths=[2])
    with pytest.raises(InputError, match='"gap" was not read'):
        gather_features(trajectory, ["gap"])


def test_a_detector_reads_a_trajectory_as_its_normal_samples_were_read_and_refuses_another_lens(plain):
    def trace(seed, *depths, context="jump"):
        rng = random.Random(seed)
        texts = [" ".join(f"w{rng.randrange(60)}" for _ in range(5)) for _ in range(44)]
        return hl.trace(plain, texts, hl.HyperLens(depths, context))

    detector = fit_detector(trace(0, 0, 1), "local-outlier-factor")
    scored = trace(1, 0, 1)
    np.testing.assert_array_equal(detector.score(scored), detector.score(gather_features(scored)))
    with pytest.raises(InputError, match='the lens context of the normal ones is "jump", of the others "cached"') as error:
        detector.score(trace(1, 0, 1, context="cached"))
    assert is_one_sentence(str(error.value))
    with pytest.raises(InputError, match="focal depth 1 was not read"):
        detector.score(trace(1, 0))


@ALL_TASKS
def test_a_claim_changes_one_value_in_a_question_and_not_its_answer(name):
    task = GRADED[name]
    plain, wrong, right = (task.samples(30, 5, variant) for variant in ("matched", "contradicted", "confirmed"))
    assert [one.target for one in plain] == [one.target for one in wrong] == [one.target for one in right]
    told = []
    for question, contradicted, confirmed in zip(plain, wrong, right, strict=True):
        words, theirs, ours = (one.prompt.replace("'s", " 's").split() for one in (question, contradicted, confirmed))
        (place,) = (place for place, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
        told.append((theirs[place], ours[place]))
        assert {theirs[place], ours[place]} <= set(task.answers)
        before = next(number for number in range(len(words)) if words[number:] == ours[len(ours) - len(words) + number :])
        assert words[:before] + words[before:] == words and ours[:before] == words[:before]
        if question.level == 1:
            assert ours[place] == question.target.strip() != theirs[place]
    assert all(pair[0] != pair[1] for pair in told)


def test_the_claims_leave_the_other_questions_and_their_training_as_they_were():
    assert repr(Variant()) == "Variant(matched=True, stepwise=False, reworded=False, wide=False)"
    drawn = {name: GRADED[name].samples(1, 3, levels=[1])[0].prompt for name in GRADED}
    assert drawn["mathematics"] == "not 6 - 4 - 5 * 5 - 2 - 7 - 7 * 2 but 11 - 6 is"
    assert drawn["knowledge"] == "not Hugo's rival's rival's teacher's neighbour's doctor but Iris's teacher is"
    assert [name for name, how in VARIANTS.items() if how.claimed is not None] == ["contradicted", "confirmed"]
    with pytest.raises(InputError, match="a claim goes with the first wording alone"):
        Variant(reworded=True, claimed=True)


@pytest.fixture(scope="module")
def study(reference, tmp_path_factory):
    """A run of two tasks, read by our model, and a trace of one of them."""
    from hyperlens.runs import LensSpec

    folder = tmp_path_factory.mktemp("anomalies")
    names = ("logic:plain", "logic:wide")
    tasks = tuple(hl.TaskSpec(name, levels=(3, 4)) for name in names)
    spec = hl.Study(models=(hl.ModelSpec("reference"),), tasks=tasks, lenses=(LensSpec("", (0, 2)),), limit=45)
    run = hl.run_study(spec, folder / "run", {"reference": reference})
    samples = [one for one in GRADED["logic"].samples(20, 9, "wide", levels=[3])]
    hl.trace(reference, samples, hl.HyperLens((0, 2)), reference="output").save(folder / "trace")
    return run


@pytest.fixture
def call(capsys, monkeypatch):
    return make_call(capsys, monkeypatch, "anomalies")


@pytest.mark.slow
def test_the_command_scores_tasks_of_one_run_and_of_others(call, study, tmp_path):
    folder = study.folder
    status, out, _ = call(folder, "--normal-task", "logic:plain", "--json", "--out", tmp_path / "found.json")
    document = json.loads(out)
    assert status == 0 and document == json.loads((tmp_path / "found.json").read_text())
    assert [group["group"] for group in document["groups"]] == ["logic:wide"]
    assert document["folders"] == [
        {"folder": str(folder), "kind": "study", "run": study.manifest["run"], "created": study.manifest["created"]}
    ]
    assert document["normal"]["tasks"] == ["logic:plain"] and document["source"]["focal depths"] == [0, 2]
    normal = gather_features(study.trajectory("logic:plain"))
    direct = compare_with_normal(normal, {"logic:wide": gather_features(study.trajectory("logic:wide"))})
    assert direct["groups"] == document["groups"] and len(document["samples"]) == 90
    trace = folder.parent / "trace"
    status, out, _ = call(
        folder, trace, "--normal-task", "logic:plain", "--focal-depth", "0", "--method", "mahalanobis", "--top", 3
    )
    assert status == 0 and "logic:wide" in out and "The oddest by mahalanobis" in out and out.count("logic:wide/3/") == 3
    labels = tmp_path / "labels.csv"
    labels.write_text("id,label\n" + "".join(f"{row['id']},{int(row['level'] == 4)}\n" for row in document["samples"]))
    assert "no sample that" not in call(folder, "--normal-task", "logic:plain", "--labels", labels)[1]
    labels.write_text(labels.read_text() + "elsewhere,0\n" * 2)
    status, out, _ = call(folder, "--normal-task", "logic:plain", "--labels", labels)
    assert status == 0 and "odd by their labels" in out and "45 of 90" in out
    assert "Labels that are of no sample that was scored: 1." in out


@pytest.mark.slow
def test_folders_of_the_same_last_name_are_groups_of_their_own(call, study, tmp_path):
    places = [tmp_path / name / "trace" for name in ("monday", "tuesday")]
    for place in places:
        shutil.copytree(study.folder.parent / "trace", place)
    status, out, _ = call(study.folder, *places, "--normal-task", "logic:plain", "--json")
    assert status == 0
    assert [(row["group"], row["n"]) for row in json.loads(out)["groups"]] == [(f"{place}/logic:wide", 20) for place in places]


@pytest.mark.slow
def test_results_of_other_kinds_are_never_replaced(call, study, tmp_path):
    for file in study.folder.glob("*.json"):
        before = file.read_bytes()
        status, out, err = call(study.folder, "--normal-task", "logic:plain", "--out", file)
        assert (status, out) == (2, "") and "nothing was written" in err and file.read_bytes() == before
    for _ in range(2):  # its own are
        assert call(study.folder, "--normal-task", "logic:plain", "--out", tmp_path / "own.json")[0] == 0


@pytest.mark.slow
def test_what_the_command_cannot_do_is_one_sentence_and_status_two(call, study, tmp_path):
    folder, trace = study.folder, study.folder.parent / "trace"
    unfinished, labels, other = tmp_path / "unfinished", tmp_path / "labels.csv", tmp_path / "mine.json"
    unfinished.mkdir()
    (unfinished / "manifest.json").write_text((folder / "manifest.json").read_text())
    labels.write_text("id,label\na,maybe\n")
    (tmp_path / "both.csv").write_text("id,label\na,1\nb,0\na,0\n")
    other.write_text("{}")
    plain = (folder, "--normal-task", "logic:plain")
    for words, sentence in (
        ((folder,), "all tasks of"),
        ((tmp_path / "none",), "does not exist"),
        ((unfinished, trace), "was not finished"),
        ((trace, folder), "there are 20 normal texts; half of them are held out"),
        ((folder, trace, "--task", "chess"), 'there is no task "chess"'),
        ((folder, "--normal-task", "chess"), 'there is no task "chess"'),
        ((*plain, "--method", "forest"), '"forest" is no method'),
        ((*plain, "--reading", "gap"), '"gap" was not read'),
        ((*plain, "--focal-depth", "4"), "focal depth 4 was not read"),
        ((*plain, "--focal-depth", "auto"), "cannot be chosen here"),
        ((*plain, "--lens", "tuned"), 'there is no lens "tuned"'),
        ((*plain, "--labels", labels), 'the label "maybe"'),
        ((*plain, "--labels", tmp_path / "both.csv"), 'labels "a" both as odd and as not odd'),
        ((trace, "--model", "reference"), "--model chooses within a study"),
        ((trace, "--lens", "foo"), "--lens chooses within a study"),
        ((*plain, "--labels", tmp_path / "none.csv"), "cannot be read as a table of labels"),
        ((*plain, "--out", other), "was not written by HyperLens"),
        ((*plain, "--top", "-1"), "cannot be listed"),
        ((*plain, "--seed", "-1"), "the seed is -1"),
    ):
        status, out, err = call(*words)
        assert (status, out) == (2, "") and err.startswith("hyperlens: ") and err.count("\n") == 1 and sentence in err, err
    assert other.read_text() == "{}"


def test_the_page_says_what_its_committed_numbers_say_and_they_are_of_what_is_shipped(reference):
    from test_docs import check_tables

    root = Path(__file__).resolve().parent.parent
    found = json.loads((root / "docs" / "anomalies.json").read_text(encoding="utf-8"))
    spec = importlib.util.spec_from_file_location("anomalies_script", root / "benchmarks" / "anomalies.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    check_tables(root / "docs" / "anomalies.md", script.make_tables(found), "run benchmarks/anomalies.py")
    assert min(row["led"] for row in found["claims"][1:]) > 0.9 and found["claims"][0]["led"] == 0.0
    assert all(sum(row[kind] for kind in script.ANSWERS) == pytest.approx(1) for row in found["claims"])
    assert found["about"]["model"] == reference.fingerprint
    assert found["about"]["lens"] == hl.load_lens("reference").fingerprint
