"""Labelled confidence readings over tokens, focal depths and states, and the effort that follows from them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import xarray as xr
from markupsafe import Markup

from hyperlens import effort
from hyperlens.artefact import read_document, read_table, write_artefact
from hyperlens.errors import ArtefactError, HyperLensWarning, InputError
from hyperlens.notebook import draw_effort, draw_scale, draw_table, draw_tokens, draw_trajectory, frame
from hyperlens.spelling import NOTHING, say_number, shorten

if TYPE_CHECKING:
    import pandas as pd

READINGS = (
    "probability",
    "log_probability",
    "margin",
    "top_probability",
    "gap",
    "entropy",
    "rank",
    "kl_to_output",
    "js_to_output",
    "decision_margin",
)
"""Every reading of a distribution by name; formulas in `hyperlens.readings`. `probability` alone enters the effort."""
STATE_READINGS = ("state_cosine",)
"""Readings of the residual state itself, as the model left it: equal at all focal depths."""
EXIT_READING = "exit_probability"
"""What a fitted exit classifier reads of a state; named in results only."""
COARSE_BELOW = 4
"""With fewer states than this the effort is coarse, and a warning says so."""
MOST_DRAWN = 2_500
"""Values of confidence that a notebook shows of a trajectory."""


@dataclass(frozen=True, repr=False)
class Trajectory:
    """What a lens read of some texts.

    `data` holds each reading as float32 `[token, focal_depth, state]` (states 0 … layers; those from layers − focal depth on
    are the model's own reading), labels of each token (its `sample`, 0-based `position`, the `token` there, the model's top
    token `output` with `output_probability`, the `reference` token y) and, if they were asked for, `top_ids` and
    `top_probabilities` `[token, focal_depth, state, top]`. `samples` has one row per text. `manifest` says how all this
    came to be. There is never a vocabulary axis.
    """

    data: xr.Dataset
    samples: pd.DataFrame
    manifest: Mapping[str, Any]

    @property
    def layers(self) -> int:
        """Number of decoder layers L."""
        return int(self.data.sizes["state"]) - 1

    @property
    def focal_depths(self) -> tuple[int, ...]:
        """The focal depths that were read, ascending."""
        return tuple(int(depth) for depth in self.data["focal_depth"].values)

    def confidence(self, focal_depth: int) -> np.ndarray:
        """Probability of the reference at the states 0 … L − m: float32 `[token, L − m + 1]`. Raises InputError."""
        if focal_depth not in self.focal_depths:
            raise InputError(f"focal depth {focal_depth} was not read; this trajectory has {_listed(self.focal_depths)}")
        return self.data["probability"].sel(focal_depth=focal_depth).values[:, : self.layers - focal_depth + 1]

    def to_numpy(self, reading: str = "probability") -> np.ndarray:
        """One reading as float32 `[token, focal_depth, state]`. Raises InputError where it was not read."""
        if reading not in self.manifest["readings"]:
            raise InputError(f'"{reading}" was not read; this trajectory has {_listed(self.manifest["readings"])}')
        return self.data[reading].values

    def to_dataframe(self) -> pd.DataFrame:
        """One row per token, focal depth and state: labels and readings side by side."""
        wanted = [name for name in self.data.variables if "top" not in self.data[name].dims]
        return self.data[wanted].to_dataframe().reset_index()

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write to a folder of json and parquet, its marker last; gives its path. Raises ArtefactError."""
        return write_artefact(folder, {"kind": "trajectory", **self.manifest}, self.to_tables())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Trajectory:
        """Read what `save` wrote, from a trajectory's folder or a run's. Raises ArtefactError."""
        manifest = read_document(folder)
        if "readings" not in manifest:
            raise ArtefactError(f"{folder} holds no trajectory but a {manifest.get('kind')}; choose another folder")
        return cls.from_tables(manifest, read_table(folder, "tokens"), read_table(folder, "samples").to_pandas())

    @classmethod
    def from_tables(cls, manifest: Mapping[str, Any], tokens: pa.Table, samples: pd.DataFrame) -> Trajectory:
        """The trajectory of a table of tokens, as `to_tables` writes it, and of their samples."""
        depths, layers = manifest["lens"]["focal_depths"], manifest["model"]["layers"]
        variables: dict[str, Any] = {}
        for name in dict.fromkeys(column.partition("@")[0] for column in tokens.column_names if "@" in column):
            parts = [tokens[f"{name}@{depth}"].combine_chunks().flatten().to_numpy() for depth in depths]
            shape = (len(tokens), layers + 1, -1) if name in ("top_ids", "top_probabilities") else (len(tokens), -1)
            values = np.stack([part.reshape(shape) for part in parts], 1)
            variables[name] = (("token", "focal_depth", "state", "top")[: values.ndim], values)
        labels = {
            name: (("token",), tokens[name].to_numpy(zero_copy_only=False)) for name in tokens.column_names if "@" not in name
        }
        coordinates = {**labels, "focal_depth": depths, "state": np.arange(layers + 1)}
        return cls(xr.Dataset(variables, coords=coordinates), samples, dict(manifest))

    def to_tables(self) -> dict[str, pa.Table]:
        """The parquet tables of the folder format: one row per token with a list over states per reading, and the samples."""
        labels = [name for name, variable in self.data.variables.items() if variable.dims == ("token",)]
        columns = {name: pa.array(self.data[name].values) for name in labels}
        for name, variable in self.data.data_vars.items():
            if "focal_depth" in variable.dims:
                for number, depth in enumerate(self.focal_depths):
                    values = variable.values[:, number]
                    flat = pa.array(values.reshape(-1))
                    columns[f"{name}@{depth}"] = _cut_lists(flat, int(np.prod(values.shape[1:])), "top" in variable.dims)
        return {"tokens": pa.table(columns), "samples": pa.Table.from_pandas(self.samples, preserve_index=False)}

    def __repr__(self) -> str:
        model, lens = self.manifest["model"], self.manifest["lens"]
        return (
            f"Trajectory({self.data.sizes['token']} tokens of {len(self.samples)} texts, {self.layers + 1} states, "
            f"focal depths {_listed(self.focal_depths)}, context {lens['context']}, model {model['name']})"
        )

    def _repr_html_(self) -> str:
        return _draw_html(self)


