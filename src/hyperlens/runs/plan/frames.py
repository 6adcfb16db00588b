"""A model without its weights: built from its configuration on torch's meta device, and measured there."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from hyperlens.anatomy import Anatomy, call_parameters, token_embedding
from hyperlens.certificate import Certificate
from hyperlens.configuration import attention_widths, text_config
from hyperlens.errors import ModelError, first_sentence
from hyperlens.models import Model, loading
from hyperlens.models.quiet import quiet
from hyperlens.runs.plan.estimates import Number
from hyperlens.runs.spec import ModelSpec, Study
from hyperlens.splice import Splice

SIGNS_OF_A_TOKEN = 4
"""Characters of a token, where no tokenizer is at hand."""
TOKENIZER = re.compile(r"tokenizer|vocab|spiece|sentencepiece|merges|.*\.(model|tiktoken)$")
"""The names of files that a tokenizer is read from."""
KEYS = re.compile(r"(^|[._])(k|v|kv|qkv|Wqkv|c_attn|in|key|value|query_key_value)(_|\.|$)|attn.*in_proj")
"""The names of matrices that keys and values are made with, alone or together with queries."""
BYTES_OF_WEIGHT = {"int8": 1.0, "torchao-int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Of a weight of a quantised layer; nf4 keeps a scale of float32 for each 64."""


class Unloaded(Splice):
    """A splice of a network without weights, which cannot be watched at work: what encoding and batching ask of one."""

    def __init__(self, network: Any, layers: tuple[Any, ...], dtype: torch.dtype, home: str) -> None:
        self.home = home
        self.model, self.config, self.layers, self.depth = network, text_config(network), layers, len(layers)
        width = getattr(self.config, "hidden_size", token_embedding(network).weight.shape[1])
        order = tuple(range(self.depth))
        self.anatomy = Anatomy(layers, order, (0, 1), (width,), dtype, (None,) * self.depth)
        self.way, self.end_proved, self.prefix_proved = "bypass", False, True
        self.parameters = call_parameters(network)

    @property
    def device(self) -> torch.device:
        """Where the model will be."""
        return torch.device(self.home)

    @property
    def dtype(self) -> torch.dtype:
        """What the layers compute in."""
        return self.anatomy.dtype


@dataclass(frozen=True)
class Frame:
    """A model without its weights: what encoding and batching ask of one, and the sizes that arithmetic and memory follow from.

    `matrices` has the matrix parameters of each layer that one token passes, `narrow` how many of the last layer's only rows
    that are read pass (all but those that keys and values are made with, told by their names), `few_queries` whether they
    alone are compared with the others there, `attention` the width of each layer's queries (0 where a layer does not compare
    tokens with all others), `kept` the keys and values that each layer keeps of a token.
    """

    model: Model = field(repr=False)
    config: Any = field(repr=False)
    parameters: int
    active_parameters: int
    matrices: tuple[Number, ...] = field(repr=False)
    narrow: Number
    few_queries: bool
    attention: tuple[Number, ...] = field(repr=False)
    kept: tuple[Number, ...] = field(repr=False)
    head: int
    weights_bytes: int
    largest_layer_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> int:
        """Number of decoder layers L."""
        return len(self.matrices)

    def count_pass(self, rows: Number, tokens: Number, keys: Number, start: int = 0, read: Number | None = None) -> Number:
        """Operations of `rows` texts of so many `tokens`, each of which sees `keys`, through the layers after `start`.

        Two for each weight of a matrix and token; 4 × keys × width for the scores and the sum of values, all of them counted,
        also those behind a causal mask or a window. Where no more than half of all tokens are `read`, the others are left out
        of what is narrow in the last layer.
        """
        whole = rows * tokens * (2 * sum(self.matrices[start:]) + 4 * keys * sum(self.attention[start:]))
        spared = rows * tokens - read if read is not None and 2 * read <= rows * tokens and start < self.layers else 0
        return whole - spared * (2 * self.narrow + 4 * keys * self.attention[-1] * self.few_queries)


