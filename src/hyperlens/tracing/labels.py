"""What was read, labelled: the table as a Trajectory, its samples, and the manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from hyperlens import effort
from hyperlens.artefact import list_versions
from hyperlens.encoding import Encoded
from hyperlens.models import Model
from hyperlens.tracing.batches import Job
from hyperlens.tracing.reading import Table
from hyperlens.trajectory import Trajectory

DEFINITIONS = {
    "routed": "D_m(h_l) = head(F_L ... F_{s+1}(h_l)), s = max(l, L - m)",
    "effort": "mean over l < L - m of 1 - clip((c_l - guess)/(c_L - guess), 0, 1), c = probability of the reference",
    "onset": "first state with progress >= 0.1",
    "commit": "first state from which progress stays >= 0.9",
}


def label_table(job: Job, encoded: Sequence[Encoded], table: Table, positions: str, sweep: dict[str, Any] | None) -> Trajectory:
    """The table with its labels, as a Trajectory."""
    spell = make_speller(job.model)
    here = np.array([encoded[owner].ids[place] for owner, place in zip(table.owners, table.positions, strict=True)])
    labels: dict[str, Any] = {"sample": table.owners, "position": table.positions}
    for name, ids in {"token": here, "output": table.output_ids, "reference": table.reference_ids}.items():
        labels |= {f"{name}_id": ids, f"{name}_text": np.array([spell(token) for token in ids.tolist()], dtype=object)}
    if encoded[0].option_ids:
        chosen = zip(table.owners, table.reference_ids.tolist(), strict=True)
        labels["reference_text"] = np.array([_spell_option(encoded[owner], token) for owner, token in chosen], dtype=object)
    labels["output_probability"] = table.output_probability
    dims = ("token", "focal_depth", "state", "top")
    data = xr.Dataset(
        {name: (dims[: values.ndim], values) for name, values in table.readings.items()},
        coords={name: (("token",), values) for name, values in labels.items()}
        | {"focal_depth": list(job.depths), "state": np.arange(job.model.layers + 1)},
    )
    manifest = write_manifest(job, encoded, table.error, positions, sweep)
    if "top_ids" in data:
        manifest["top_tokens"] = {str(token): spell(token) for token in np.unique(data["top_ids"].values).tolist()}
    return Trajectory(data, _describe_samples(job.model, encoded, table, positions, job.limits.stop), manifest)


def _spell_option(text: Encoded, token: int) -> str:
    """The answer option that begins with `token`."""
    return text.sample.options[text.option_ids.index(token)].strip()


def _fed_text(model: Model, text: Encoded, positions: str) -> str:
    """What the model read: the prompt, and behind it the target or what was generated where those are read."""
    if positions == "generated" and model.tokenizer is not None:
        return text.sample.prompt + str(model.tokenizer.decode(list(text.ids[text.positions[0] + 1 :])))
    return text.sample.prompt + (text.sample.target or "" if positions in ("answer", "all") else "")


def cut_answer(said: str, stop: Sequence[str]) -> str:
    """A generated answer up to the first of the texts `stop`."""
    return said[: min((said.find(mark) for mark in stop if mark in said), default=len(said))]


def _describe_samples(
    model: Model, encoded: Sequence[Encoded], table: Table, positions: str, stop: Sequence[str]
) -> pd.DataFrame:
    """One row per text; `correct`: each answer token was the model's own top token, or best option (None but for answers)."""
    rows = []
    bounds = np.searchsorted(table.owners, np.arange(len(encoded) + 1))
    unknown = None if model.tokenizer is None else model.tokenizer.unk_token_id
    for number, text in enumerate(encoded):
        mine = slice(bounds[number], bounds[number + 1])
        sample = text.sample
        right, said = None, None
        if positions == "answer":
            right = bool((table.best_ids[mine] == np.array(text.following())).all())
        if positions == "generated" and model.tokenizer is not None:
            said = str(model.tokenizer.decode(list(text.ids[text.positions[0] + 1 :]), skip_special_tokens=True))
            said = cut_answer(said, stop)
        rows.append(
            {
                "text": _fed_text(model, text, positions),
                "prompt": sample.prompt,
                "target": sample.target,
                "task": sample.task,
                "level": sample.level,
                "id": sample.id or str(number),
                "tokens": len(text.ids),
                "read": len(text.positions),
                "cut": text.cut,
                "unknown": sum(token == unknown for token in text.ids),
                "generated": said,
                "correct": right,
            }
        )
    frame = pd.DataFrame(rows)
    return frame.astype({"level": "Int64", "correct": "boolean", "target": "string", "generated": "string"})


def write_manifest(
    job: Job, encoded: Sequence[Encoded], error: float, positions: str, sweep: dict[str, Any] | None
) -> dict[str, Any]:
    """The manifest: everything that decides what was read."""
    model, splice, options = job.model, job.model.splice, len(encoded[0].option_ids)
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "name": model.name,
            "architecture": type(model.network).__name__,
            "layers": model.layers,
            "fingerprint": model.fingerprint,
            "dtype": str(splice.dtype).removeprefix("torch."),
            "device": str(splice.device),
            "certificate": asdict(model.certificate),
        },
        "lens": {**job.lens.describe(), "focal_depths": list(job.depths), "auto": sweep},
        "positions": positions,
        "reference": job.reference,
        "readings": list(job.names),
        "options": options,
        "guess": 1 / options if options else 0.0,
        "smallest": 0.0 if job.reference == "output" else effort.SMALLEST_GIVEN,
        "limits": asdict(job.limits),
        "largest_error_in_run": error,
        "definitions": DEFINITIONS,
        "versions": list_versions("hyperlens", "torch", "transformers", "numpy"),
    }


def make_speller(model: Model) -> Callable[[int], str]:
    """A token id as text; its raw name where it has no text of its own, its number where there is no tokenizer."""
    known: dict[int, str] = {-1: ""}

    def spell(token: int) -> str:
        if token not in known:
            if model.tokenizer is None:
                known[token] = str(token)
            else:
                raw = model.tokenizer.convert_ids_to_tokens(token)
                known[token] = str(model.tokenizer.decode([token])) or str(raw)
        return known[token]

    return spell
