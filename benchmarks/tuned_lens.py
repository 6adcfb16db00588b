"""The original package (tuned-lens 0.2.0) beside ours: the same logits, the same gradients, and tokens per second of a step.

`python benchmarks/tuned_lens.py --original FOLDER` prints JSON; the package is installed into FOLDER where it is missing.
Its command line no longer starts, since `torchdata.dataloader2` is gone; its training step, `Train.execute`, runs here as it
is, with its `setup` replaced by one that hands over model and data.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import hyperlens as hl
from hyperlens.errors import HyperLensWarning
from hyperlens.lenses import Origin, Translators
from hyperlens.lenses.lens import route_batch
from hyperlens.splice import Inputs, Probes, at_rest
from hyperlens.training.distillation import distil_batch

PACKAGES = ("tuned-lens==0.2.0", "simple-parsing", "docstring-parser")
SHARED = Path(os.environ.get("HYPERLENS_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "models"
TRAINED = ("stories260K", "bitllama_3M")
TARGETS = {"equality": 1e-5, "gradients": 1e-5, "throughput": 1.5}
BATCH, LENGTH = 8, 128
WEIGHED = (8, 512, 64_000)
"""Layers, width and vocabulary of the random Llama whose memory is weighed."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--original", type=Path, required=True, help="folder of the original package; made where it is not there"
    )
    parser.add_argument(
        "--only", choices=("equality", "gradients", "throughput", "memory"), help="one part; the others are null"
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds of the interleaved timings")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of both sides")
    parser.add_argument("--models", nargs="*", help="names of the timed models; all of them by default")
    parser.add_argument("--fixture", type=Path, help="write what the tests hold the reader against to this folder, and stop")
    parser.add_argument("--peak", choices=("forward", "step"), help=argparse.SUPPRESS)
    choices = parser.parse_args()
    torch.set_num_threads(choices.threads)
    if choices.peak:
        print(json.dumps(weigh_here(choices.peak)))
        return
    original = Original.find(choices.original)
    if choices.fixture:
        write_fixture(original, choices.fixture)
        return
    parts: dict[str, Callable[[], Any]] = {
        "equality": lambda: compare_logits(original),
        "gradients": lambda: compare_gradients(original),
        "throughput": lambda: time_steps(original, choices.repeats, choices.models),
        "memory": weigh_steps,
    }
    found = {name: part() if choices.only in (None, name) else None for name, part in parts.items()}
    versions = {name: version(name) for name in ("hyperlens", "torch", "transformers")} | {"tuned-lens": "0.2.0"}
    print(json.dumps({**found, "targets": TARGETS, "threads": choices.threads, "versions": versions}, indent=1))


@dataclass(frozen=True)
class Original:
    """The modules of the original package."""

    nn: Any
    loop: Any
    ingredients: Any

    @classmethod
    def find(cls, folder: Path) -> Original:
        """Install it where it is not, and import it with empty modules in the place of what is gone."""
        if not (folder / "tuned_lens").is_dir():
            call = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
            subprocess.run(call, check=True, stdout=sys.stderr)
        sys.path.insert(0, str(folder))
        for name in ("torchdata", "torchdata.dataloader2", "torchdata.datapipes", "wandb"):
            module: Any = types.ModuleType(name)
            module.DataLoader2 = object
            sys.modules[name] = module
        for part in ("dataloader2", "datapipes"):
            setattr(sys.modules["torchdata"], part, sys.modules[f"torchdata.{part}"])
        os.environ["TQDM_DISABLE"] = "1"
        parts = ("model_surgery", "nn", "scripts.train_loop", "scripts.ingredients")
        modules: list[Any] = [import_module(f"tuned_lens.{part}") for part in parts]
        surgery, nn, loop, ingredients = modules
        known = surgery.get_final_norm
        surgery.get_final_norm = lambda model: model.base_model.norm if model.config.model_type == "bitnet" else known(model)
        return cls(nn, loop, ingredients)

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
        """One training step of its own, `Train.execute`, as often as it is called; an optimiser "none" leaves the gradients."""
        loop, option = self.loop, self.ingredients.OptimizerOption
        settings = self.ingredients.Optimizer(optimizer=option.SGD if optimiser == "sgd" else option.ADAM)
        chosen = settings.create_optim([part for part in lens.parameters() if part.requires_grad])
        schedule = settings.create_scheduler(chosen, 1000)
        if optimiser == "none":
            chosen = types.SimpleNamespace(step=lambda: None, zero_grad=lambda set_to_none: None)
            schedule = types.SimpleNamespace(step=lambda: None)
        lens.save = lambda folder: None  # it saves at the end of every training; that is no part of a step
        given = {"dataloader": [{"input_ids": ids}], "lens": lens, "opt": chosen, "scheduler": schedule}

        class Step(loop.Train):
            def setup(self) -> Any:
                return loop.State(**given, wandb_id=None, nats_to_bpb=1.0), network, 1

        parts = self.ingredients
        step = Step(
            parts.Model("given"), parts.Data(), settings, parts.Distributed(), output=Path(tempfile.gettempdir()), num_steps=1
        )

        def run() -> None:
            loop.th = torch if autocast else _Plain()
            with contextlib.redirect_stdout(io.StringIO()):
                step.execute()

        return run