def check_readings(names: Iterable[str]) -> None:
    """Raise InputError for a name that is no reading, or one that a name alone does not say how to read."""
    for name in names:
        if name == EXIT_READING:
            raise InputError(
                f"{EXIT_READING} is read by a classifier that was fitted to the model; fit one with fit_exit_classifier and "
                "give it to trace in the place of a name"
            )
        if name not in (*READINGS, *STATE_READINGS):
            raise InputError(f'"{name}" is not a reading; choose from {_listed((*READINGS, *STATE_READINGS))}')


def measure_effort(trajectory: Trajectory) -> xr.Dataset:
    """Effort Ω and what goes with it, labelled: float `[token, focal_depth]`.

    `effort` Ω in [0, 1]; `effort_layers` n·Ω; `common_effort`, Ω over the states that every depth can change (l < L − m_max),
    to compare depths; `raw_area`; `onset`, `commit` and `struggle` = commit − onset (layers), `struggle_share` of n;
    `volatility`; `resolution` (effective steps). NaN where undefined. Warns where n = L − m is below 4.
    """
    deepest = max((m for m in trajectory.focal_depths if m < trajectory.layers), default=0)
    common = trajectory.layers - deepest
    per_depth = [_measure_depth(trajectory, depth, common) for depth in trajectory.focal_depths]
    variables = {
        name: (("token", "focal_depth"), np.stack([measured[name] for measured in per_depth], -1)) for name in per_depth[0]
    }
    labels = {
        name: (("token",), trajectory.data[name].values) for name in ("sample", "position", "token_text", "reference_text")
    }
    return xr.Dataset(variables, coords={**labels, "focal_depth": list(trajectory.focal_depths)})


def pool_effort(trajectory: Trajectory) -> xr.Dataset:
    """Effort of whole texts, `[sample, focal_depth]`: mean (the default of every report), sum and maximum over their tokens.

    `tokens` counts those that were read, `left_out` those whose effort is NaN and that are left out. A sum grows with length.
    """
    measured = measure_effort(trajectory)["effort"].values
    owners, samples = trajectory.data["sample"].values, len(trajectory.samples)
    known = ~np.isnan(measured)
    tokens = np.bincount(owners, minlength=samples)
    count, total, largest = (np.full((samples, measured.shape[1]), start) for start in (0, 0.0, -np.inf))
    np.add.at(count, owners, known)
    np.add.at(total, owners, np.where(known, measured, 0.0))
    np.maximum.at(largest, owners, np.where(known, measured, -np.inf))
    variables = {
        "mean": average_tokens(trajectory, measured),
        "sum": np.where(count > 0, total, np.nan),
        "maximum": np.where(count > 0, largest, np.nan),
        "left_out": tokens[:, None] - count,
    }
    return xr.Dataset(
        {name: (("sample", "focal_depth"), values) for name, values in variables.items()} | {"tokens": (("sample",), tokens)},
        coords={"sample": np.arange(samples), "focal_depth": list(trajectory.focal_depths)},
    )


