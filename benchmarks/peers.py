"""HyperLens beside its peers, in one run: the same model and texts, each peer in an environment and a process of its own.

    python benchmarks/peers.py [--environments build/peers] [--only last all ...] [--json FILE] [--page] [--quick]

Peers: a plain loop over transformers' hidden states, HyperLens as a reader of its definition would write it ("naive"),
TransformerLens, nnsight, nnterp and tuned-lens. In each round each of them runs a row once in turn, while the others wait, so
that rounds can be compared. Environments that are missing are made, which needs a package index. Prints JSON; `--json` puts it
into a file too, where the rows that were not measured this time stay as they were; `--page` fills docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import IO, Any

import numpy as np
import torch
from findings_page import fill_tables
from overhead import KEPT_HEAP
from peers_ways.environments import IMPORTS, PEERS, find_python
from peers_ways.models import draw_texts, judge_alone, save_model, save_texts, spread_lengths, trained_texts
from peers_ways.page import make_tables
from peers_ways.shared import Texts

FOLDER = Path(__file__).resolve().parent / "peers_ways"
ROOT = FOLDER.parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
RESAMPLES = 2000
DEPTHS = (1, 2, 4, 8)
PARTS = ("memory", "imports", "correctness")
Answer = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """What is read: its title, the texts, the way that is its unit with who runs it, and the table it is in."""

    title: str
    texts: str
    table: str
    unit: str = "forward"


ROWS = {
    "last": Row("logit lens, last token", "equal", "read"),
    "ragged": Row("logit lens, last token, texts of different length", "ragged", "read"),
    "all": Row("logit lens, all tokens", "few", "read"),
    **{f"{kind} {depth}": Row(f"`{kind}`, m = {depth}", "few", "deep") for kind in ("jump", "cached") for depth in DEPTHS},
    "jump sweep": Row("`jump`, m = 0, 1, 2, 4, 8", "few", "deep"),
    "cached sweep": Row("`cached`, m = 0, 1, 2, 4, 8", "few", "deep"),
    "generate": Row("generation with a logit lens at each step", "one", "speak", "speak"),
    "train": Row("a training step of a tuned lens", "train", "train"),
    "train bfloat16": Row("a training step of a tuned lens, products in bfloat16", "train", "train"),
}


@dataclass
class Worker:
    """A peer's process, started when it is first asked, and again after it has died; its heap may keep what is freed."""

    peer: str
    python: str
    setting: Mapping[str, Any]
    patience: float
    plain: bool = False
    kept: bool = False
    process: subprocess.Popen[str] | None = field(default=None, init=False)
    about: Answer = field(default_factory=dict, init=False)

    def ask(self, **message: Any) -> Answer:
        """The answer to a message; what went wrong stands under `failed`."""
        if self.process is None:
            command = [self.python, str(FOLDER / "worker.py"), self.peer]
            heap = os.environ | (KEPT_HEAP if self.kept else {})
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=heap)
            self.about = self.exchange({"do": "load", "plain": self.plain, **self.setting})
        return self.about if "failed" in self.about else self.exchange(message)

    def exchange(self, message: Answer) -> Answer:
        """One line there and one back."""
        assert self.process is not None
        to, back = self.process.stdin, self.process.stdout
        assert to is not None and back is not None
        try:
            print(json.dumps(message), file=to, flush=True)
            line = self.wait(back)
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        self.process.kill()
        status, self.process = self.process.wait(), None
        late = line is None
        return {"failed": f"no answer in {self.patience:g} seconds" if late else f"its process ended with status {status}"}

    def wait(self, back: IO[str]) -> str | None:
        """The line that comes, an empty one where the process ended, nothing where it takes too long."""
        ready, _, _ = select.select([back], [], [], self.patience)
        return back.readline() if ready else None

    def finish(self) -> None:
        """End the process."""
        if self.process is not None:
            self.exchange({"do": "finish"})
            self.process.wait()
            self.process = None


def main() -> None:
    """Measure what was asked for and report it."""
    given = read_options()
    torch.set_num_threads(given.threads)
    wanted = [name for name in given.only or [*ROWS, *PARTS] if name not in (given.skip or [])]
    found: Answer = json.loads(given.json.read_text(encoding="utf-8")) if given.json and given.json.exists() else {}
    with tempfile.TemporaryDirectory() as made:
        pythons, reasons = find_pythons(given)
        place = Path(given.models or made)
        prepare_models(place, given)
        found["settings"] = {name: value for name, value in vars(given).items() if not isinstance(value, Path)}
        rows, versions = measure_rows([name for name in wanted if name in ROWS], place / "timed", pythons, reasons, given)
        rows = {**found.get("rows", {}), **rows}
        found["rows"] = {name: rows[name] for name in ROWS if name in rows}
        found["versions"] = {**found.get("versions", {}), **versions, **reasons}
        keep(found, given)
        parts: dict[str, Callable[[], Any]] = {
            "imports": lambda: time_imports(pythons, min(given.repeats, 2)),
            "correctness": lambda: check_all(place / "timed", pythons, given),
            "memory": lambda: weigh_all(place / "weighed", pythons, given),
        }
        for name in (name for name in parts if name in wanted):
            found[name] = parts[name]()
            keep(found, given)
    print(json.dumps(found, indent=1))
    if given.page:
        fill_tables(PAGE, make_tables(found))