def frame_model(study: Study, spec: ModelSpec) -> Frame:
    """A model of the study without its weights, from its configuration and tokenizer. Raises ModelError and InputError."""
    place = _find_place(study.locate_model(spec.source), spec)
    loading._check_choices(spec.dtype, spec.device_map or None, None)
    loading._check_remote_code(place)
    adapter = loading._read_adapter(place)
    base = place if adapter is None else loading._locate_base(place, adapter)
    config = loading._load_config(base)
    dtype = _find_dtype(spec, config, "gguf_file" in base.options)
    architect = AutoModelForImageTextToText if loading.takes_images(config) else AutoModelForCausalLM
    code = {"trust_remote_code": True} if spec.trust_remote_code else {}
    try:
        with quiet(), torch.device("meta"):
            network = architect.from_config(config, dtype=dtype, **code).eval()
    except Exception as error:  # each model has its own way to refuse a configuration
        raise ModelError(
            f"{spec.name} cannot be planned, since its configuration builds no model ({first_sentence(error)})"
        ) from None
    notes = ["the adapter's own weights are not counted"] if adapter is not None else []
    tokenizer = _find_tokenizer(loading._with_tokenizer(place, base))
    if tokenizer is None:
        notes.append(f"no tokenizer is at hand: a token is taken for {SIGNS_OF_A_TOKEN} characters")
    return measure_frame(spec, base.folder, network, text_config(network), tokenizer, dtype, notes)


def name_device(spec: ModelSpec) -> str:
    """Where a model will be."""
    cut = spec.tensor_parallel > 1 and spec.gpus > 0
    spread = spec.device_map == "auto" and (spec.gpus > 0 or torch.cuda.is_available())
    return spec.device or ("cuda" if cut or spread else "cpu")


def _find_place(source: str, spec: ModelSpec) -> Any:
    """Where a model is; a folder needs no weights for a plan."""
    options = {
        "revision": spec.revision or None,
        "code_revision": spec.revision or None,
        "trust_remote_code": spec.trust_remote_code,
    }
    folder = Path(source).expanduser()
    if (folder / "config.json").is_file():
        return loading.Place(source, str(folder), options)
    return loading._locate(source, spec.revision or None, spec.trust_remote_code)


def _find_tokenizer(place: loading.Place) -> Any:
    """The tokenizer of a model; None where there is none. A folder without its files would give one of no words."""
    files = [] if place.folder is None else [one for one in place.folder.iterdir() if one.suffix != ".safetensors"]
    if place.folder is not None and "gguf_file" not in place.options and not any(TOKENIZER.match(one.name) for one in files):
        return None
    try:
        return loading._load_tokenizer(place)
    except ModelError:
        return None


def _find_dtype(spec: ModelSpec, config: Any, gguf: bool) -> torch.dtype:
    """What a model computes in: as the study says, else as it was saved."""
    if spec.dtype in ("float32", "bfloat16", "float16"):
        return getattr(torch, spec.dtype)
    saved = getattr(config, "dtype", None) or getattr(config.get_text_config(decoder=True), "dtype", None)
    return torch.float32 if gguf or saved is None else saved


