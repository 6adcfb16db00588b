"""One process of several that share a model: loads it cut in each way, traces, and writes what it found, for test_loading.py.

python -m torch.distributed.run --nproc-per-node 2 tests/distributed.py FOLDER OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.distributed import DistributedConfig

import hyperlens

KINDS = ("tensor", "fsdp")
PROMPTS = ["w20 w30 w40 w21 w22 w33", "w50 w60"]


def read(model: hyperlens.Model) -> list[Any]:
    """The trajectories of the prompts in both contexts."""
    lenses = [hyperlens.HyperLens((0, 2), context) for context in ("jump", "cached")]
    return [hyperlens.trace(model, PROMPTS, lens, "all").to_numpy().tolist() for lens in lenses]


def load_sharded(kind: str, folder: str) -> PreTrainedModel:
    """The model in pieces: by transformers' tensor parallelism, or by PyTorch's FSDP2."""
    if kind == "tensor":
        return AutoModelForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(tp_size=dist.get_world_size()))
    network: Any = AutoModelForCausalLM.from_pretrained(folder)
    for layer in network.model.layers:
        fully_shard(layer)
    return fully_shard(network)


def measure(kind: str, folder: str) -> dict[str, Any]:
    """What is found of the model in pieces of this kind."""
    network = load_sharded(kind, folder)
    sharded = sum(isinstance(parameter, DTensor) for parameter in network.parameters())
    model = hyperlens.load_model(network, AutoTokenizer.from_pretrained(folder))
    found = {"sharded": sharded, "fingerprint": model.fingerprint, "contexts": model.certificate.contexts}
    return found | {"error": model.certificate.max_error, "way": model.certificate.way, "read": read(model)}


def main(folder: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        for kind in KINDS:
            Path(out, f"{kind}-{dist.get_rank()}.json").write_text(json.dumps(measure(kind, folder)))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
