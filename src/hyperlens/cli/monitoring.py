"""The command that listens to a model while it speaks: `monitor`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperlens.cli.app import (
    Chat,
    Device,
    DeviceMap,
    DType,
    FocalDepth,
    Json,
    LensName,
    ModelName,
    RemoteCode,
    Revision,
    Seed,
    Transfer,
    app,
    load,
    make_console,
    open_lens,
    print_json,
    working,
)
from hyperlens.errors import InputError

if TYPE_CHECKING:
    from hyperlens.monitoring.generation import LiveToken

Stride = Annotated[int, typer.Option("--stride", help="Read every so many states; the last is always read.")]
Candidates = Annotated[
    int | None,
    typer.Option("--candidates", help="Read among so many top tokens of the model, which is cheaper; all by default."),
]
Together = Annotated[
    int, typer.Option("--together", help="Read so many tokens at a time, which is cheaper, and tell them later.")
]


LEAST_TEMPERATURE = 0.001
"""Below it the logits, divided by it, are no numbers any more."""


@app.command()
def monitor(
    model: ModelName,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the model goes on from.")],
    chat: Chat = False,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Longest answer.")] = 32,
    temperature: Annotated[float, typer.Option("--temperature", help="0 takes the top token, above 0 draws.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Draw from the tokens of this share of the probability.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="A text that ends the answer; may be repeated.")] = None,
    seed: Seed = 0,
    lens: LensName = "hyper",
    focal_depth: FocalDepth = "",
    transfer: Transfer = False,
    stride: Stride = 1,
    candidates: Candidates = None,
    top_k: Annotated[int, typer.Option("--top-k", help="Top tokens to keep of every state, with --json.")] = 0,
    together: Together = 1,
    dtype: DType = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to save the trajectory in.")] = None,
    json: Json = False,
) -> None:
    """Let MODEL go on from PROMPT, its tokens coloured by effort as they come. --json prints one object per token."""
    from hyperlens.artefact import check_place

    settings = _describe_generation(max_new_tokens, temperature, top_p, stop)
    if not 0 <= seed < 2**63:
        raise InputError(f"the seed is {seed}; give a whole number from 0 up, below 2 to the power of 63")
    if out is not None:
        if stride > 1:
            raise InputError(
                "a trajectory is saved whole, and --stride leaves states out; leave one of --out and --stride away"
            )
        check_place(out, "trajectory")
    with working("loading and proving the model"):
        import torch

        from hyperlens.monitoring.generation import Monitor
        from hyperlens.tasks import Sample

        opened = open_lens(lens, focal_depth, "jump" if lens == "logit" else "cached", "", transfer)
        loaded = load(model, dtype, device, device_map, revision, trust_remote_code)
        watched = Monitor(loaded, opened, stride, candidates, top_k, together)
    torch.manual_seed(seed)
    console = make_console()
    generated = watched.generate(Sample(prompt, chat=chat), _make_writer(console, prompt, json), **settings)
    if out is not None:
        generated.trajectory().save(out)
    if json:
        print_json({"text": generated.texts[0], "manifest": generated.manifest})
    else:
        from hyperlens.terminal import show_generation

        console.print()
        show_generation(console, generated.tokens, generated.manifest)


def _describe_generation(max_new_tokens: int, temperature: float, top_p: float, stop: list[str] | None) -> dict[str, Any]:
    """The options as `generate` has them; whatever else the model's own settings say. Raises InputError."""
    if max_new_tokens < 1:
        raise InputError(f"--max-new-tokens is {max_new_tokens}; give a number from 1 up")
    if temperature != 0 and not LEAST_TEMPERATURE <= temperature <= 100:
        raise InputError(
            f"the temperature is {temperature}; give 0 for the top tokens, or a number from {LEAST_TEMPERATURE} up"
        )
    if not 0 < top_p <= 1:
        raise InputError(f"--top-p is {top_p}; give a share above 0, at most 1")
    drawn = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    plain = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"max_new_tokens": max_new_tokens, **(drawn if temperature else plain)} | ({"stop_strings": stop} if stop else {})


def _make_writer(console: Any, prompt: str, json: bool) -> Callable[[LiveToken], None]:
    """What each token is told to: a line of JSON, or coloured text behind the prompt."""
    if json:
        return lambda token: print_json(token.describe())
    from hyperlens.terminal import write_prompt, write_token

    def write(token: LiveToken) -> None:
        if token.index == 0:
            write_prompt(console, prompt)
        write_token(console, token)

    return write
