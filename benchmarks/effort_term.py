"""What the effort-preserving term adds to a training step of the reference model, beside its arithmetic floor; prints JSON.

A step is forward pass, loss, backward pass and AdamW. The floor is what must be run besides: states · m / L of a
step. All variants take turns in one process; each is divided by the plain steps just before and after it, and medians count.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from statistics import median, quantiles

import torch

import hyperlens as hl
from hyperlens.certificate import pad_texts
from hyperlens.effort import measure_shortfall
from hyperlens.encoding import encode_samples
from hyperlens.splice import Probes, Splice
from hyperlens.tasks.graded import GRADED
from hyperlens.training.effort_term import choose_states, read_effort

SAMPLES, BATCH = 7, 32
MOST = 1.25
"""The target: the term's share of a step by its floor."""


def main() -> None:
    """Time the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=40, help="rounds, each of every variant")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--states", type=int, default=4)
    parser.add_argument("--focal-depth", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = hl.load_model("reference")
    floor = options.states * options.focal_depth / base.layers
    found = {
        domain: time_steps(base, domain, options.states, options.focal_depth, options.repeats)
        for domain in ("mathematics", "code")
    }
    shares = {domain: row["share"] for domain, row in found.items()}
    print(
        json.dumps(
            {
                "floor": floor,
                "share": shares,
                "share_by_floor": {domain: round(share / floor, 3) for domain, share in shares.items()},
                "target": MOST,
                "details": found,
                "threads": options.threads,
                "states": options.states,
                "focal_depth": options.focal_depth,
            },
            indent=1,
        )
    )


def time_steps(base: hl.Model, domain: str, count: int, depth: int, repeats: int) -> dict[str, object]:
    """The share of a step that the term adds on a batch of 32 questions, with the middle half of its values."""
    step, shape = prepare_steps(base, domain, count, depth)
    for term in (False, True):
        step(term)
    plain, shares = [measure(step, False)], []
    for _ in range(repeats):
        taken = measure(step, True)
        plain.append(measure(step, False))
        shares.append(taken / ((plain[-2] + plain[-1]) / 2) - 1)
    low, _, high = quantiles(shares, n=4)
    return {
        "share": round(median(shares), 4),
        "middle_half": [round(low, 4), round(high, 4)],
        "plain_step_ms": round(1000 * median(plain), 1),
        "batch": shape,
    }


def prepare_steps(base: hl.Model, domain: str, count: int, depth: int) -> tuple[Callable[[bool], None], dict[str, int]]:
    """A training step on one batch, with the term or without; and the size of the batch."""
    network = copy.deepcopy(base.network).train()
    splice, states = Splice(network), choose_states(base.layers, depth, count)
    encoded = encode_samples(GRADED[domain].samples(SAMPLES, 0, "wide")[:BATCH], base, "answer")
    inputs, _ = pad_texts([torch.tensor(one.ids) for one in encoded], "right", splice.filler)
    rows = torch.tensor([row for row, one in enumerate(encoded) for _ in one.positions])
    probes = Probes(rows, torch.tensor([place for one in encoded for place in one.positions]))
    targets = torch.tensor([token for one in encoded for token in one.following()])
    labels = torch.full_like(inputs.ids, -100)
    labels[probes.rows, probes.positions + 1] = targets
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-6)
    wanted = torch.full((len(rows),), 0.8)

    def step(term: bool) -> None:
        with splice.watch({*states, splice.depth} if term else set()) as recorded:
            loss = network(input_ids=inputs.ids, attention_mask=inputs.mask, labels=labels).loss
        if term:
            found = read_effort(splice, inputs, recorded, states, depth, probes, targets)
            loss = loss + measure_shortfall(found, wanted).mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step, {"rows": len(encoded), "tokens": inputs.ids.shape[1], "answer_tokens": len(rows)}


def measure(step: Callable[[bool], None], term: bool) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    step(term)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
