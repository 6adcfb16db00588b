"""What a plan says: work by its kind, and what one model on one task through one lens will take."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

Number = int | float


@dataclass(frozen=True)
class Work:
    """What readings compute: floating-point operations by purpose, and the calls that small models spend their time on."""

    ordinary_flops: Number = 0.0
    """The model's own pass over the texts."""
    routed_flops: Number = 0.0
    """States on their way through the deepest layers."""
    readout_flops: Number = 0.0
    """States through the unembedding."""
    generation_flops: Number = 0.0
    """Answers that the model writes first."""
    calls: Number = 0.0
    call_tokens: Number = 0.0
    layer_calls: Number = 0.0
    read_outs: Number = 0.0
    steps: Number = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def scale(self, factor: Number) -> Work:
        """So many times the work."""
        return Work(*(getattr(self, one.name) * factor for one in fields(self)))

    @property
    def flops(self) -> Number:
        """All floating-point operations."""
        return self.ordinary_flops + self.routed_flops + self.readout_flops + self.generation_flops


@dataclass(frozen=True)
class Rates:
    """Seconds for one of each kind of work, on one device."""

    layer_flop: Number = 0.0
    readout_flop: Number = 0.0
    call: Number = 0.0
    call_token: Number = 0.0
    layer_call: Number = 0.0
    read_out: Number = 0.0
    step: Number = 0.0

    def seconds(self, work: Work) -> Number:
        """How long the work takes."""
        layers = work.ordinary_flops + work.routed_flops + work.generation_flops
        return (
            layers * self.layer_flop
            + work.readout_flops * self.readout_flop
            + work.calls * self.call
            + work.call_tokens * self.call_token
            + work.layer_calls * self.layer_call
            + work.read_outs * self.read_out
            + work.steps * self.step
        )


@dataclass(frozen=True)
class CellPlan:
    """What one model on one task through one lens will take."""

    model: str
    lens: str
    task: str
    context: str
    focal_depths: tuple[int, ...]
    """Those that will be read; of "auto", which chooses one, the dearest candidate beside 0."""
    candidates: tuple[int, ...]
    """Those that "auto" and "sweep" choose from."""
    samples: int
    skipped: int
    """Samples that the model cannot read, such as those longer than its context."""
    counted: int
    """Samples that were made into tokens; they stand for all."""
    tokens: int
    """Tokens that the model has to see, without padding."""
    answer_tokens: int
    """Positions that are read."""
    batches: int
    work: Work
    disk_bytes: int
    """Readings as float32, and each top token as its id and probability, before compression."""
    seconds: Number | None
    """On one device; None where nothing was timed."""
    note: str = ""


@dataclass(frozen=True)
class ModelPlan:
    """What one model of the study is, and what a device needs to hold it at work; or why it is refused."""

    model: str
    architecture: str = ""
    layers: int = 0
    width: int = 0
    vocabulary: int = 0
    parameters: int = 0
    active_parameters: int = 0
    """Those that one token passes, fewer where there are experts."""
    dtype: str = ""
    device: str = ""
    devices: int = 1
    """Over how many devices one replica lies."""
    weights_bytes: int = 0
    translators_bytes: int = 0
    """Those of all tuned lenses."""
    forward_bytes: int = 0
    """What a plain pass over one batch holds at once, estimated."""
    states_bytes: int = 0
    """The recorded states of one batch."""
    routed_bytes: int = 0
    """The states that pass the deepest layers at once."""
    logits_bytes: int = 0
    """The logits held at once, and their readings."""
    cache_bytes: int = 0
    """Keys and values of the deepest layers, in the context `cached`."""
    budget_bytes: int = 0
    """The study's memory_mb, which bounds states, routed states and logits together."""
    memory_bytes: int = 0
    """Of each device: weights, translators, pass, cache, and the larger of the budget and what it is to bound."""
    largest_memory: str = ""
    """Which of these is the largest."""
    device_bytes: int | None = None
    fits: bool | None = None
    choosing_flops: Number = 0.0
    """Choosing the focal depth, once for each lens."""
    choosing_seconds: Number | None = None
    layer_flops_per_second: Number | None = None
    timed_on: str = ""
    note: str = ""
    refused: str = ""


@dataclass(frozen=True)
class Plan:
    """What a study will take, cell by cell and model by model."""

    study: str
    workers: int
    cells: tuple[CellPlan, ...]
    models: tuple[ModelPlan, ...]
    notes: tuple[str, ...]

    @property
    def flops(self) -> Number:
        """All floating-point operations."""
        return sum(cell.work.flops for cell in self.cells) + sum(model.choosing_flops for model in self.models)

    @property
    def seconds(self) -> Number | None:
        """All of it, shared evenly by the workers; None where some of it was not timed."""
        each = [cell.seconds for cell in self.cells]
        each += [model.choosing_seconds for model in self.models if not model.refused]
        return None if not each or None in each else sum(one or 0.0 for one in each) / self.workers

    def describe(self) -> dict[str, Any]:
        """Totals, `cells` and `models`, ready for JSON; amounts in bytes, operations and seconds."""
        cells = []
        for cell in self.cells:
            row = {name: value for name, value in asdict(cell).items() if name != "work"}
            parts = {one.name: getattr(cell.work, one.name) for one in fields(Work) if one.name.endswith("_flops")}
            cells.append({**row, "flops": cell.work.flops, **parts} | {"focal_depths": list(cell.focal_depths)})
            cells[-1]["candidates"] = list(cell.candidates)
        sums = {
            name: sum(row[name] for row in cells) for name in ("samples", "skipped", "tokens", "answer_tokens", "disk_bytes")
        }
        return {
            "study": self.study,
            "workers": self.workers,
            **sums,
            "flops": self.flops,
            "seconds": self.seconds,
            "memory_bytes": max((model.memory_bytes for model in self.models), default=0),
            "cells": cells,
            "models": [asdict(model) for model in self.models],
            "notes": list(self.notes),
        }