def average_tokens(trajectory: Trajectory, values: np.ndarray) -> np.ndarray:
    """Mean of `values[token, …]` over the tokens of each sample: `[sample, …]`. NaN values are left out; NaN where all are."""
    known = ~np.isnan(values)
    shape = (len(trajectory.samples), *values.shape[1:])
    total, count = np.zeros(shape), np.zeros(shape)
    np.add.at(total, trajectory.data["sample"].values, np.where(known, values, 0.0))
    np.add.at(count, trajectory.data["sample"].values, known)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def measure_magnification(trajectory: Trajectory) -> xr.Dataset:
    """How each focal depth's confidence moves beside the logit lens's, over all tokens that were read.

    `gain` and `path_ratio` `[focal_depth]`; `monotonicity` `[focal_depth, state]`, NaN from state L − m on. Formulas, ranges
    and what they do not show: `hyperlens.effort.measure_gain`, `measure_path_ratio`, `measure_monotonicity`. Raises InputError
    where focal depth 0, the logit lens, was not read.
    """
    logit = trajectory.confidence(0).astype(np.float64)
    monotonicity = np.full((len(trajectory.focal_depths), trajectory.layers), np.nan)
    gains, ratios = [], []
    for number, depth in enumerate(trajectory.focal_depths):
        routed = trajectory.confidence(depth).astype(np.float64)
        gains.append(float(effort.measure_gain(routed, logit)))
        ratios.append(float(effort.measure_path_ratio(routed, logit)))
        monotonicity[number, : trajectory.layers - depth] = effort.measure_monotonicity(routed, logit)
    return xr.Dataset(
        {
            "gain": (("focal_depth",), np.array(gains)),
            "path_ratio": (("focal_depth",), np.array(ratios)),
            "monotonicity": (("focal_depth", "state"), monotonicity),
        },
        coords={"focal_depth": list(trajectory.focal_depths), "state": np.arange(trajectory.layers)},
    )


def describe_trajectory(trajectory: Trajectory, reading: str = "probability") -> dict[str, Any]:
    """The trajectory as `hyperlens trace --json` prints it: each token with the values of one reading, effort and commit.

    `trajectory` has the L + 1 values of `reading` at each depth, `readings` those of the others where there are any; effort
    and commit are always those of the probability.
    """
    values, measured = trajectory.to_numpy(reading), measure_effort(trajectory)
    depths = [str(depth) for depth in trajectory.focal_depths]
    others = {name: trajectory.to_numpy(name) for name in trajectory.manifest["readings"] if name != reading}
    top = trajectory.data["top_ids"].values if "top_ids" in trajectory.data else None
    spelled = trajectory.manifest.get("top_tokens", {})
    labels = {
        key: trajectory.data[name].values.tolist()
        for key, name in {
            "position": "position",
            "token": "token_text",
            "output": "output_text",
            "output_probability": "output_probability",
            "reference": "reference_text",
        }.items()
    }
    efforts, commits = measured["effort"].values.tolist(), measured["commit"].values.tolist()
    samples: list[dict[str, Any]] = [{"text": text, "tokens": []} for text in trajectory.samples["text"]]
    for row, owner in enumerate(trajectory.data["sample"].values.tolist()):
        token: dict[str, Any] = {key: column[row] for key, column in labels.items()}
        token["trajectory"] = dict(zip(depths, values[row].tolist(), strict=True))
        if others:
            token["readings"] = {name: dict(zip(depths, column[row].tolist(), strict=True)) for name, column in others.items()}
        token["effort"] = dict(zip(depths, efforts[row], strict=True))
        token["commit"] = {depth: _whole(state) for depth, state in zip(depths, commits[row], strict=True)}
        if top is not None:
            states = [[[spelled[str(one)] for one in state] for state in depth] for depth in top[row].tolist()]
            token["top"] = dict(zip(depths, states, strict=True))
        samples[owner]["tokens"].append(token)
    return {"manifest": dict(trajectory.manifest), "samples": samples}


