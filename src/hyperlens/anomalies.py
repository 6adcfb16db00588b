"""Odd trajectories: samples whose readings are unlike those of normal ones, and what simpler scores find of them.

So Belrose et al. 2023 (arXiv 2303.08112) find malicious inputs: a detector is fitted on the trajectories of normal inputs
alone, by isolation forest (Liu et al. 2008) or local outlier factor (Breunig et al. 2000), and scores others. What is ours:
which readings it sees, that each is scaled, that half of the normal samples is held out, and the simpler scores beside it.
The paper's text could not be had: what is said of it is from memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hyperlens.artefact import list_versions, to_json
from hyperlens.contrast import estimate_auroc
from hyperlens.errors import InputError
from hyperlens.resampling import check_seed
from hyperlens.trajectory import Trajectory, average_tokens

if TYPE_CHECKING:
    import pandas as pd

METHODS = ("isolation-forest", "local-outlier-factor", "mahalanobis")
DETECTORS = METHODS[:2]
"""The methods of the paper; the third is what they are compared with."""
TREES, NEIGHBOURS = 100, 20
"""scikit-learn's own defaults."""
LEAST_NORMAL = 2 * NEIGHBOURS
"""Fewer normal samples than this are refused: the neighbourhood of one would be most of them."""
SMALLEST_SPREAD = 1e-6
"""A feature that varies less than this share of its size varies by the rounding of float32; it is scaled as if it varied so."""
READ_ALIKE = ("positions", "reference", "options", "guess", "smallest")
KEPT = ("id", "task", "level", "text", "tokens")

Scores = dict[str, np.ndarray]


@dataclass(frozen=True)
class Features:
    """What a detector sees: `values[sample, feature]`, a column for each of `names`, (reading, focal depth, state).

    `samples` has a row per sample: its labels, `tokens` and the model's own `confidence`, mean over the answer tokens. `source`
    says how all of it was read; only features of the same source can stand together.
    """

    values: np.ndarray
    names: tuple[tuple[str, int, int], ...]
    samples: pd.DataFrame
    source: Mapping[str, Any]

    def pick(self, rows: np.ndarray) -> Features:
        """Some of the samples, by their places or by True for each."""
        return Features(self.values[rows], self.names, self.samples.iloc[rows].reset_index(drop=True), self.source)


@dataclass(frozen=True)
class Detector:
    """A method fitted on `normal` samples, which can score others that were read alike.

    The same samples, in any order, and the same `seed` give the same detector; so it is kept by keeping these. `used` are the
    features that any normal sample has: some readings are undefined at some states.
    """

    method: str
    seed: int
    normal: int
    source: Mapping[str, Any]
    used: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    measure: Callable[[np.ndarray], np.ndarray]

    def score(self, samples: Trajectory | Features) -> np.ndarray:
        """How odd each sample is, `[sample]`: more is odder, NaN where a feature is not finite.

        isolation-forest: 2^(−mean depth of isolation over that of random data) in (0, 1]. local-outlier-factor: density of the
        20 nearest normal samples over the sample's own, about 1 among normal ones. mahalanobis: distance from the normal mean
        in standard deviations, with the covariance of Ledoit and Wolf (2004). Raises InputError where the samples were read in
        another way than the normal ones, saying in what.
        """
        if isinstance(samples, Trajectory):
            samples = gather_features(samples, self.source["readings"], self.source["focal depths"])
        check_alike(self.source, samples.source)
        values = samples.values[:, self.used]
        scores, known = np.full(len(values), np.nan), _find_known(values)
        if known.any():
            scores[known] = self.measure((values[known] - self.mean) / self.scale)
        return scores


def gather_features(
    trajectory: Trajectory, readings: Sequence[str] = ("probability",), focal_depths: Sequence[int] | None = None
) -> Features:
    """The readings of each sample at the states 0 … L − m of each focal depth (all that were read by default).

    Means over the sample's answer tokens, NaN tokens left out. State L, the model's own reading, is the same at all depths
    and counts once. Raises InputError where a reading or focal depth was not read.
    """
    depths = tuple(trajectory.focal_depths if focal_depths is None else dict.fromkeys(focal_depths))
    if missing := [depth for depth in depths if depth not in trajectory.focal_depths]:
        raise InputError(
            f"focal depth {missing[0]} was not read of all samples, some have {', '.join(map(str, trajectory.focal_depths))}; "
            "choose among those that all have (--focal-depth), or read all at the same ones"
        )
    parts: list[np.ndarray] = []
    names: list[tuple[str, int, int]] = []
    for reading in dict.fromkeys(readings):
        values = average_tokens(trajectory, trajectory.to_numpy(reading).astype(np.float64))
        for depth in depths:
            states = trajectory.confidence(depth).shape[1] - 1
            parts.append(values[:, trajectory.focal_depths.index(depth), :states])
            names += [(reading, depth, state) for state in range(states)]
        parts.append(values[:, 0, -1:])
        names.append((reading, 0, trajectory.layers))
    own = average_tokens(trajectory, trajectory.to_numpy()[:, 0, -1].astype(np.float64))
    samples = trajectory.samples[list(KEPT)].assign(confidence=own)
    source = _describe_source(trajectory.manifest, list(dict.fromkeys(readings)), list(depths))
    return Features(np.concatenate(parts, 1), tuple(names), samples, source)