class _Plain:
    """torch, but for `autocast`, which does nothing."""

    autocast = staticmethod(lambda *_, **__: contextlib.nullcontext())

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def prepare_ours(model: hl.Model, translators: Translators, ids: Tensor, optimiser: str) -> Callable[[], None]:
    """One training step of ours on the `translators`, as often as it is called."""
    assert translators.bias is not None
    leaves = [translators.weight.requires_grad_(), translators.bias.requires_grad_()]
    chosen = torch.optim.AdamW(leaves, lr=1e-3, weight_decay=1e-3)
    inputs, probes = Inputs(ids), _all_probes(ids)

    def run() -> None:
        with model.splice.lock, at_rest(model.network, gradients=True):
            distil_batch(model.splice, translators, inputs, probes, 0, hl.Limits(), 1.0)
            torch.nn.utils.clip_grad_norm_(leaves, 1.0)
            if optimiser != "none":
                chosen.step()
                chosen.zero_grad(set_to_none=False)

    return run


def _all_probes(ids: Tensor) -> Probes:
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


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HyperLensWarning)
        yield


def read_theirs(network: PreTrainedModel, lens: Any, ids: Tensor) -> Tensor:
    """Its logits `[state, row, token, vocabulary]`."""
    with torch.no_grad():
        states = network(ids, output_hidden_states=True).hidden_states[:-1]
        return torch.stack([lens(state, idx=number) for number, state in enumerate(states)])


def read_ours(model: hl.Model, lens: hl.TunedLens, ids: Tensor) -> Tensor:
    """Our logits of the same."""
    splice = model.splice
    with splice.lock, at_rest(model.network):
        routed = route_batch(lens.fit_to(model), splice, Inputs(ids), _all_probes(ids), (0,), 4096)
        states = next(routed.by_depth)[1]
        return torch.stack([splice.head(state) for state in states]).unflatten(1, tuple(ids.shape))


