"""The original package (tuned-lens 0.2.0) and ours, ready to be run on the same models: a training step of each.

Its command line no longer starts, since `torchdata.dataloader2` is gone; `peers_ways/original_step.py` runs its training step.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from peers_ways.original_step import prepare_step
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, PreTrainedModel

import hyperlens as hl
from hyperlens.lenses import Translators
from hyperlens.splice import Inputs, Probes, at_rest
from hyperlens.training.distillation import autocasting, distil_batch

PACKAGES = ("tuned-lens==0.2.0", "simple-parsing", "docstring-parser")
SHARED = Path(os.environ.get("HYPERLENS_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "models"
TRAINED = ("stories260K", "bitllama_3M")
BATCH, LENGTH = 8, 128


@dataclass(frozen=True)
class Original:
    """The original package: its module of lenses."""

    nn: Any

    @classmethod
    def find(cls, folder: Path) -> Original:
        """Install it where it is not, and import it."""
        if not (folder / "tuned_lens").is_dir():
            call = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
            subprocess.run(call, check=True, stdout=sys.stderr)
        sys.path.insert(0, str(folder))
        surgery: Any = import_module("tuned_lens.model_surgery")
        known = surgery.get_final_norm
        surgery.get_final_norm = lambda model: model.base_model.norm if model.config.model_type == "bitnet" else known(model)
        return cls(import_module("tuned_lens.nn"))

    def make_lens(self, network: PreTrainedModel, translators: Translators | None = None) -> Any:
        """Its lens of a model, with its own translators (zeros) or those given."""
        lens = self.nn.TunedLens.from_model(network)
        if translators is not None and translators.bias is not None:
            with torch.no_grad():
                for number, layer in enumerate(lens):
                    layer.weight.copy_(translators.weight[number])
                    layer.bias.copy_(translators.bias[number])
        return lens

    def prepare_step(
        self, network: PreTrainedModel, lens: Any, ids: Tensor, optimiser: str, autocast: bool
    ) -> Callable[[], None]:
        """One training step of its own, as often as it is called; an optimiser "none" leaves the gradients."""
        return prepare_step(network, lens, ids, optimiser, autocast)


def prepare_ours(
    model: hl.Model, translators: Translators, ids: Tensor, optimiser: str, autocast: str | None = None
) -> Callable[[], None]:
    """One training step of ours on the `translators`, as often as it is called."""
    assert translators.bias is not None
    leaves = [translators.weight.requires_grad_(), translators.bias.requires_grad_()]
    chosen = torch.optim.AdamW(leaves, lr=1e-3, weight_decay=1e-3)
    inputs, probes = Inputs(ids), all_probes(ids)

    def run() -> None:
        with model.splice.lock, at_rest(model.network, gradients=True), autocasting(model.splice, autocast):
            distil_batch(model.splice, translators, inputs, probes, 0, hl.Limits(), 1.0)
            torch.nn.utils.clip_grad_norm_(leaves, 1.0)
            if optimiser != "none":
                chosen.step()
                chosen.zero_grad(set_to_none=False)

    return run


def all_probes(ids: Tensor) -> Probes:
    """Every position of every text."""
    return Probes(*torch.ones_like(ids).nonzero().unbind(1))


def small_models() -> Iterator[tuple[str, PreTrainedModel]]:
    """Random models of three families, and the trained ones where they are."""
    shape: dict[str, Any] = {"vocab_size": 96, "num_attention_heads": 4}
    wide: dict[str, Any] = shape | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6}
    configs = {
        "llama": LlamaConfig(**wide),
        "gpt_neox": GPTNeoXConfig(**wide),
        "gpt2": GPT2Config(vocab_size=96, n_head=4, n_embd=32, n_layer=6),
    }
    for name, config in configs.items():
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for part in network.parameters():
                part.mul_(3.0) if part.ndim > 1 else part.add_(0.3 * torch.randn_like(part))
        yield name, network
    for name in TRAINED:
        if (SHARED / name).is_dir():
            yield name, AutoModelForCausalLM.from_pretrained(SHARED / name).eval()


def draw_translators(states: int, width: int, seed: int = 1) -> Translators:
    """Random translators that change each state by about a tenth of it."""
    generator = torch.Generator().manual_seed(seed)
    weight = 0.1 * torch.randn(states, width, width, generator=generator) / width**0.5
    return Translators(weight, 0.1 * torch.randn(states, width, generator=generator))


def draw_ids(network: PreTrainedModel, rows: int = 2, tokens: int = 24) -> Tensor:
    """Random token ids."""
    return torch.randint(3, network.config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(2))