def measure_frame(
    spec: ModelSpec, folder: Path | None, network: Any, config: Any, tokenizer: Any, dtype: torch.dtype, notes: list[str]
) -> Frame:
    """The sizes of a network on the meta device."""
    layers = _find_layers(spec, network, config)
    splice = Unloaded(network, layers, dtype, name_device(spec))
    certificate = Certificate(type(network).__name__, len(layers), True, "bypass", ("jump", "cached"), None, None)
    certificate = replace(certificate, cached_form="rows", paddings=("right", "left"))
    share, said = _active_share(network, config)
    parameters = sum(one.numel() for one in network.parameters())
    passed = [sum(one.numel() * share(name) for name, one in layer.named_parameters()) for layer in layers]
    whole = [sum(one.numel() for one in layer.parameters()) for layer in layers]
    matrices = [sum(one.numel() * share(name) for name, one in layer.named_parameters() if one.ndim > 1) for layer in layers]
    queries, kept = attention_widths(config)
    sees = _compares(config, len(layers))
    weights, largest, more = _weigh(spec, folder, network, layers, dtype)
    output = network.get_output_embeddings()
    head = network.get_input_embeddings().weight if output is None else output.weight
    return Frame(
        Model(network, tokenizer, spec.name, splice, certificate, ""),
        config,
        parameters,
        round(parameters - sum(whole) + sum(passed)),
        tuple(matrices),
        _count_narrow(layers[-1], share) if sees[-1] else 0,
        config._attn_implementation == "sdpa",
        tuple(queries * one for one in sees),
        tuple(kept * one for one in sees),
        head.numel(),
        weights,
        largest,
        tuple([*notes, *said, *more]),
    )


def _find_layers(spec: ModelSpec, network: Any, config: Any) -> tuple[Any, ...]:
    """The decoder layers: the list of modules as long as the configuration says, the heaviest of those. Raises ModelError."""
    count = getattr(config, "num_hidden_layers", None)
    lists = [one for one in network.modules() if isinstance(one, torch.nn.ModuleList) and len(one) == count]
    if not lists:
        raise ModelError(
            f"{spec.name} cannot be planned, since it has no list of {count} layers; run it on a small --limit instead"
        )
    return tuple(max(lists, key=lambda one: sum(part.numel() for part in one.parameters())))


def _active_share(network: Any, config: Any) -> tuple[Callable[[str], Number], list[str]]:
    """What share of a parameter, by its name, one token passes: all of it, but for the experts that it is not sent to."""
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    experts = next((value for name in names if isinstance(value := getattr(config, name, None), int) and value > 1), None)
    routed = [name for name, _ in network.named_parameters() if ".experts." in name]
    if not routed:
        return (lambda name: 1.0), []
    names = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts", "moe_k")
    chosen = next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)
    if experts is None or chosen is None:
        return (lambda name: 1.0), ["how many experts a token passes is not known: all are counted"]
    return (lambda name: chosen / experts if ".experts." in f".{name}" else 1.0), []


def _count_narrow(layer: torch.nn.Module, share: Callable[[str], Number]) -> Number:
    """Of a layer's matrix parameters that one token passes, those that keys and values are not made with."""
    matrices = ((name, one.numel() * share(name)) for name, one in layer.named_parameters() if one.ndim > 1)
    return sum(count for name, count in matrices if not KEYS.search(name))


def _compares(config: Any, layers: int) -> list[bool]:
    """Which layers compare a token with those before it."""
    kinds = getattr(config, "layer_types", None) or ["attention"] * layers
    return [not any(word in str(kind) for word in ("linear", "mamba", "conv", "recurrent")) for kind in kinds]


def _weigh(
    spec: ModelSpec, folder: Path | None, network: Any, layers: tuple[Any, ...], dtype: torch.dtype
) -> tuple[int, int, list[str]]:
    """Bytes of the weights and of the largest layer, and what was assumed."""
    total = sum(one.numel() for one in network.parameters())
    matrices = [sum(one.numel() for one in layer.parameters() if one.ndim > 1) for layer in layers]
    largest = max(sum(one.numel() for one in layer.parameters()) for layer in layers)
    each = BYTES_OF_WEIGHT.get(spec.dtype, dtype.itemsize)
    if getattr(network.config, "quantization_config", None) is not None:
        files = [] if folder is None else list(folder.glob("*.safetensors"))
        if files:
            saved = sum(file.stat().st_size for file in files)
            return saved, saved * largest // total, []
        note = "it was saved quantised, and its files are not here: its weights are counted as if they were not"
        return total * dtype.itemsize, largest * dtype.itemsize, [note]
    weights = sum(matrices) * each + (total - sum(matrices)) * dtype.itemsize
    return round(weights), round(largest * each), []
