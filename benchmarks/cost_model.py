"""What a reading costs: operations and bytes by formula, beside what is counted, timed and profiled; printed as one JSON.

Every way of reading is timed at points along six axes, by turns with a plain pass of the model. Beside the slopes on log–log
axes stand those of the formulas over the same points; where the two differ by more than a fifth, the profile of the first and
the last point says which room of the work makes the difference. `--page docs/cost.md` fills the tables of the page.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from findings_page import fill_tables, tabulate
from lenses import shorten
from overhead import build_llama, keep_heap
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import hyperlens as hl
from hyperlens.artefact import to_json
from hyperlens.encoding import encode_samples
from hyperlens.models import Model
from hyperlens.runs.plan.counting import count_batch, count_proof
from hyperlens.runs.plan.estimates import Work
from hyperlens.runs.plan.frames import Frame, measure_frame
from hyperlens.runs.spec import ModelSpec
from hyperlens.splice import Splice
from hyperlens.tracing import traces
from hyperlens.tracing.batches import Job, make_batches
from hyperlens.tracing.labels import label_table

PLAIN, LAST, ALL, CACHED, JUMP = "plain pass", "logit lens, last token", "logit lens, all tokens", "cached", "jump"
WAYS = (PLAIN, LAST, ALL, CACHED, JUMP)
AXES = {
    "layers": WAYS,
    "focal depth": (CACHED, JUMP),
    "states": (CACHED, JUMP),
    "tokens": WAYS,
    "texts": WAYS,
    "vocabulary": WAYS,
}
PRODUCTS, ATTENTION, READ_OUT = "products of the layers", "attention", "read-out"
READINGS, COPIES, OTHER, LABELS, PYTHON = "readings", "copies", "element by element", "labels", "Python and waiting"
FLOORED = (PRODUCTS, ATTENTION, READ_OUT)
ROOMS = (*FLOORED, READINGS, COPIES, OTHER, LABELS, PYTHON)
LIMITS = hl.Limits(progress=False)
FAR = 0.2
"""Share of the predicted slope by which a measured one may differ before it is marked."""
COPIED = 2**28
"""Bytes of the block whose copy shows the bandwidth of memory."""
COPYING = ("copy", "_to_copy", "cat", "stack", "index", "_index", "embedding", "clone", "repeat", "fill", "zero", "gather")
"""How the names of operations begin that move numbers without computing any."""
VIEWING = {"view", "_unsafe_view", "reshape", "_reshape_alias", "slice", "select", "transpose", "t", "permute", "movedim", "to"}
VIEWING |= {"unsqueeze", "squeeze", "expand", "as_strided", "detach", "unflatten", "flatten", "linear", "matmul", "contiguous"}
VIEWING |= {"empty", "empty_strided", "empty_like", "new_empty", "split", "chunk", "unbind", "item", "_local_scalar_dense"}
"""Operations that touch no numbers by themselves."""
CAUSAL_TOKENS = (128, 512, 2048)
"""Lengths at which attention with a causal mask is timed beside attention without one."""
PROFILED = 2
"""How often a reading is profiled; the faster one counts."""


@dataclass(frozen=True)
class Point:
    """One reading's shape."""

    layers: int
    depth: int
    tokens: int
    texts: int
    vocabulary: int


@dataclass(frozen=True)
class Cost:
    """Operations and bytes of one reading, by what is computed. Attention counts the keys behind the causal mask too."""

    products: float
    attention: float
    read_out: float
    product_bytes: float
    attention_bytes: float
    read_out_bytes: float


@dataclass(frozen=True)
class Rates:
    """What the machine does in a second: operations by kind (those of read-outs by way), and bytes of its memory."""

    products: float
    attention: float
    read_out: dict[str, float]
    bytes: float

    def floor(self, way: str, cost: Cost) -> dict[str, float]:
        """The least seconds of each room that computes what the formulas count: by its operations, or by its bytes."""
        seconds = (cost.products / self.products, cost.attention / self.attention, cost.read_out / self.read_out[way])
        moved = (cost.product_bytes, cost.attention_bytes, cost.read_out_bytes)
        return {room: max(one, other / self.bytes) for room, one, other in zip(FLOORED, seconds, moved, strict=True)}


