"""In what precision a model is loaded: a dtype for all of it, or linear layers quantised by a library that is an extra."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import torch
from transformers import BitsAndBytesConfig, GgufConfig, PreTrainedModel, TorchAoConfig

from hyperlens.errors import NO_EXTRA, InputError, ModelError
from hyperlens.models.quiet import quiet

DTYPES: dict[str, Any] = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTISED = {"int8": "bitsandbytes", "nf4": "bitsandbytes", "torchao-int8": "torchao"}
"""Ways to quantise at load, and the extra that each needs."""


def require_extra(package: str, what: str, extra: str = "") -> Any:
    """The optional `package`. Raises ModelError, which says with which `extra` of ours to install it, where it is not there."""
    try:
        with quiet():
            return importlib.import_module(package)
    except ImportError:
        raise ModelError(NO_EXTRA.format(what, package, extra or package)) from None


def choose_precision(dtype: str, name: str, config: Any, gguf: bool = False) -> dict[str, Any]:
    """What from_pretrained is told of `dtype`. Raises InputError where the model is quantised already, ModelError as above."""
    if gguf:
        if dtype in QUANTISED:
            raise InputError(f"{name} is GGUF, which is not quantised again; choose float32, bfloat16 or float16")
        return {
            "dtype": torch.float32 if dtype == "auto" else DTYPES[dtype],
            "quantization_config": GgufConfig(dequantize=True),
        }
    saved = getattr(config, "quantization_config", None)
    method = None if saved is None else str(saved.get("quant_method") if isinstance(saved, dict) else saved.quant_method)
    if dtype in QUANTISED:
        if method is not None:
            raise InputError(f"{name} is quantised already ({method}); leave its dtype at auto")
        require_extra(QUANTISED[dtype], f'dtype "{dtype}"')
        return {"dtype": "auto", "quantization_config": _recipe(dtype)}
    if method is not None and method in QUANTISED.values():
        require_extra(method, f"{name}, which is quantised,")
    return {"dtype": DTYPES[dtype]}


def finish_quantised(network: PreTrainedModel, dtype: str, name: str) -> None:
    """Make quantised layers give the same whenever they are asked. Raises ModelError where none was quantised."""
    if dtype in QUANTISED and not any(_is_quantised(parameter) for parameter in network.parameters()):
        raise ModelError(f'dtype "{dtype}" knows none of the layers of {name}; choose another dtype, such as bfloat16')
    module: Any
    for module in network.modules():
        # On some processors bitsandbytes repacks 4-bit weights when they are first used: rounded to 16 bit, not for all sizes,
        # and spoilt by the next state_dict.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if getattr(network, "is_loaded_in_8bit", False):
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_passes)


def explain_outliers(network: PreTrainedModel) -> str:
    """Why int8 layers that a user loaded may not be exact; nothing where they are as we load them."""
    if not any(getattr(getattr(module, "state", None), "threshold", 0) > 0 for module in network.modules()):
        return ""
    return (
        "; its int8 layers keep columns with outliers in 16 bit, so that what a token gives depends on the others of its "
        "batch: load it with llm_int8_threshold=0"
    )


def _recipe(dtype: str) -> Any:
    if dtype == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    if dtype == "int8":
        # A threshold would keep in 16 bit each column in which any token of the batch has an outlier: what a token gives
        # would depend on the other texts of its batch.
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return TorchAoConfig(importlib.import_module("torchao.quantization").Int8WeightOnlyConfig())


def _is_quantised(parameter: torch.Tensor) -> bool:
    return not parameter.is_floating_point() or hasattr(parameter, "__tensor_flatten__")


def _passes(record: logging.LogRecord) -> bool:
    """Drops what bitsandbytes says at each product of float32: that it casts its input."""
    return not record.getMessage().startswith("MatMul8bitLt: inputs will be cast")