def off(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float(f"{((found - expected).abs().max() / expected.abs().max()).item():.2g}")


def compare_logits(original: Original) -> dict[str, Any]:
    """Ours against its lens on the same translators: as given, as it saved them, and as it reads what we exported."""
    found = {}
    for name, network in small_models():
        model, ids = hl.load_model(network), draw_ids(network)
        drawn = draw_translators(model.layers, network.config.hidden_size)
        lens = original.make_lens(network, drawn)
        expected = read_theirs(network, lens, ids)
        ours = hl.TunedLens(translators=drawn, origin=Origin(name, model.fingerprint))
        with tempfile.TemporaryDirectory() as folder, _without_warnings():
            lens.save(f"{folder}/theirs")
            saved = hl.load_lens(f"{folder}/theirs")
            hl.export_lens(ours, f"{folder}/ours", model)
            exported = original.nn.TunedLens.from_model_and_pretrained(network, f"{folder}/ours")
            hashes = {json.loads(Path(folder, side, "config.json").read_text())["unembed_hash"] for side in ("theirs", "ours")}
            found[name] = {
                "same_translators": off(read_ours(model, ours, ids), expected),
                "saved_by_it_read_by_us": off(read_ours(model, saved, ids), expected),
                "exported_by_us_read_by_it": off(read_theirs(network, exported, ids), expected),
                "same_hash": len(hashes) == 1,
            }
    return found


def compare_gradients(original: Original) -> dict[str, Any]:
    """The gradients that one step of each leaves, in float32: largest difference of any state, relative to its largest value.

    Beside it, how far each is from the same in float64, which tells rounding from a difference of meaning.
    """
    found = {}
    for name, network in small_models():
        ids = draw_ids(network, 4, 32)
        model, drawn = hl.load_model(network), draw_translators(network.config.num_hidden_layers, network.config.hidden_size)
        lens = original.make_lens(network, drawn)
        original.prepare_step(network, lens, ids, "none", autocast=False)()
        theirs = torch.stack([layer.weight.grad for layer in lens]), torch.stack([layer.bias.grad for layer in lens])
        ours = _gradients(model, drawn, ids)
        exact = _gradients(hl.load_model(network.double()), drawn.to(torch.device("cpu"), torch.float64), ids)
        found[name] = {
            "ours_to_theirs": _worst(ours, theirs),
            "ours_to_float64": _worst(ours, exact),
            "theirs_to_float64": _worst(theirs, exact),
        }
    return found


def _gradients(model: hl.Model, translators: Translators, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Clipped, as theirs are."""
    assert translators.bias is not None
    own = Translators(translators.weight.clone(), translators.bias.clone())
    prepare_ours(model, own, ids, "none")()
    assert own.bias is not None and own.weight.grad is not None and own.bias.grad is not None
    return own.weight.grad, own.bias.grad


def _worst(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """The largest relative difference of any state's weight or bias."""
    return max(off(one, other) for pair in zip(found, expected, strict=True) for one, other in zip(*pair, strict=True))


def build_llama(layers: int, width: int, vocabulary: int) -> LlamaForCausalLM:
    """A random Llama of the usual proportions: heads of 64, a feed-forward block of 43/16 of the width."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=43 * width // 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=LENGTH,
    )
    return LlamaForCausalLM(config).eval()


def timed_models() -> Iterator[tuple[str, Callable[[], PreTrainedModel]]]:
    """The trained models that are there, and one whose vocabulary is that of real ones."""
    for name in TRAINED:
        if (SHARED / name).is_dir():
            yield name, lambda name=name: AutoModelForCausalLM.from_pretrained(SHARED / name).eval()
    yield "llama 16 x 512, 32000 tokens", lambda: build_llama(16, 512, 32_000)


def time_steps(original: Original, repeats: int, names: list[str] | None) -> dict[str, Any]:
    """Tokens per second of one optimiser step on the same batch, by turns; ratios are medians over the rounds."""
    found = {}
    for name, build in timed_models():
        if names and name.split()[0] not in names:
            continue
        network = build().requires_grad_(False)
        ids = draw_ids(network, BATCH, LENGTH)
        found[name] = {"float32": _time_model(original, network, ids, repeats, plain=True)}
        found[name]["bfloat16"] = _time_model(original, network.bfloat16(), ids, repeats, plain=False)
    return found


def _time_model(original: Original, network: PreTrainedModel, ids: Tensor, repeats: int, plain: bool) -> dict[str, Any]:
    model = hl.load_model(network)
    width, states = network.config.hidden_size, model.layers
    start = Translators.identity(states, width)
    steps = {"original": original.prepare_step(network, original.make_lens(network), ids, "adam", autocast=True)}
    if plain:
        steps["original without autocast"] = original.prepare_step(
            network, original.make_lens(network), ids, "adam", autocast=False
        )
    steps["ours"] = prepare_ours(model, start, ids, "adam")
    rounds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(repeats + 1):
        for name, step in steps.items():
            taken = seconds(step)
            if number:  # the first warms up
                rounds[name].append(taken)
        tell(f"{width}, {network.dtype}: " + ", ".join(f"{name} {times[-1]:.3f} s" for name, times in rounds.items() if times))
    floor = measure_floor(network, ids.numel())
    report: dict[str, Any] = {"floor_seconds": round(floor["seconds"], 4), "floor": floor}
    for name, times in rounds.items():
        report[name] = {
            "tokens_per_second": round(ids.numel() / median(times)),
            "times_the_floor": round(median(times) / floor["seconds"], 2),
        }
        if name != "ours":
            ratios = sorted(theirs / own for theirs, own in zip(times, rounds["ours"], strict=True))
            report[name]["ours_is_faster_by"] = round(median(ratios), 2)
            report[name]["spread"] = [round(ratios[0], 2), round(ratios[-1], 2)]
    return report


def measure_floor(network: PreTrainedModel, tokens: int) -> dict[str, float]:
    """The least that a step must compute, in floating point operations, and the seconds that the products alone would take.

    The model's layers and its own logits once; for each state and token the translator forth and its gradient (4 d²), and the
    read-out forth and back (4 d V). At the rate of products of these shapes, measured here, in the model's precision.
    """
    config = network.config
    width, vocabulary, states = config.hidden_size, config.vocab_size, config.num_hidden_layers
    inside = sum(part.numel() for name, part in network.named_parameters() if ".layers." in name and part.ndim > 1)
    layers, narrow = 2 * inside * tokens, 4 * width * width * states * tokens
    reading = 2 * width * vocabulary * tokens * (1 + 2 * states)
    matrix, rows = torch.randn(vocabulary, width).to(network.dtype), min(tokens, 256)
    state, logits = torch.randn(rows, width).to(network.dtype), torch.randn(rows, vocabulary).to(network.dtype)
    forth = min(seconds(lambda: state @ matrix.mT) for _ in range(8))
    back = min(seconds(lambda: logits @ matrix) for _ in range(8))
    wide_rate = 4 * rows * width * vocabulary / (forth + back)
    square = torch.randn(tokens, width).to(network.dtype)
    inner = torch.randn(width, width).to(network.dtype)
    narrow_rate = 2 * tokens * width * width / min(seconds(lambda: square @ inner) for _ in range(8))
    return {
        "layers_gflop": layers / 1e9,
        "translators_gflop": narrow / 1e9,
        "reading_gflop": reading / 1e9,
        "reading_gflop_per_second": round(wide_rate / 1e9, 1),
        "other_gflop_per_second": round(narrow_rate / 1e9, 1),
        "seconds": reading / wide_rate + (layers + narrow) / narrow_rate,
    }


def seconds(action: Callable[[], object]) -> float:
    """How long an action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def tell(text: str) -> None:
    """Say how far the measurement is, beside its result."""
    print(text, file=sys.stderr, flush=True)


def weigh_steps() -> dict[str, float]:
    """Peak resident MB of a step of ours above that of the model's own pass, and what all logits would take at once."""
    peaks = {}
    for what in ("forward", "step"):
        call = [sys.executable, __file__, "--original", ".", "--threads", str(torch.get_num_threads()), "--peak", what]
        done = subprocess.run(call, check=True, capture_output=True, text=True)
        peaks[what] = json.loads(done.stdout)["peak_mb"]
    layers, width, vocabulary = WEIGHED
    tokens, parameters = BATCH * LENGTH, layers * width * (width + 1)
    return {
        "above_forward_mb": round(peaks["step"] - peaks["forward"], 1),
        "budget_mb": hl.Limits().memory_mb,
        "states_mb": round(4 * layers * tokens * width / 2**20, 1),
        "translators_their_gradient_and_adamw_mb": round(16 * parameters / 2**20, 1),
        "all_logits_would_take_mb": round(4 * layers * tokens * vocabulary / 2**20),
    }


def weigh_here(what: str) -> dict[str, float]:
    """The peak of this process, in which nothing else is done."""
    network = build_llama(*WEIGHED).requires_grad_(False)
    ids = draw_ids(network, BATCH, LENGTH)
    model = hl.load_model(network)
    if what == "forward":
        with model.splice.lock, at_rest(network):
            model.splice.run(Inputs(ids), read=False)
    else:
        step = prepare_ours(model, Translators.identity(model.layers, WEIGHED[1]), ids, "adam")
        step()
        step()
    return {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def write_fixture(original: Original, folder: Path) -> None:
    """A small random Llama, a lens of it that the original saved, and the logits that it reads with it."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 40,
    }
    network = LlamaForCausalLM(LlamaConfig(**shape, initializer_range=0.3, max_position_embeddings=32)).eval()
    lens = original.make_lens(network, draw_translators(3, 16))
    ids = draw_ids(network, 2, 9)
    network.save_pretrained(folder / "model")
    lens.save(folder / "lens")
    save_file({"ids": ids, "logits": read_theirs(network, lens, ids)}, folder / "expected.safetensors")


if __name__ == "__main__":
    main()
