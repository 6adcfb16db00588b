"""One process of a replica: it holds a model, and reads one shard at a time."""

from __future__ import annotations

import gc
import os
import platform
import socket
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hyperlens.errors import ArtefactError, HyperLensError, HyperLensWarning, ModelError, first_sentence
from hyperlens.heap import keep_blocks
from hyperlens.runs.spec import Study
from hyperlens.runs.store import MANIFEST, Shard, Store


class Needs(NamedTuple):
    """What one replica takes: processes, and GPUs over all of them."""

    processes: int
    gpus: float


class Started(NamedTuple):
    """A process that is ready: the node that it is on, and its number there."""

    node: str
    process: int


@dataclass(frozen=True)
class Outcome:
    """What became of a shard: it was read, was there already ("done" too), is another process's, or the error that came."""

    state: Literal["done", "busy", "failed"]
    seconds: float = 0.0
    error: HyperLensError | None = None
    warnings: tuple[str, ...] = ()


class Worker:
    """One process of a replica: number `rank` of `size` that share each model."""

    def __init__(self, folder: Path, study: Study, home: str, threads: int, needs: Needs, rank: int) -> None:
        if needs.processes > 1 and not needs.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else all would be put on the same GPU
        with suppress(OSError):  # another node may not have it; then relative paths are not found, and said so
            os.chdir(home)
        keep_blocks()
        import torch

        torch.set_num_threads(min(threads, len(list_cores())))
        self.rank, self.size = rank, needs.processes
        self.store = (_SharedStore if self.size > 1 else Store)(folder, study)
        self.reader: Any = None
        self.samples: dict[int, list[Any]] = {}

    def listen(self) -> tuple[str, int]:
        """Where the processes of this replica may meet: this node, and a port that is free."""
        import ray

        with socket.socket() as opened:
            opened.bind(("", 0))
            return ray.util.get_node_ip_address(), opened.getsockname()[1]

    def start(self, meeting: tuple[str, int]) -> Started:
        """Meet the other processes of the replica, if there are any."""
        import ray

        if self.size > 1:
            self._meet(*meeting)
        return Started(ray.get_runtime_context().get_node_id(), os.getpid())

    def measure(self, place: int, claimed: bool, batch_tokens: int) -> Outcome:
        """Read shard number `place` and save it, unless it is there; with a claim on it, or beside the process that has it."""
        if not (self.store.folder / MANIFEST).exists():
            where = f"{self.store.folder} is not to be found on node {platform.node()}"
            return Outcome("failed", error=ArtefactError(f"{where}; choose a folder that all nodes share with --out"))
        shard = self.store.shards[place]
        with warnings.catch_warnings(record=True) as caught, self._claim(shard, claimed) as mine:
            warnings.simplefilter("always")
            state = _agree(self.size, "busy" if not mine else "open" if self.store.entry(shard) is None else "done")
            try:
                outcome = self._read(shard, batch_tokens) if state == "open" else Outcome(state)
            except HyperLensError as error:
                outcome = Outcome("failed", error=error)
        said = tuple(str(one.message) for one in caught if isinstance(one.message, HyperLensWarning))
        return replace(outcome, warnings=said)

    def _claim(self, shard: Shard, claimed: bool) -> Any:
        return self.store.claim(shard) if claimed and self.rank == 0 else nullcontext(True)

    def _open(self, number: int) -> Any:
        """The reader of a model, in place of that of another."""
        from hyperlens.runs.measure import open_reader

        if self.reader is None or self.reader.number != number:
            self.reader = None
            gc.collect()
            given = _load_shared(self.store.study, number) if self.size > 1 else None
            self.reader = open_reader(self.store, number, given)
        return self.reader

    def _read(self, shard: Shard, batch_tokens: int) -> Outcome:
        from hyperlens.runs.measure import measure_shard

        reader, task = self._open(shard.cell.model), shard.cell.task
        self.samples = self.samples if task in self.samples else {task: self.store.samples(task)}
        if batch_tokens != self.store.study.batch_tokens:
            study = replace(self.store.study, batch_tokens=batch_tokens)
            reader = replace(reader, store=replace(self.store, study=study))
        began = time.perf_counter()
        measure_shard(reader, shard, self.samples[task])
        return Outcome("done", time.perf_counter() - began)

    def _meet(self, host: str, port: int) -> None:
        import torch

        environment = {"MASTER_ADDR": host, "MASTER_PORT": port, "RANK": self.rank, "WORLD_SIZE": self.size, "LOCAL_RANK": 0}
        os.environ.update({name: str(value) for name, value in environment.items()})
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


class _SharedStore(Store):
    """The store of processes that share a model: all see what the first sees, and only the first writes."""

    def model(self, number: int) -> dict[str, Any] | None:
        return _agree(2, super().model(number))

    def add_model(self, number: int, document: Mapping[str, Any], keep: bool = False) -> None:
        if _is_first():
            super().add_model(number, document, keep)

    def add_shard(self, shard: Shard, tables: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
        if _is_first():
            super().add_shard(shard, tables, entry)


def _agree(size: int, value: Any) -> Any:
    """What the first of the processes that share a model says."""
    if size == 1:
        return value
    import torch.distributed

    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def _is_first() -> bool:
    import torch.distributed

    return torch.distributed.get_rank() == 0


def _load_shared(study: Study, number: int) -> Any:
    """A model whose matrices are cut over the processes of a replica. Raises ModelError."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.distributed.configuration_utils import DistributedConfig

    from hyperlens.models import REFERENCE, REFERENCE_FOLDER, load_model

    spec = study.models[number]
    source = study.locate_model(spec.source)
    where: Any = REFERENCE_FOLDER if source == REFERENCE and not Path(source).is_dir() else source
    options: dict[str, Any] = {"revision": spec.revision or None, "trust_remote_code": spec.trust_remote_code}
    cut = DistributedConfig(tp_size=spec.tensor_parallel)
    try:
        network: Any = AutoModelForCausalLM.from_pretrained(
            where, distributed_config=cut, dtype=spec.dtype, use_safetensors=True, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
    except Exception as error:  # each model's plan has its own way not to fit
        reason = f"model {spec.name} cannot be cut over {spec.tensor_parallel} devices ({first_sentence(error)})"
        raise ModelError(f'{reason}; give it device_map = "auto" instead') from None
    return load_model(network.eval(), tokenizer)


def list_cores() -> Sequence[int]:
    """The cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