class Bench:
    """The random models of all points, each built and proved once, and what is read of them."""

    def __init__(self, width: int, device: str, dtype: str) -> None:
        self.width, self.device, self.dtype = width, torch.device(device), getattr(torch, dtype)
        self.find_model = cache(self._build)
        self.find_cost = cache(self._count)

    def _build(self, layers: int, vocabulary: int) -> Model:
        network: Any = build_llama(layers, self.width, vocabulary)
        return hl.load_model(network.to(self.device, self.dtype))

    def prepare(self, way: str, point: Point) -> Callable[[], object]:
        """One reading, as a call without arguments."""
        model, prompts = self.find_model(point.layers, point.vocabulary), draw_prompts(point)
        if way == PLAIN:
            ids: Any = torch.tensor(prompts, device=self.device)
            network: Any = model.network
            return torch.no_grad()(lambda: network(ids, logits_to_keep=1, use_cache=False))
        lens, positions = make_lens(way, point), "all" if way == ALL else "last"
        return lambda: hl.trace(model, prompts, lens, positions, limits=LIMITS)

    def find_job(self, way: str, point: Point) -> Job:
        """What `trace` makes of the way."""
        model, lens = self.find_model(point.layers, point.vocabulary), make_lens(way, point)
        return Job(model, lens, lens.check_depths(model.layers), ("probability",), "output", LIMITS)

    def _count(self, way: str, point: Point) -> Cost:
        """The formulas at one point."""
        job = self.find_job(way, point)
        if way == PLAIN:
            return count_cost(job, count_plain(point))
        encoded = encode_samples(draw_prompts(point), job.model, "all" if way == ALL else "last")
        batches = [[encoded[number] for number in batch] for batch in make_batches(job, encoded, range(len(encoded)))]

        def count(frame: Frame) -> Work:
            return sum((count_batch(job, frame, batch) for batch in batches), count_proof(job, frame, encoded))

        return count_cost(job, count)

    def measure(self, action: Callable[[], object]) -> float:
        """Wall-clock seconds of one call."""
        self.wait()
        began = time.perf_counter()
        action()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def make_lens(way: str, point: Point) -> hl.LogitLens | hl.HyperLens:
    """The lens of a way of reading."""
    return hl.HyperLens((point.depth,), way) if way in (CACHED, JUMP) else hl.LogitLens()


def draw_prompts(point: Point) -> list[list[int]]:
    """Random token ids, none of them 0, the usual padding token."""
    size = (point.texts, point.tokens)
    return torch.randint(1, point.vocabulary, size, generator=torch.Generator().manual_seed(1)).tolist()


def count_plain(point: Point) -> Callable[[Frame], Work]:
    """A call of the model for the logits of each text's last token."""

    def count(frame: Frame) -> Work:
        operations = frame.count_pass(point.texts, point.tokens, point.tokens)
        read_out = 2.0 * frame.head * point.texts
        return Work(ordinary_flops=operations, readout_flops=read_out, layer_calls=point.layers, read_outs=1)

    return count


def count_cost(job: Job, count: Callable[[Frame], Work]) -> Cost:
    """Operations and bytes, by counting the same calls again with other amounts in place of each layer's weights."""
    splice, width = job.model.splice, job.model.splice.anatomy.width[0]
    frame = measure_frame(ModelSpec(), None, splice.model, splice.config, None, splice.dtype, [])
    one, size = (0.5,) * frame.layers, splice.dtype.itemsize
    calls = count(frame)
    passed = count(replace(frame, matrices=one, narrow=0, attention=(0.0,) * frame.layers))
    attended = count(replace(frame, matrices=(0.0,) * frame.layers, narrow=0))

    def total(measure: Callable[[Tensor], float]) -> float:
        """An amount of each matrix, summed over all rows that pass it."""
        work = count(weigh_layers(splice, frame, measure))
        return float(work.ordinary_flops + work.routed_flops)

    rows = calls.readout_flops / (2 * frame.head)
    moved = calls.layer_calls * sum(frame.matrices) / frame.layers + total(lambda matrix: float(sum(matrix.shape)))
    return Cost(
        products=total(lambda matrix: 2.0 * matrix.numel()),
        attention=float(attended.ordinary_flops + attended.routed_flops),
        read_out=float(calls.readout_flops),
        product_bytes=float(size * moved),
        attention_bytes=float(size * 4 * width * (passed.ordinary_flops + passed.routed_flops)),
        read_out_bytes=float(size * (calls.read_outs * frame.head + rows * (width + splice.config.vocab_size))),
    )