def join_features(parts: Sequence[Features]) -> Features:
    """Samples of several tasks or runs behind each other. Raises InputError where they were read in different ways."""
    import pandas as pd

    for part in parts[1:]:
        check_alike(parts[0].source, part.source)
    samples = pd.concat([part.samples for part in parts], ignore_index=True)
    return Features(np.concatenate([part.values for part in parts]), parts[0].names, samples, parts[0].source)


def check_alike(normal: Mapping[str, Any], scored: Mapping[str, Any]) -> None:
    """Raises InputError where two sources differ, saying in what."""
    for name in {**normal, **scored}:
        one, other = (to_json(source.get(name)) for source in (normal, scored))
        if one != other:
            raise InputError(
                f"the samples were not read alike: the {name} of the normal ones is {_shorten(one)}, of the others "
                f"{_shorten(other)}; read both with the same model, lens and settings"
            )


def fit_detector(normal: Trajectory | Features, method: str = METHODS[0], seed: int = 0) -> Detector:
    """Fit one of `METHODS` on normal samples, each feature scaled by its mean and standard deviation among them.

    Features that are finite in no normal sample are not used; samples with another that is not are left out. Raises
    InputError where fewer than 40 are left, for an unknown method, a seed out of range, and where scikit-learn is missing.
    """
    if method not in METHODS:
        raise InputError(f'"{method}" is no method; choose from {", ".join(METHODS)}')
    check_seed(seed)
    features = normal if isinstance(normal, Features) else gather_features(normal)
    used = np.asarray(np.isfinite(features.values).any(axis=0))
    known = features.pick(_find_known(features.values[:, used]))
    count, lost = len(known.values), len(features.values) - len(known.values)
    if count < LEAST_NORMAL:
        left = f" ({lost} more have a reading that is not finite)" if lost else ""
        raise InputError(f"there are {count} normal samples to fit on{left}; at least {LEAST_NORMAL} are needed, so read more")
    rows = known.values[:, used][np.argsort(known.samples["text"].to_numpy(dtype=object), kind="stable")]
    mean = rows.mean(0)
    scale = np.maximum(rows.std(0), SMALLEST_SPREAD * np.abs(mean))
    scale[scale == 0] = 1.0
    return Detector(method, seed, count, features.source, used, mean, scale, _fit(method, (rows - mean) / scale, seed))


def halve_features(features: Features, seed: int) -> tuple[Features, Features]:
    """A random half to fit on and the other to score, whatever the samples' order; equal texts stay together.

    Raises InputError where there are fewer than 80 texts, or the seed is out of range.
    """
    check_seed(seed)
    texts, owners = np.unique(features.samples["text"].to_numpy(dtype=object), return_inverse=True)
    if len(texts) < 2 * LEAST_NORMAL:
        raise InputError(
            f"there are {len(texts)} normal texts; half of them are held out to be compared with, so that at least "
            f"{2 * LEAST_NORMAL} are needed: read more"
        )
    first = np.random.default_rng(seed).permutation(len(texts)) < len(texts) / 2
    return features.pick(first[owners]), features.pick(~first[owners])


def compare_with_normal(
    normal: Features,
    groups: Mapping[str, Features],
    methods: Sequence[str] = DETECTORS,
    seed: int = 0,
    labels: Mapping[str, bool] | None = None,
) -> dict[str, Any]:
    """Fit on half of the normal samples, score the other half and all groups, and say how well each score tells them apart.

    AUROC = P(odd sample above a held-out normal one) + ½ P(equal), with its interval. Beside the methods stand three scores
    that need no trajectory of layers, or no detector: `mahalanobis`, on the same features; `confidence`, how far the model's
    own confidence is below 1; `length`, how far the prompt's tokens are from their normal mean. Samples that were fitted on,
    by their text, are not scored. `labels` (sample id -> whether it is odd) add the AUROC of odd against other samples among
    all that were scored, and how many labels are of none of these. Raises InputError, also for a labelled id that several
    samples have.
    """
    fitted, held_out = halve_features(normal, seed)
    detectors = {method: fit_detector(fitted, method, seed) for method in dict.fromkeys((*methods, METHODS[2]))}
    expected = float(fitted.samples["tokens"].to_numpy(dtype=float).mean())
    seen, usual = fitted.samples["text"].to_list(), _score_all(detectors, expected, held_out)
    rows: list[dict[str, Any]] = []
    listed: list[dict[str, Any]] = []
    for name, given in groups.items():
        fresh = given.pick(~given.samples["text"].isin(seen).to_numpy())
        scores = _score_all(detectors, expected, fresh)
        count = _count(scores)
        lost = {"left_out": len(fresh.values) - count, "seen": len(given.values) - len(fresh.values)}
        rows.append({"group": name, "n": count, **lost, "auroc": _compare(usual, scores, seed)})
        listed += _list_samples(name, fresh, scores)
    return {
        "normal": {"fitted": detectors[METHODS[2]].normal, "held_out": _count(usual)},
        "source": dict(normal.source),
        "settings": _describe_settings(methods, seed),
        "groups": rows,
        **({} if labels is None else {"labels": _compare_labels(listed, labels, seed)}),
        "samples": listed,
    }


