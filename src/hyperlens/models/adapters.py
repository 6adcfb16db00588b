"""Adapters, such as LoRA, on a loaded network: found by what their layers know of themselves, not by importing PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hyperlens.errors import ModelError

_WRAPPED = ("base_layer", "original_module", "token_adapter")
"""What PEFT calls the module of the base inside one of its own."""


def unwrap(source: nn.Module) -> PreTrainedModel:
    """The network inside what `torch.compile` or PEFT made of it; its layers carry the adapter. Raises ModelError."""
    inner: Any = source
    while not isinstance(inner, PreTrainedModel):
        if "_orig_mod" in inner._modules:
            inner = inner._orig_mod
        elif hasattr(inner, "get_base_model") and hasattr(inner, "active_peft_config"):
            if inner.active_peft_config.is_prompt_learning:
                kind = inner.active_peft_config.peft_type.value
                raise ModelError(
                    f"the adapter is of kind {kind}, which adds to the text; give one inside the layers, such as LoRA"
                )
            inner = inner.get_base_model()
        else:
            raise ModelError(f"{type(source).__name__} is no model of transformers; give one that from_pretrained loaded")
    return inner


def name_adapters(network: PreTrainedModel) -> str:
    """ " (adapter default)", or nothing where there is none at work."""
    active = sorted({name for module in _adapter_modules(network).values() if _live(module) for name in _active(module)})
    return f" (adapter {', '.join(active)})" if active else ""


def describe_adapters(network: PreTrainedModel) -> list[str]:
    """Of each module with an adapter at work: where it is, which is active, and how strong."""
    live = {path: module for path, module in sorted(_adapter_modules(network).items()) if _live(module)}
    return [
        f"{plain_name(network, path)} {[(name, getattr(module, 'scaling', {}).get(name)) for name in _active(module)]}\n"
        for path, module in live.items()
    ]


def plain_name(network: PreTrainedModel, name: str) -> str | None:
    """The name that a weight has without adapters around it; None for a weight of an adapter that is not at work."""
    module: Any = network
    kept = []
    for part in name.split("."):
        if _is_adapter(module):
            if part not in _WRAPPED and not _live(module):
                return None
            kept += [] if part in _WRAPPED else [part]
        else:
            kept.append(part)
        module = getattr(module, part)
    return ".".join(kept)


def save_network(network: Any, folder: Path) -> None:
    """Save a network, or of an adapted one its adapter, and the embedding if that was trained too.

    PEFT would ask the hub whether the base has as many tokens; nobody is asked here.
    """
    options: dict[str, Any] = {}
    if getattr(network, "peft_config", None) is not None and not isinstance(network, PreTrainedModel):
        embedding = network.get_base_model().get_input_embeddings()
        trained = isinstance(embedding, nn.Embedding) and embedding.weight.requires_grad
        options = {"save_embedding_layers": trained}
    network.save_pretrained(folder, **options)


@contextmanager
def set_aside(network: PreTrainedModel, name: str) -> Iterator[None]:
    """Switch off all adapters of `network`, and put everything back. Raises ModelError where that does not give the base."""
    modules = _adapter_modules(network)
    _check_removable(network, modules, name)
    working = [module for module in modules.values() if not module.disable_adapters]
    needs = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        for module in working:
            module.enable_adapters(False)
        yield
    finally:
        for module in working:
            module.enable_adapters(True)
        for parameter, needed in needs:
            parameter.requires_grad_(needed)


def _check_removable(network: PreTrainedModel, modules: dict[str, Any], name: str) -> None:
    if not modules:
        raise ModelError(f"{name} has no adapter that could be switched off; load the folder of an adapter, or a PeftModel")
    if any(module.merged_adapters for module in modules.values()):
        raise ModelError(f"the adapter of {name} is merged into its weights; call unmerge_adapter, or load it again")
    configs = getattr(network, "peft_config", {}).values()
    if any(getattr(config, "bias", "none") not in ("none", False) for config in configs):
        raise ModelError(f"the adapter of {name} changed biases of the base, which stay when it is off; load the base itself")


def _adapter_modules(network: PreTrainedModel) -> dict[str, Any]:
    return {path: module for path, module in network.named_modules() if _is_adapter(module)}


def _is_adapter(module: nn.Module) -> bool:
    return hasattr(type(module), "merged_adapters") and hasattr(type(module), "disable_adapters")


def _live(module: Any) -> bool:
    """Whether its adapter takes part: not switched off, and not merged into the base's weight."""
    return not module.disable_adapters and not module.merged_adapters


def _active(module: Any) -> list[str]:
    return list(module.active_adapters)
