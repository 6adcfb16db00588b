"""Commands that read texts: `check` and `trace`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from hyperlens.cli.app import (
    BatchTokens,
    Between,
    ContextName,
    Device,
    DeviceMap,
    DType,
    FocalDepth,
    Json,
    LensName,
    MemoryMb,
    ModelName,
    ReadingNames,
    RemoteCode,
    Revision,
    TopK,
    Transfer,
    app,
    load,
    make_console,
    open_lens,
    print_json,
    split,
    working,
)
from hyperlens.errors import InputError


@app.command()
def check(
    model: ModelName,
    dtype: DType = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Prove that a lens on MODEL gives the model's own output, and say in which contexts."""
    with working("loading and proving the model"):
        from hyperlens.models import check_model

        options = {"device": device, "device_map": device_map, "revision": revision, "trust_remote_code": trust_remote_code}
        certificate = check_model(model, dtype=dtype, **options)
    if json:
        print_json(certificate.describe())
    else:
        from hyperlens.terminal import show_certificate

        show_certificate(make_console(), model, certificate.describe())
    certificate.require("jump")


@app.command()
def trace(
    model: ModelName,
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT...", help="Texts to read.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="One text or JSON object per line.")] = None,
    lens: LensName = "hyper",
    focal_depth: FocalDepth = "",
    context: ContextName = "jump",
    between: Between = "",
    transfer: Transfer = False,
    image: Annotated[
        list[str] | None, typer.Option("--image", help="An image that each text names; more of them in order.")
    ] = None,
    positions: Annotated[str | None, typer.Option("--positions", help="last, answer, all or generated.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="What follows each text, with its leading space.")] = None,
    options: Annotated[str | None, typer.Option("--options", help="Answer options, separated by commas.")] = None,
    letter: Annotated[bool, typer.Option("--letter/--no-letter", help="List the options as A, B, C in the prompt.")] = True,
    reading: ReadingNames = "probability",
    neighbours: Annotated[
        bool, typer.Option("--neighbours", help="Add other people's numbers; see docs/neighbours.md.")
    ] = False,
    top_k: TopK = 0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Longest greedy answer.")] = 32,
    limit: Annotated[int | None, typer.Option("--limit", help="Read only the first texts.")] = None,
    batch_tokens: BatchTokens = 4096,
    memory_mb: MemoryMb = 256,
    dtype: DType = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to save the trajectory in.")] = None,
    json: Json = False,
) -> None:
    """Read texts through a lens: the confidence trajectory, effort and commit state of each position."""
    from hyperlens.artefact import check_place

    if out is not None:
        check_place(out, "trajectory")
    samples = _gather_samples(texts, file, target, options, image, limit)
    with working("loading and proving the model"):
        from hyperlens.tracing import Limits
        from hyperlens.tracing import trace as read

        opened = open_lens(lens, focal_depth, context, between, transfer)
        limits = Limits(memory_mb, batch_tokens, max_new_tokens=max_new_tokens, top_k=top_k, letter=letter)
        loaded = load(model, dtype, device, device_map, revision, trust_remote_code)
    readings = split(reading) + (_needed_by_neighbours() if neighbours else ())
    trajectory = read(loaded, samples, opened, positions, readings=readings, limits=limits)
    if out is not None:
        trajectory.save(out)
    if json:
        from hyperlens.neighbours import describe_neighbours
        from hyperlens.trajectory import describe_trajectory

        beside = {"neighbours": describe_neighbours(trajectory)} if neighbours else {}
        print_json(describe_trajectory(trajectory, split(reading)[0]) | beside)
    else:
        from hyperlens.terminal import show_neighbours, show_trajectory

        show_trajectory(make_console(), trajectory)
        if neighbours:
            show_neighbours(make_console(), trajectory)


def _needed_by_neighbours() -> tuple[str, ...]:
    from hyperlens.neighbours import NEEDED

    return NEEDED


def _gather_samples(
    texts: list[str] | None,
    file: Path | None,
    target: str | None,
    options: str | None,
    images: list[str] | None,
    limit: int | None,
) -> list[Any]:
    """The texts of the command line and of the file, with the target, options and images that were given for all."""
    from hyperlens.tasks import Sample, read_samples

    samples = [Sample(text) for text in texts or []] + (read_samples(file) if file is not None else [])
    if not samples:
        raise InputError("there is no text to read; give one behind the model, or a file with --file")
    if limit is not None and limit < 1:
        raise InputError(f"the limit is {limit} texts; give a number from 1 up")
    changes: dict[str, Any] = {} if target is None else {"target": target}
    if options is not None:
        changes["options"] = tuple(f" {option}" for option in split(options))
    if images:
        changes["images"] = tuple(images)
    return [dataclasses.replace(sample, **changes) for sample in samples[:limit]]
