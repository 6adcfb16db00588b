"""Which model it is: a hash of its weights and configuration, wherever and in whatever pieces the weights lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from hyperlens.errors import ModelError
from hyperlens.models.adapters import describe_adapters, plain_name

SAMPLED_VALUES = 256


def fingerprint_model(network: PreTrainedModel) -> str:
    """SHA-256 over names, shapes, dtypes and a fixed sample of values of all weights and the configuration.

    Equal on every device, from every file layout, and however the weights are spread; where they are sharded, all processes
    have to ask for it together. Adapters at work are part of it, those switched off are not. Reads `SAMPLED_VALUES` values of
    each tensor, evenly spread. Raises ModelError where a weight is not there.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_named_tensors(network), key=lambda pair: pair[0]):
        for part, values in _plain_parts(tensor):
            digest.update(f"{name}{part} {tuple(values.shape)} {values.dtype}\n".encode())
            digest.update(_sample(values))
    digest.update(json.dumps(_stable_config(network), sort_keys=True, default=str).encode())
    digest.update("".join(describe_adapters(network)).encode())
    return digest.hexdigest()


def _named_tensors(network: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Parameters, persistent buffers and what quantised weights keep beside them, by the names that they have without adapters.

    Not by `state_dict`: bitsandbytes repacks weights for it, and does so wrongly on some processors.
    """
    for path, module in network.named_modules(remove_duplicate=False):
        passing = module._non_persistent_buffers_set
        kept = {name: buffer for name, buffer in module._buffers.items() if name not in passing}
        for name, tensor in (module._parameters | kept).items():
            full = plain_name(network, f"{path}.{name}".lstrip("."))
            if tensor is None or full is None:
                continue
            for suffix, companion in _companions(module, tensor):
                yield f"{full}.{suffix}", companion
            yield full, fetch_weight(module, name, tensor)


def _companions(module: nn.Module, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The scales that bitsandbytes keeps beside a quantised weight."""
    if (state := getattr(weight, "quant_state", None)) is not None:
        yield from state.as_dict(packed=True).items()
    scales = getattr(weight, "SCB", None)
    scales = getattr(getattr(module, "state", None), "SCB", None) if scales is None else scales
    if scales is not None and weight.dtype == torch.int8:
        yield "SCB", scales


def fetch_weight(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """The tensor itself, or what accelerate keeps of it elsewhere. Raises ModelError where it is nowhere."""
    if tensor.device.type != "meta":
        return tensor
    hook = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        if (weights := getattr(each, "weights_map", None)) is not None:
            return weights[name]
    raise ModelError(f"the weight {name} of {type(module).__name__} is on the meta device, where nothing is; load the weights")


def _plain_parts(tensor: Tensor, part: str = "") -> Iterator[tuple[str, Tensor]]:
    """The ordinary tensors of which a sharded or quantised one is made."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    flatten: Any = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield part, tensor.detach()
        return
    for name in flatten()[0]:
        yield from _plain_parts(getattr(tensor, name), f"{part}.{name}")


def _sample(tensor: Tensor) -> bytes:
    """The bytes of some values of a tensor, evenly spread."""
    flat = tensor.reshape(-1)
    count = min(SAMPLED_VALUES, flat.numel())
    places = torch.linspace(0, max(flat.numel() - 1, 0), count, dtype=torch.float64).long().to(flat.device)
    values = flat[places].cpu().contiguous()
    return values.view(torch.uint8).numpy().tobytes() if count else b""


def _stable_config(network: PreTrainedModel) -> dict[str, Any]:
    """The configuration, less what depends on where and with what it was loaded."""
    passing = {"_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
    passing |= {"architectures"}  # written when the model is first saved
    passing |= {"distributed_config"}  # over how many processes it is spread
    config = network.config.to_dict()
    if "gguf_file" in (config.get("quantization_config") or {}):  # what the file is called; its weights are read as floats
        passing |= {"quantization_config"}
    return {key: value for key, value in config.items() if key not in passing and not key.startswith("_attn")}