def keep(found: Answer, given: argparse.Namespace) -> None:
    """Write what was measured so far, so that nothing of it is lost with what comes next."""
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*ROWS, *PARTS]
    parser.add_argument(
        "--environments", type=Path, default=ROOT / "build" / "peers", help="a folder per peer, made if missing"
    )
    parser.add_argument("--only", nargs="+", choices=names, help="measure these alone")
    parser.add_argument("--skip", nargs="+", choices=names, help="leave these out")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="ours is always among them")
    parser.add_argument("--repeats", type=int, default=3, help="rounds after one that warms up")
    parser.add_argument("--slow", type=float, default=12.0, help="what takes more seconds than this runs once, unwarmed")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds for one answer of a peer")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--weighed", type=int, nargs=3, default=[24, 1024, 128_000], metavar=("LAYERS", "WIDTH", "VOCABULARY"))
    parser.add_argument("--prompts", type=int, default=16, help="texts of the logit lens on the last token")
    parser.add_argument("--few", type=int, default=2, help="texts of the slower rows")
    parser.add_argument("--length", type=int, default=256, help="tokens of a text")
    parser.add_argument("--tokens", type=int, default=32, help="tokens that are generated")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--models", help="a folder that keeps the random models for another run of the same sizes")
    parser.add_argument("--json", type=Path, help="a file for the result; what was not measured this time stays in it")
    parser.add_argument("--page", action="store_true", help="fill the tables of docs/benchmarks.md")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one round: only to see that it runs")
    given = parser.parse_args()
    if given.quick:
        given.layers, given.width, given.vocabulary, given.weighed = 10, 64, 300, [3, 64, 500]
        given.prompts, given.few, given.length, given.tokens, given.repeats = 3, 2, 24, 4, 1
    if given.page and given.quick:
        parser.error("--quick is no measurement; leave --page out")
    given.peers = [peer for peer in PEERS if peer in given.peers or peer in ("hyperlens", "plain")]
    return given


def find_pythons(given: argparse.Namespace) -> tuple[dict[str, str], dict[str, str]]:
    """The interpreter of each peer, and why those have none that have none."""
    pythons, reasons = {}, {}
    for peer in given.peers:
        try:
            pythons[peer] = find_python(peer, given.environments)
        except (subprocess.CalledProcessError, OSError) as error:
            reasons[peer] = f"could not be installed: {error}"
    return pythons, reasons