def weigh_layers(splice: Splice, frame: Frame, measure: Callable[[Tensor], float]) -> Frame:
    """The frame with an amount of each matrix in place of its weights; those of the last layer that only the rows which are
    read pass are the ones that were found on this model."""

    def weigh(modules: Sequence[torch.nn.Module]) -> float:
        return sum(measure(one) for module in modules for one in module.parameters() if one.ndim > 1) / 2

    amounts = tuple(weigh([layer]) for layer in splice.layers)
    return replace(frame, matrices=amounts, narrow=weigh(splice.narrow.modules), attention=(0.0,) * frame.layers)


def count_operations(bench: Bench, way: str, point: Point) -> float:
    """The operations of products and attention that torch itself counts while the reading runs."""
    fused = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: count_fused}
    action = bench.prepare(way, point)
    with FlopCounterMode(display=False, custom_mapping=fused) as counter:
        action()
    return float(counter.get_total_flops())


def count_fused(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """The operations of attention in one kernel on the CPU, which torch does not count by itself."""
    return sdpa_flop_count(query, key, value)


def rate_machine(bench: Bench, base: Point) -> Rates:
    """What the machine does in a second on the shapes of the base point, each kind once."""
    model, rows = bench.find_model(base.layers, base.vocabulary), base.texts * base.tokens
    layers: list[Any] = list(model.splice.layers[:2])
    matrices = [one.detach() for layer in layers for one in layer.parameters() if one.ndim > 1]
    inputs = {size: torch.randn(rows, size).to(matrices[0]) for size in {one.shape[1] for one in matrices}}
    multiplied = bench.measure(lambda: [inputs[one.shape[1]] @ one.mT for one in matrices])
    attended = time_attention(bench, base.texts, base.tokens, causal=True)
    block = torch.ones(COPIED // 4, device=bench.device)
    target = torch.empty_like(block).copy_(block)
    return Rates(
        2.0 * rows * sum(one.numel() for one in matrices) / multiplied,
        4.0 * rows * base.tokens * bench.width / attended,
        {way: rate_read_out(bench, way, base) for way in WAYS},
        2.0 * COPIED / bench.measure(lambda: target.copy_(block)),
    )


def time_attention(bench: Bench, texts: int, tokens: int, causal: bool) -> float:
    """Seconds of the attention of one layer by itself."""
    query, key, value = torch.randn(3, texts, bench.width // 64, tokens, 64).to(bench.device, bench.dtype)
    attend = torch.nn.functional.scaled_dot_product_attention
    calls = 4
    return bench.measure(lambda: [attend(query, key, value, is_causal=causal) for _ in range(calls)]) / calls


def compare_masks(bench: Bench, tokens: int) -> float:
    """Seconds of attention under a causal mask by those without one: 0.5 where the keys behind the mask cost nothing."""
    masked, open_ = (min(time_attention(bench, 1, tokens, causal) for _ in range(5)) for causal in (True, False))
    return masked / open_


def rate_read_out(bench: Bench, way: str, base: Point) -> float:
    """Operations per second of the unembedding on as many rows as one read-out of this way has at the base point."""
    job, states = bench.find_job(way, base), base.layers - (base.depth if way in (CACHED, JUMP) else 0) + (way == CACHED)
    rows = base.texts if way == PLAIN else min(job.logit_rows, states * base.texts * (base.tokens if way == ALL else 1))
    network: Any = job.model.network
    matrix = network.get_output_embeddings().weight.detach()
    given = torch.randn(rows, bench.width).to(matrix)
    return 2.0 * rows * matrix.numel() / bench.measure(lambda: given @ matrix.mT)


def best_rates(rounds: Sequence[Rates]) -> Rates:
    """The fastest of each."""
    return Rates(
        max(one.products for one in rounds),
        max(one.attention for one in rounds),
        {way: max(one.read_out[way] for one in rounds) for way in WAYS},
        max(one.bytes for one in rounds),
    )


def list_points(axis: str, given: argparse.Namespace) -> list[Point]:
    """The points along one axis; all else as at the base."""
    base = Point(*given.base)
    match axis:
        case "focal depth":
            return [replace(base, layers=2 * max(given.depths), depth=depth) for depth in given.depths]
        case "layers" | "states":
            return [replace(base, layers=count) for count in given.layers]
        case _:
            return [replace(base, **{axis: value}) for value in getattr(given, axis)]


def place(axis: str, point: Point) -> int:
    """Where a point stands on an axis."""
    return {"states": point.layers - point.depth, "focal depth": point.depth}.get(axis) or getattr(point, axis)


def fit_slope(places: Sequence[float], values: Sequence[float]) -> float:
    """The slope of the least-squares line on log–log axes."""
    return float(np.polyfit(np.log(places), np.log(values), 1)[0])


def time_rounds(bench: Bench, given: argparse.Namespace) -> tuple[dict[tuple[str, Point], list[float]], list[Rates]]:
    """Every way at every point by turns, and what the machine does, a few times in each round."""
    base = Point(*given.base)
    wanted = {(way, point): None for axis, ways in AXES.items() for point in list_points(axis, given) for way in ways}
    wanted |= {(way, base): None for way in WAYS}
    seconds: dict[tuple[str, Point], list[float]] = {key: [] for key in wanted}
    bench.measure(bench.prepare(JUMP, base))
    rate_machine(bench, base)
    rates = []
    for number in range(given.repeats):
        began = time.perf_counter()
        for key in wanted:
            action = bench.prepare(*key)
            rates += [rate_machine(bench, base)] if key[1] == base else []
            seconds[key].append(bench.measure(action))
        tell(f"round {number + 1} of {given.repeats}: {time.perf_counter() - began:.0f} s")
    return seconds, rates


def profile_rooms(bench: Bench, way: str, point: Point) -> dict[str, float]:
    """Seconds of one reading by room: of a few profiled ones, the fastest."""
    return min((profile_once(bench, way, point) for _ in range(PROFILED)), key=lambda rooms: sum(rooms.values()))


def profile_once(bench: Bench, way: str, point: Point) -> dict[str, float]:
    """Seconds of one profiled reading by room; what neither torch nor the labels take is Python's, or spent waiting for it."""
    cuda, action = bench.device.type == "cuda", bench.prepare(way, point)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    rooms: dict[str, float] = dict.fromkeys(ROOMS, 0.0)

    def label_timed(*args: Any) -> Any:
        began = time.perf_counter()
        labelled = label_table(*args)
        rooms[LABELS] += time.perf_counter() - began
        return labelled

    with profile(activities=activities, record_shapes=True) as seen, patch.object(traces, "label_table", label_timed):
        whole = bench.measure(action)
    for event in seen.key_averages(group_by_input_shape=True):
        if event.device_type == DeviceType.CPU:  # the device's own events are counted at what launched them
            taken = event.self_device_time_total if cuda else event.self_cpu_time_total
            rooms[find_room(event.key, event.input_shapes, point.vocabulary)] += taken / 1e6
    rooms[PYTHON] += max(0.0, whole - sum(rooms.values()))
    return rooms


def find_room(name: str, shapes: Sequence[Any], vocabulary: int) -> str:
    """Where an operation belongs, by its name and by whether what it is given is as wide as the vocabulary.

    Where the vocabulary goes by blocks, products are written into memory that is there, and what is summed has two axes.
    """
    name, tensors = name.removeprefix("aten::"), [shape for shape in shapes if isinstance(shape, list) and shape]
    blocks = (name == "mm" and len(tensors) == 3) or name in ("sub_", "exp_") or (name == "sum" and len(tensors[0]) == 2)
    wide = blocks or any(vocabulary in shape for shape in tensors)
    if "scaled_dot_product" in name:
        return ATTENTION
    if name in ("mm", "addmm", "bmm"):
        return READ_OUT if wide else PRODUCTS
    if name in VIEWING:
        return PYTHON
    if name.startswith(COPYING):
        return COPIES
    return READINGS if wide else OTHER


def report_base(bench: Bench, base: Point, seconds: dict[tuple[str, Point], list[float]], rates: Rates) -> dict[str, Any]:
    """Each way at the base point: operations by formula and as counted, bytes, seconds, the floor, and where the seconds go."""
    found = {}
    for way in WAYS:
        cost, counted, rooms = bench.find_cost(way, base), count_operations(bench, way, base), profile_rooms(bench, way, base)
        floor, taken = rates.floor(way, cost), median(seconds[way, base])
        found[way] = {
            "cost": asdict(cost),
            "counted": counted,
            "formula_by_counted": (cost.products + cost.attention + cost.read_out) / counted,
            "seconds": taken,
            "floor": floor,
            "times_the_floor": taken / sum(floor.values()),
            "rooms": rooms,
            "profiled_by_timed": sum(rooms.values()) / taken,
        }
    return found


def report_slopes(
    bench: Bench, given: argparse.Namespace, seconds: dict[tuple[str, Point], list[float]], rates: Rates
) -> Iterator[dict[str, Any]]:
    """One row for each axis and way: the slope of the medians, that of each round, and those of the formulas."""
    for axis, ways in AXES.items():
        points = list_points(axis, given)
        places = [place(axis, point) for point in points]
        for way in ways:
            costs = [bench.find_cost(way, point) for point in points]
            floors = [sum(rates.floor(way, cost).values()) for cost in costs]
            rounds = list(zip(*(seconds[way, point] for point in points), strict=True))
            medians = [median(seconds[way, point]) for point in points]
            slopes = [fit_slope(places, one) for one in rounds]
            row = {
                "axis": axis,
                "way": way,
                "places": places,
                "seconds": medians,
                "floors": floors,
                "measured": fit_slope(places, medians),
                "rounds": [min(slopes), max(slopes)],
                "predicted": fit_slope(places, floors),
                "operations": fit_slope(places, [cost.products + cost.attention + cost.read_out for cost in costs]),
            }
            marked = abs(row["measured"] - row["predicted"]) > FAR * abs(row["predicted"])
            yield row | {"why": explain(bench, row, (points[0], points[-1]), rates) if marked else None}


def explain(bench: Bench, row: dict[str, Any], ends: tuple[Point, Point], rates: Rates) -> dict[str, Any]:
    """How many floors each room takes beyond its own floor at both ends, and which room changes most the way the time does."""
    beyond, rooms = [], [profile_rooms(bench, row["way"], point) for point in ends]
    for point, found in zip(ends, rooms, strict=True):
        floor = rates.floor(row["way"], bench.find_cost(row["way"], point))
        beyond.append({room: (found[room] - floor.get(room, 0.0)) / sum(floor.values()) for room in ROOMS})
    first, last = beyond
    timed = [row["seconds"][end] / row["floors"][end] for end in (0, -1)]
    profiled = [1 + sum(one.values()) for one in beyond]
    way = math.copysign(1.0, timed[1] - timed[0])
    room = max(ROOMS, key=lambda one: way * (last[one] - first[one]))
    text = (
        f"{timed[0]:.2f} floors at the first point and {timed[1]:.2f} at the last (profiled {profiled[0]:.2f} and "
        f"{profiled[1]:.2f}); most of it is “{room}”: {first[room]:.2f} and {last[room]:.2f} floors beyond its own"
    )
    if way * (profiled[1] - profiled[0]) <= 0:
        text += "; the profile as a whole does not show the change"
    if row["rounds"][0] <= row["predicted"] <= row["rounds"][1]:
        text += "; the slopes of the rounds lie on both sides of the predicted one"
    return {"text": text, "beyond": beyond, "rooms": rooms}


def make_tables(found: dict[str, Any]) -> dict[str, str]:
    """The Markdown tables of the page, by name."""
    rates, base = found["rates"], found["base"]
    machine = [["products of the layers, 10⁹ operations per second", rates["products"] / 1e9]]
    machine += [["attention, 10⁹ operations per second", rates["attention"] / 1e9]]
    machine += [[f"read-out, {way}, 10⁹ operations per second", rate / 1e9] for way, rate in rates["read_out"].items()]
    machine += [["memory, 10⁹ bytes per second", rates["bytes"] / 1e9]]
    machine += [[f"attention of {n} tokens: causal, by unmasked (seconds)", ratio] for n, ratio in found["causal"].items()]
    amounts = ("products", "attention", "read_out")
    moved = ("product_bytes", "attention_bytes", "read_out_bytes")
    slopes, marked = found["slopes"], [row for row in found["slopes"] if row["why"]]
    return {
        "machine": tabulate(["what", "measured"], machine),
        "operations": tabulate(
            ["way", "products, 10⁹", "attention, 10⁹", "read-out, 10⁹", "formula : counted", "10⁹ bytes"],
            [
                [
                    *(way, *(row["cost"][name] / 1e9 for name in amounts), f"{row['formula_by_counted']:.4f}"),
                    sum(row["cost"][name] for name in moved) / 1e9,
                ]
                for way, row in base.items()
            ],
        ),
        "floor": tabulate(
            ["way", "seconds", "floor", "times the floor", "profiled : timed"],
            [
                [
                    *(way, f"{row['seconds']:.3f}", f"{sum(row['floor'].values()):.3f}"),
                    *(row["times_the_floor"], row["profiled_by_timed"]),
                ]
                for way, row in base.items()
            ],
        ),
        "rooms": tabulate(
            ["way", *ROOMS],
            [
                [
                    way,
                    *(
                        f"{row['rooms'][room]:.3f}" + (f" ({row['floor'][room]:.3f})" if room in FLOORED else "")
                        for room in ROOMS
                    ),
                ]
                for way, row in base.items()
            ],
        ),
        "slopes": tabulate(
            ["axis", "points", "way", "measured", "rounds", "formulas", "operations alone", ""],
            [
                [
                    *(row["axis"], " ".join(map(str, row["places"])), row["way"], row["measured"]),
                    " … ".join(f"{one:.2f}" for one in row["rounds"]),
                    *(row["predicted"], row["operations"], "✱" if row["why"] else ""),
                ]
                for row in slopes
            ],
        ),
        "why": tabulate(
            ["axis", "way", "what the profile says"], [[row["axis"], row["way"], row["why"]["text"]] for row in marked]
        ),
    }


def tell(line: str) -> None:
    """How far it is, on the error stream; the output holds the JSON alone."""
    print(line, file=sys.stderr, flush=True)


def read_options() -> argparse.Namespace:
    """Sizes, repeats, device and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("LAYERS", "DEPTH", "TOKENS", "TEXTS", "VOCABULARY")
    parser.add_argument("--base", type=int, nargs=5, metavar=names, default=[8, 2, 128, 8, 8000], help="what no axis changes")
    parser.add_argument("--width", type=int, default=512, help="of all models, a multiple of 64")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument(
        "--depths", type=int, nargs="+", default=[1, 2, 4, 8], help="in a model of twice as many layers as the last"
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 64, 128, 256], help="of each text; at most 512")
    parser.add_argument("--texts", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[2000, 6000, 16_000, 40_000])
    parser.add_argument("--repeats", type=int, default=3, help="rounds of the interleaved timings")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--page", type=Path, help="the page whose tables are filled")
    return parser.parse_args()


def main() -> None:
    """Time, count and profile, print the JSON, and fill the page."""
    given = read_options()
    keep_heap()
    torch.set_num_threads(given.threads)
    bench, base = Bench(given.width, given.device, given.dtype), Point(*given.base)
    seconds, rounds = time_rounds(bench, given)
    rates = best_rates(rounds)
    found = {
        "base": report_base(bench, base, seconds, rates),
        "slopes": list(report_slopes(bench, given, seconds, rates)),
        "rates": asdict(rates),
        "causal": {str(tokens): compare_masks(bench, tokens) for tokens in CAUSAL_TOKENS},
        "options": {name: value for name, value in vars(given).items() if name != "page"},
        "versions": {name: version(name) for name in ("hyperlens", "torch", "transformers")},
    }
    print(to_json(shorten(found, 4), indent=2))
    if given.page:
        fill_tables(given.page, make_tables(found))


if __name__ == "__main__":
    main()