def _whole(value: float) -> int | None:
    return None if np.isnan(value) else int(value)


def _measure_depth(trajectory: Trajectory, depth: int, common: int) -> dict[str, np.ndarray]:
    """All that `measure_effort` gives, for one focal depth."""
    confidence = trajectory.confidence(depth).astype(np.float64)
    states = confidence.shape[1] - 1
    if states < COARSE_BELOW:
        what = "undefined" if states == 0 else "coarse"
        warnings.warn(
            f"at focal depth {depth} of {trajectory.layers} layers only {states} states are left to read; effort is {what}",
            HyperLensWarning,
            stacklevel=3,
        )
    guess, smallest = trajectory.manifest["guess"], trajectory.manifest["smallest"]
    progress = effort.measure_progress(confidence, guess, smallest)
    shared = np.concatenate([confidence[:, : min(common, states)], confidence[:, -1:]], 1)
    onset, commit = effort.find_onset(progress), effort.find_commit(progress)
    omega = effort.measure_effort(confidence, guess, smallest)
    return {
        "effort": omega,
        "effort_layers": states * omega,
        "common_effort": effort.measure_effort(shared, guess, smallest),
        "raw_area": effort.measure_raw_area(confidence),
        "onset": onset,
        "commit": commit,
        "struggle": commit - onset,
        "struggle_share": (commit - onset) / states if states else np.full(len(confidence), np.nan),
        "volatility": effort.measure_volatility(confidence),
        "resolution": effort.measure_resolution(confidence),
    }


def _cut_lists(values: pa.Array, size: int, loose: bool) -> pa.Array:
    """Lists of `size` values, one behind the other; `loose` are those whose size differs from task to task of a run, as that of
    top tokens does where there are fewer answer options."""
    if not loose:
        return pa.FixedSizeListArray.from_arrays(values, size)
    return pa.LargeListArray.from_arrays(np.arange(0, len(values) + 1, size, dtype=np.int64), values)


def _listed(values: Any) -> str:
    return ", ".join(str(value) for value in values)


def _draw_html(trajectory: Trajectory) -> str:
    """For notebooks: of each text, what was read of its tokens, and these on the ground of their effort."""
    owners, measured = trajectory.data["sample"].values, measure_effort(trajectory)
    left = max(1, MOST_DRAWN // ((trajectory.layers + 1) * len(trajectory.focal_depths)))
    parts: list[str] = [draw_scale()]
    for number, text in enumerate(trajectory.samples["text"]):
        mine = np.flatnonzero(owners == number)
        if left <= 0:
            parts.append(f"and {len(trajectory.samples) - number} more texts")
            break
        parts += _draw_text(trajectory, measured, str(text), mine, left)
        left -= len(mine)
    return frame(repr(trajectory), *parts)


def _draw_text(trajectory: Trajectory, measured: xr.Dataset, text: str, mine: np.ndarray, most: int) -> list[str]:
    """One text's tokens as a table, and where there are several as a line for each depth; `most` of them."""
    shown, data, efforts = mine[:most], trajectory.data, measured["effort"].values
    depths = list(enumerate(trajectory.focal_depths))
    rows: list[list[Any]] = []
    for token in shown:
        confidence = data["probability"].values[token].tolist()
        row: list[Any] = [data[name].values[token] for name in ("token_text", "reference_text", "position")]
        row.append(say_number(confidence[0][-1]))
        for place, depth in depths:
            commit = _whole(measured["commit"].values[token, place])
            row += [draw_effort(float(efforts[token, place])), NOTHING if commit is None else str(commit)]
            row.append(draw_trajectory(confidence[place], trajectory.layers - depth))
        rows.append(row)
    columns = ["after", "y", "position", "p(y)"]
    columns += [name for _, depth in depths for name in (f"Ω, m = {depth}", "commit", f"states 0 … {trajectory.layers}")]
    parts: list[str] = [draw_table(shorten(text, 160), columns, rows, 2)]
    if len(shown) > 1:
        parts += [
            Markup("<p>m = {}: {}</p>").format(
                depth, draw_tokens(data["reference_text"].values[shown], efforts[shown, place].tolist())
            )
            for place, depth in depths
        ]
    return parts + [f"and {len(mine) - len(shown)} more tokens"] * (len(mine) > len(shown))