def _score_all(detectors: Mapping[str, Detector], expected: float, features: Features) -> Scores:
    """By each detector, by the confidence that is missing, and by how far the length is from the `expected` tokens."""
    found = {method: detector.score(features) for method, detector in detectors.items()}
    tokens = features.samples["tokens"].to_numpy(dtype=float)
    return found | {"confidence": 1 - features.samples["confidence"].to_numpy(), "length": np.abs(tokens - expected)}


def _count(scores: Scores) -> int:
    """How many samples were scored."""
    return int(np.isfinite(scores[METHODS[2]]).sum())


def _find_known(values: np.ndarray) -> np.ndarray:
    """True for the samples that have features, and all of them finite."""
    return np.asarray(np.isfinite(values).all(axis=1) & bool(values.shape[1]))


def _describe_settings(methods: Sequence[str], seed: int) -> dict[str, Any]:
    """What, with the normal samples, gives the same detectors again."""
    versions = list_versions("hyperlens", "scikit-learn", "numpy")
    return {"methods": list(methods), "seed": seed, "trees": TREES, "neighbours": NEIGHBOURS, "versions": versions}


def _compare(usual: Scores, odd: Scores, seed: int) -> dict[str, Any]:
    return {name: asdict(estimate_auroc(usual[name], odd[name], seed)) for name in usual}


def _compare_labels(rows: Sequence[Mapping[str, Any]], labels: Mapping[str, bool], seed: int) -> dict[str, Any]:
    """How well each score tells samples labelled odd from those that are labelled otherwise."""
    known = [row for row in rows if np.isfinite(row["scores"][METHODS[2]])]
    _check_labels(rows, labels)
    sides = [[row["scores"] for row in known if labels.get(row["id"]) is kind] for kind in (True, False)]
    if min(map(len, sides)) < 2:
        raise InputError(
            f"of the {len(known)} scored samples {len(sides[0])} are labelled odd and {len(sides[1])} are labelled "
            "otherwise; at least 2 of each are needed, by the ids that the samples have"
        )
    odd, usual = ({name: np.array([row[name] for row in side]) for name in side[0]} for side in sides)
    unmatched = len(labels.keys() - {row["id"] for row in rows})
    return {"odd": len(sides[0]), "others": len(sides[1]), "unmatched": unmatched, "auroc": _compare(usual, odd, seed)}


def _check_labels(rows: Sequence[Mapping[str, Any]], labels: Mapping[str, bool]) -> None:
    """Raises InputError where a label is of several samples."""
    owners: dict[str, str] = {}
    for row in rows:
        if row["id"] in labels and row["id"] in owners:
            places = " and ".join(dict.fromkeys((owners[row["id"]], row["group"])))
            raise InputError(
                f'several of the scored samples have the labelled id "{row["id"]}" (in {places}), so that its label does not '
                "say which is meant; score them one after the other, or give them ids of their own"
            )
        owners[row["id"]] = row["group"]


def _list_samples(group: str, features: Features, scores: Scores) -> list[dict[str, Any]]:
    """One row per sample: what it is, and its scores."""
    import pandas as pd

    return [
        {
            "group": group,
            "id": str(sample["id"]),
            "task": sample["task"],
            "level": None if pd.isna(sample["level"]) else int(sample["level"]),
            "text": sample["text"],
            "scores": {name: float(values[place]) for name, values in scores.items()},
        }
        for place, sample in enumerate(features.samples.astype({"level": object}).to_dict("records"))
    ]


def _fit(method: str, rows: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """What scores rows, fitted on scaled normal ones; more is odder."""
    try:
        from sklearn.covariance import LedoitWolf
        from sklearn.ensemble import IsolationForest
        from sklearn.neighbors import LocalOutlierFactor
    except ImportError:
        raise InputError("detectors need scikit-learn; install it with: pip install 'hyperlens[anomalies]'") from None
    if method == "mahalanobis":
        covariance = LedoitWolf(assume_centered=True).fit(rows)
        return lambda new: np.sqrt(covariance.mahalanobis(new))
    if method == "isolation-forest":
        detector: Any = IsolationForest(n_estimators=TREES, random_state=seed).fit(rows)
    else:
        detector = LocalOutlierFactor(n_neighbors=NEIGHBOURS, novelty=True).fit(rows)
    return lambda new: -detector.score_samples(new)


def _describe_source(manifest: Mapping[str, Any], readings: list[str], depths: list[int]) -> dict[str, Any]:
    """All that has to be equal for features to mean the same."""
    lens = {f"lens {name}": value for name, value in manifest["lens"].items() if name not in ("focal_depths", "auto")}
    return {
        "model": manifest["model"]["fingerprint"],
        **lens,
        "readings": readings,
        "focal depths": depths,
        **{name: manifest[name] for name in READ_ALIKE},
    }


def _shorten(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
