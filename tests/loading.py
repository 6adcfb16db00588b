"""What the tests of loading share: prompts, how a loaded model is read, and what a refusal is."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import build_tokenizer
from sentences import is_one_sentence

from hyperlens.lenses import HyperLens
from hyperlens.models import Model, load_model
from hyperlens.models.quiet import quiet
from hyperlens.tasks import Sample
from hyperlens.tracing import trace

SAMPLES = [Sample("w20 w30 w40 w21 w22", " w33"), Sample("w50 w60", " w11 w12")]
STORIES = [Sample("Once upon a time there was a little", " girl named Lily"), Sample("The dog ran to the", " park")]
CONTEXTS = ("jump", "cached")
LAYERS_ON_DISK = {f"model.layers.{number}": "disk" if number > 2 else "cpu" for number in range(6)}
ALL_QUANTISED = [("int8", "bitsandbytes"), ("nf4", "bitsandbytes"), ("torchao-int8", "torchao")]
SPREAD = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk", **LAYERS_ON_DISK}


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed; it is an extra")


# What PEFT itself calls when it wraps a model, and what we call to see that it does no harm.
deprecated = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")


def save(network: Any, folder: Path) -> Path:
    """`folder`, with the network and a tokenizer in it; drawing no bars, which are not what is tested."""
    with quiet():
        network.save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
    return folder


def read(model: Model, context: str = "jump", samples: list[Sample] = SAMPLES) -> np.ndarray:
    """Probabilities of the targets, whatever the model would say itself."""
    return np.nan_to_num(trace(model, samples, HyperLens((0, 2), context)).to_numpy())


def difference(model: Model, other: Model, samples: list[Sample] = SAMPLES) -> float:
    """The largest difference of any probability, in both contexts."""
    assert model.certificate.contexts == other.certificate.contexts == CONTEXTS
    return max(float(np.abs(read(model, way, samples) - read(other, way, samples)).max()) for way in CONTEXTS)


def refused(source: Any, kind: type[Exception], words: str, **options: Any) -> None:
    """`source` is refused with an error of exactly this kind, in one sentence with these words."""
    with pytest.raises(kind, match=words) as caught:
        load_model(source, **options)
    assert caught.type is kind
    assert is_one_sentence(str(caught.value)), str(caught.value)
