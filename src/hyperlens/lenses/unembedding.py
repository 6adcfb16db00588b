"""What the original package knows of a model: a hash of its unembedding matrix."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from hyperlens.models import Model
from hyperlens.models.fingerprint import fetch_weight

SHOWN = 3
"""Rows and columns at each edge of a matrix that numpy prints where it has more than WHOLE values."""

WHOLE = 1000


def hash_unembedding(model: Model) -> str | None:
    """SHA-256 of the unembedding matrix as numpy prints it to one digit; None where the model has none.

    The same as `tensor_hash` of tuned-lens 0.2. Of a matrix of more than a thousand values numpy prints the corners, so that
    nothing else is read here; models that differ elsewhere, as those fine-tuned from one base may, share a hash.
    """
    module = model.network.get_output_embeddings()
    if module is None or not isinstance(weight := getattr(module, "weight", None), torch.Tensor):
        return None
    part = fetch_weight(module, "weight", weight).detach()
    whole = part.numel() <= WHOLE
    if not whole:
        for axis, size in enumerate(part.shape):
            part = part.index_select(axis, torch.tensor(_edges(size), device=part.device))
    part = part.full_tensor() if isinstance(part, DTensor) else part
    printed = np.array2string(
        part.float().cpu().numpy(),
        max_line_width=75,
        precision=1,
        suppress_small=False,
        threshold=WHOLE if whole else 0,
        edgeitems=SHOWN,
        floatmode="maxprec",
        sign="-",
    )
    return hashlib.sha256(printed.encode()).hexdigest()


def _edges(size: int) -> list[int]:
    """The places at both ends of an axis and one between, if there is one."""
    return (
        sorted({*range(min(SHOWN, size)), size // 2, *range(max(0, size - SHOWN), size)})
        if size > 2 * SHOWN
        else [*range(size)]
    )
