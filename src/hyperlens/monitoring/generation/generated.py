"""What a monitored generation gave."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from hyperlens.encoding import Encoded
from hyperlens.errors import InputError
from hyperlens.monitoring.generation.token import LiveToken
from hyperlens.tracing.batches import Job
from hyperlens.tracing.labels import label_table
from hyperlens.tracing.reading import Table
from hyperlens.trajectory import Trajectory


@dataclass(frozen=True)
class Generated:
    """What a monitored generation gave: `output` as `generate` returned it, `ids` its tokens `[row, token]`, what each text
    became by its new tokens, and these one by one, in the order in which they came."""

    output: Any
    ids: Int[Tensor, "row token"]
    texts: tuple[str, ...]
    tokens: tuple[LiveToken, ...]
    manifest: dict[str, Any]
    encoded: tuple[Encoded, ...]
    job: Job

    def trajectory(self) -> Trajectory:
        """The tokens as `trace` gives them, to be saved, drawn and measured. Raises InputError where states were left out."""
        layers, depth = self.job.model.layers, self.job.depths[0]
        if self.manifest["monitor"]["stride"] > 1:
            raise InputError("some states were left out by the stride; generate with stride 1 to get a whole trajectory")
        if not self.tokens:
            raise InputError("nothing was generated, so that there is no trajectory; let at least one token be made")
        tokens = sorted(self.tokens, key=lambda token: (token.row, token.index))
        confidence = np.stack([token.confidence for token in tokens])
        whole = np.repeat(confidence[:, -1:], layers + 1, 1)
        whole[:, : layers - depth + 1] = confidence
        chosen = np.array([token.token_id for token in tokens])
        rows, places = (np.array([getattr(token, name) for token in tokens]) for name in ("row", "position"))
        certainty = np.array([token.output_probability for token in tokens], dtype=np.float32)
        top = np.array([token.output_id for token in tokens])
        error = self.manifest["largest_error_in_run"]
        table = Table(rows, places, {"probability": whole[:, None]}, top, certainty, chosen, top, error)
        trajectory = label_table(self.job, self.encoded, table, "generated", self.manifest["lens"]["auto"])
        return replace(trajectory, manifest=self.manifest)
