"""A model that is ready to be read: loaded or taken as it is, its splice proved, named by what it is."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from hyperlens.certificate import Certificate, certify
from hyperlens.errors import ModelError
from hyperlens.heap import give_back
from hyperlens.models.adapters import name_adapters, set_aside, unwrap
from hyperlens.models.fingerprint import fingerprint_model
from hyperlens.models.loading import load_network
from hyperlens.models.precision import explain_outliers
from hyperlens.splice import Splice


@dataclass(frozen=True)
class Model:
    """A model that is ready to be read: its network and tokenizer as they are, the splice into it, and the proof of it.

    `name` is what it was loaded by, `fingerprint` what it is: equal for equal weights and configuration, on any device.
    `processor` turns texts with images into what the model takes; None where it takes only text, or came without one.
    """

    network: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase | None = field(repr=False)
    name: str
    splice: Splice = field(repr=False)
    certificate: Certificate = field(repr=False)
    fingerprint: str
    processor: ProcessorMixin | None = field(default=None, repr=False)

    @property
    def layers(self) -> int:
        """Number of decoder layers L."""
        return self.splice.depth


def load_model(
    source: str | os.PathLike[str] | nn.Module,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin | None = None,
    dtype: str = "auto",
    device: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Load from a folder, a .gguf file, a hub id, the name "reference" (the model that comes with us), or a loaded model.

    The folder or hub id may be that of an adapter, such as LoRA: then its base is loaded too. Weights are read from
    safetensors or GGUF only. Remote code runs only where `trust_remote_code` is asked for with a pinned `revision` (a full
    commit). `dtype` is "auto" (as saved), "float32", "bfloat16" or "float16", or quantises linear layers, the rest as saved:
    "int8" and "nf4" (bitsandbytes), "torchao-int8". `device_map` spreads the model ("auto", a dict of modules, "disk"). A model
    already loaded, compiled, sharded or with an adapter keeps its own dtype and devices, and may come without a `tokenizer`
    (then token ids are traced, not texts), or with a processor in its place (then texts may have images). Raises ModelError
    where it cannot be loaded, CertificateError where its lens would not be the model's own output.
    """
    model = _load(source, tokenizer, dtype, device, device_map, revision, trust_remote_code)
    model.certificate.require("jump")
    return model


def check_model(source: str | os.PathLike[str] | nn.Module, **options: Any) -> Certificate:
    """The certificate of a model, passed or not; `options` as for `load_model`. Raises ModelError where it does not load."""
    choices = {name: parameter.default for name, parameter in inspect.signature(load_model).parameters.items()}
    return _load(**{**choices, "source": source, **options}).certificate


@contextmanager
def disable_adapters(model: Model) -> Iterator[Model]:
    """The base of a model with adapters, for a while: proved anew, with the fingerprint that it has alone.

    Other users of the same network see the base too, until the adapters are put back. Raises ModelError where there is no
    adapter, or one that cannot be taken off: merged into the weights, or with biases of its own.
    """
    with model.splice.lock, set_aside(model.network, model.name):
        name = re.sub(r" \(adapter [^()]*\)$", "", model.name)
        base = _prepare(model.network, model.processor or model.tokenizer, f"{name} (adapter off)")
        base.certificate.require("jump")
        yield base


def _load(
    source: str | os.PathLike[str] | nn.Module,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin | None,
    dtype: str,
    device: str | None,
    device_map: str | dict[str, Any] | None,
    revision: str | None,
    trust_remote_code: bool,
) -> Model:
    """What `load_model` gives, whether or not the certificate was passed."""
    if isinstance(source, nn.Module):
        network = unwrap(source)
        return _prepare(network, tokenizer, (network.config.name_or_path or type(network).__name__) + name_adapters(network))
    name, network, tokenizer = load_network(source, tokenizer, dtype, device, device_map, revision, trust_remote_code)
    return _prepare(network, tokenizer, name)


def _prepare(network: PreTrainedModel, reader: PreTrainedTokenizerBase | ProcessorMixin | None, name: str) -> Model:
    """Splice, name and prove a loaded network; named first, since the first use repacks some quantised weights."""
    if getattr(network.config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder ({type(network).__name__}); HyperLens reads decoder-only models")
    fingerprint, splice = fingerprint_model(network), Splice(network)
    processor = reader if isinstance(reader, ProcessorMixin) else None
    tokenizer: Any = reader if processor is None else getattr(processor, "tokenizer", None)
    certificate = certify(splice)
    give_back()
    if not certificate.certified:
        certificate = replace(certificate, reason=f"{certificate.reason}{explain_outliers(network)}")
    return Model(network, tokenizer, name, splice, certificate, fingerprint, processor)
