"""The probe set and the network that is trained, ready to be measured; and the measurement, which leaves no trace on it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from hyperlens.encoding import Encoded, encode_samples
from hyperlens.errors import InputError, ModelError
from hyperlens.lenses import HyperLens
from hyperlens.models import Model, load_model
from hyperlens.models.adapters import unwrap
from hyperlens.tasks import Sample, letter_options
from hyperlens.tracing import Limits, trace_encoded
from hyperlens.trajectory import Trajectory

LIMITS = Limits(progress=False)
SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
"""Ways of accelerate to train in which no process holds the whole model."""


@dataclass(frozen=True)
class Probe:
    """The samples as token ids, read at their `positions` through `lens`, and the `model` whose network is trained."""

    model: Model
    lens: HyperLens
    encoded: tuple[Encoded, ...]
    positions: str


def check_samples(given: Iterable[str | Sample]) -> tuple[Sample, ...]:
    """The samples of a probe set, its texts as samples too. Raises InputError where there are none, or some lack a target."""
    if isinstance(given, str | Sample):
        raise InputError("the probe set is a single text; give a list of samples, or of texts")
    samples = tuple(Sample(one) if isinstance(one, str) else one for one in given)
    if not samples:
        raise InputError("the probe set is empty; give at least one sample, better 64 or more")
    if odd := next((one for one in samples if not isinstance(one, Sample)), None):
        raise InputError(f"the probe set holds something of type {type(odd).__name__}; give samples, or texts")
    missing = sum(sample.target is None for sample in samples)
    if 0 < missing < len(samples):
        raise InputError(
            f"{missing} of the {len(samples)} probe samples have no target; give all of them one, or none, and then no accuracy"
        )
    return samples


def prepare_probe(network: nn.Module, tokenizer: Any, samples: Sequence[Sample], focal_depth: int) -> Probe:
    """Prove the splice into the network that is trained, and encode the samples for it.

    Samples with a target are read at their answers, others at their last token. Raises InputError, ModelError and
    CertificateError.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase | ProcessorMixin):
        raise InputError("the trainer has no tokenizer to encode the probe set with; give it one as processing_class")
    with own_precision(unwrap(network)):
        model = load_model(network, tokenizer)
    if not 0 <= focal_depth < model.layers:
        raise InputError(
            f"focal depth {focal_depth} leaves no state to measure in the {model.layers} layers of {model.name}; give 0 to "
            f"{model.layers - 1}"
        )
    positions = "last" if samples[0].target is None else "answer"
    lettered = [letter_options(sample) if sample.options else sample for sample in samples]
    return Probe(model, HyperLens((focal_depth,)), tuple(encode_samples(lettered, model, positions)), positions)


def measure_probe(probe: Probe) -> Trajectory:
    """The trajectories of the probe set as the weights are now, with the model's own top token as reference.

    What is measured is what `trace` reads of the saved model: the weights in their own precision, no autocast, no dropout.
    """
    with own_precision(probe.model.network):
        return trace_encoded(probe.model, probe.encoded, probe.lens, probe.positions, "output", ("probability",), LIMITS)


@contextmanager
def kept_randomness() -> Iterator[None]:
    """All random states come back as they were: those of python, numpy, torch and its CUDA devices."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_cuda:
            torch.cuda.set_rng_state_all(on_cuda)


@contextmanager
def own_precision(network: PreTrainedModel) -> Iterator[None]:
    """The network's forward without the autocast that accelerate wraps around it for a training in mixed precision."""
    wrapped, own = network.__dict__.get("forward"), network.__dict__.get("_original_forward")
    if wrapped is None or own is None:
        yield
        return
    try:
        network.forward = own
        yield
    finally:
        network.forward = wrapped


def check_whole(network: nn.Module) -> None:
    """Raises ModelError where this process of a training holds only a part of the network."""
    if AcceleratorState().distributed_type.name in SHARDED or any(isinstance(one, DTensor) for one in network.parameters()):
        raise ModelError(
            f"{type(network).__name__} is sharded over processes, of which one alone cannot measure it; train it with plain "
            "data parallelism, or measure its checkpoints with trace"
        )