def prepare_models(place: Path, given: argparse.Namespace) -> None:
    """The model that is timed and the one that is weighed, each with its texts."""
    count, length = given.vocabulary, given.length
    longest = 2 * length + given.tokens
    save_model(place / "timed", given.layers, given.width, count, longest)
    lengths = {"equal": [length] * given.prompts, "ragged": spread_lengths(given.prompts, length)}
    lengths |= {"few": [length] * given.few, "one": [length], "train": [length // 2] * given.few * 2}
    save_texts(place / "timed", {name: draw_texts(sizes, count, 1) for name, sizes in lengths.items()})
    layers, width, vocabulary = given.weighed
    save_model(place / "weighed", layers, width, vocabulary, longest)
    save_texts(place / "weighed", {"one": draw_texts([length], vocabulary, 1)})


def start_workers(folder: Path, pythons: Mapping[str, str], given: argparse.Namespace) -> dict[str, Worker]:
    """A worker for each peer; none runs before it is asked."""
    setting = {"folder": str(folder), "tokens": given.tokens, "threads": given.threads}
    setting |= {"device": given.device, "dtype": given.dtype}
    return {peer: Worker(peer, python, setting, given.patience) for peer, python in pythons.items()}


def measure_rows(
    names: list[str], folder: Path, pythons: Mapping[str, str], reasons: Mapping[str, str], given: argparse.Namespace
) -> tuple[dict[str, Answer], dict[str, Any]]:
    """All rows by turns, and the versions of the peers that answered."""
    workers = {peer: replace(worker, kept=True) for peer, worker in start_workers(folder, pythons, given).items()}
    labels = {name: find_ways(name, workers, reasons) for name in names}
    rounds: dict[str, list[dict[str, Answer]]] = {name: [] for name in names}
    for number in range(given.repeats + 1):
        for name in names:
            rounds[name].append(run_round(name, labels[name], rounds[name], workers, given))
            shown = {label: round(one["seconds"], 3) for label, one in rounds[name][-1].items() if "seconds" in one}
            tell(f"round {number}, {name}: {shown}")
    versions = {peer: worker.about.get("versions", worker.about.get("failed", "not asked")) for peer, worker in workers.items()}
    for worker in workers.values():
        worker.finish()
    used = versions if names else {}
    return {name: report_row(name, labels[name], rounds[name], given) for name in names}, used


def find_ways(name: str, workers: Mapping[str, Worker], reasons: Mapping[str, str]) -> dict[str, str | None]:
    """Who has a way for a row, as peer or `peer, way`; with the reason where a peer has none."""
    found: dict[str, str | None] = {}
    for peer, worker in workers.items():
        answer = worker.ask(do="describe") if not worker.about else worker.about
        if "failed" in answer:
            found[peer] = answer["failed"]
            continue
        own = [way for way in worker.about["ways"] if way == name or way.startswith(f"{name}, ")]
        found |= {f"{peer}{way.removeprefix(name)}": None for way in own}
        if not own:
            cannot = worker.about["cannot"]
            found[peer] = cannot.get(name) or cannot.get(name.split()[0]) or "not tried"
    return found | {peer: reason for peer, reason in reasons.items()}


def run_round(
    name: str, labels: Mapping[str, str | None], before: list[dict[str, Answer]], workers: Mapping[str, Worker], given: Any
) -> dict[str, Answer]:
    """Each way of a row once, with the row's unit before them all. What failed or was slow before is not run again."""
    row = ROWS[name]
    taken = {"unit": workers["plain"].ask(do="run", row=row.unit, texts=row.texts)}
    for label, reason in labels.items():
        if reason is not None or (before and is_over(before[0][label], given.slow)):
            continue
        peer, _, way = label.partition(", ")
        own = f"{name}, {way}" if way else name
        taken[label] = workers[peer].ask(do="run", row=own, texts=row.texts, values=not before)
    return taken


def is_over(first: Answer, slow: float) -> bool:
    """Whether the first run was enough."""
    return "failed" in first or first["seconds"] > slow


def report_row(
    name: str, labels: Mapping[str, str | None], rounds: list[dict[str, Answer]], given: argparse.Namespace
) -> Answer:
    """Medians, ratios round by round, and how far what was read is from ours."""
    ways: Answer = {}
    for label, reason in labels.items():
        first = rounds[0].get(label, {})
        reason = reason or first.get("failed")
        if reason:
            ways[label] = {"cannot": reason}
            continue
        own = rounds[:1] if is_over(first, given.slow) else rounds[1:]
        seconds = [one[label]["seconds"] for one in own if "seconds" in one.get(label, {})]
        if not seconds:
            ways[label] = {"cannot": "it failed after its first round"}
            continue
        units = [one[label]["seconds"] / one["unit"]["seconds"] for one in own if "seconds" in one.get(label, {})]
        ways[label] = {"seconds": median(seconds), "rounds": seconds, "in_units": median(units)}
        ways[label] |= {
            "ratio": compare_rounds(label, own, rounds),
            "difference": differ(first, rounds[0].get("hyperlens", {})),
        }
    unit = [one["unit"]["seconds"] for one in rounds[1:]]
    details = {"title": ROWS[name].title, "table": ROWS[name].table, "unit": {"way": ROWS[name].unit, "seconds": median(unit)}}
    return details | {"settings": {"prompts": given.prompts, "few": given.few, "length": given.length}, "ways": ways}


def compare_rounds(label: str, own: list[dict[str, Answer]], rounds: list[dict[str, Answer]]) -> Answer | None:
    """How many times ours a peer takes in the same round: median with its 95 % interval over rounds."""
    pairs = [(one[label], one.get("hyperlens", {})) for one in own if label in one]
    ratios = [theirs["seconds"] / ours["seconds"] for theirs, ours in pairs if "seconds" in theirs and "seconds" in ours]
    if not ratios and "seconds" in rounds[0].get("hyperlens", {}):
        ratios = [median(theirs["seconds"] for theirs, _ in pairs) / rounds[0]["hyperlens"]["seconds"]]
    return None if not ratios else bound(ratios)


def bound(ratios: list[float]) -> Answer:
    """Median and percentile-bootstrap interval; none of a single round."""
    drawn = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(drawn, 1), [2.5, 97.5]).tolist() if len(ratios) > 1 else (None, None)
    return {"value": median(ratios), "low": low, "high": high, "n": len(ratios)}


def differ(theirs: Answer, ours: Answer) -> float | None:
    """The largest difference of what both have read, from the last state back, since some leave the first out."""
    if not theirs.get("values") or not ours.get("values"):
        return None
    one, other = np.array(theirs["values"]), np.array(ours["values"])
    shared = min(len(one), len(other))
    return float(np.abs(one[-shared:] - other[-shared:]).max()) if one.shape[1] == other.shape[1] else None


def weigh_all(folder: Path, pythons: Mapping[str, str], given: argparse.Namespace) -> Answer:
    """Peak memory of each way above that of a plain pass of the model by a process that imports the same, both fresh."""
    ways: dict[str, Answer] = {}
    for peer, python in pythons.items():
        if peer == "naive":
            continue
        start = start_workers(folder, {peer: python}, given)[peer]
        about = replace(start)
        plain = weigh_apart(replace(start, plain=True), "forward", about)
        for row in ("last", "all"):
            for label, reason in find_ways(row, {peer: about}, {}).items():
                way = f"{row}, {label.partition(', ')[2]}".removesuffix(", ")
                peak = {"cannot": reason} if reason else weigh_apart(replace(start), way)
                above = {"above_mb": peak["mb"] - plain["mb"]} if "mb" in peak and "mb" in plain else {}
                failed = {"cannot": peak["failed"]} if "failed" in peak else {}
                ways.setdefault(label, {"plain": plain})[row] = {**peak, **above, **failed}
    return {"model": given.weighed, "tokens": given.length, "ways": ways}


def weigh_apart(worker: Worker, way: str, told: Worker | None = None) -> Answer:
    """The peak of one way in a process of its own; what the process says of its ways is told to another."""
    peak = worker.ask(do="peak", row=way, texts="one")
    if told is not None:
        told.about = worker.about
    worker.finish()
    tell(f"memory, {worker.peer}, {way}: {peak}")
    return peak


def time_imports(pythons: Mapping[str, str], repeats: int) -> list[Answer]:
    """Seconds of each import in a fresh interpreter, less those of an interpreter that does nothing."""
    rows = [(peer, statement) for peer in pythons for statement in IMPORTS.get(peer, ())]
    taken: dict[tuple[str, str], list[float]] = {row: [] for row in rows}
    for number in range(repeats + 1):
        for peer, statement in rows:
            seconds = time_python(pythons[peer], statement) - time_python(pythons[peer], "pass")
            if number:  # the first fills the caches of files
                taken[peer, statement].append(seconds)
    return [{"peer": peer, "statement": one, "seconds": median(taken[peer, one])} for peer, one in rows]


def time_python(python: str, statement: str) -> float:
    """Wall-clock seconds of an interpreter that runs one statement."""
    began = time.perf_counter()
    subprocess.run([python, "-c", statement], check=True, capture_output=True)
    return time.perf_counter() - began


def check_all(folder: Path, pythons: Mapping[str, str], given: argparse.Namespace) -> Answer:
    """For the random and the trained model: how far each peer's last read-out is from the model on each text alone."""
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))["ragged"]
    models: list[tuple[str, Path, Texts]] = [("random", folder, Texts(**texts))]
    trained = trained_texts()
    if trained is not None:
        models.append((trained[0].name, *trained))
    found: Answer = {}
    for name, place, given_texts in models:
        chosen, sure = judge_alone(place, given_texts)
        found[name] = {}
        for peer, worker in start_workers(place, pythons, given).items():
            if peer != "naive":
                found[name][peer] = check_peer(worker, given_texts, chosen, sure)
                tell(f"{name}, {peer}: {found[name][peer]}")
                worker.finish()
    return found


def check_peer(worker: Worker, texts: Texts, chosen: list[int], sure: list[float]) -> Answer:
    """One text at a time, a batch as the peer takes it where nothing is said, and padded on either side and read at its end."""
    found = {}
    for name, side in (("single", None), ("default", "default"), ("right", "right"), ("left", "left")):
        answer = worker.ask(do="check", texts=asdict(texts), chosen=chosen, side=side)
        found[name] = {"cannot": answer["failed"]} if "failed" in answer else {"difference": far(answer["values"], sure)}
    return found


def far(values: Iterable[float], others: Iterable[float]) -> float:
    """The largest difference."""
    return max(abs(one - other) for one, other in zip(values, others, strict=True))


def tell(line: str) -> None:
    """How far it is, on the error stream; the output holds the JSON alone."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
