"""Commands about lenses: `evaluate-lenses`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperlens.cli.app import (
    BatchTokens,
    ContextName,
    Device,
    DeviceMap,
    DType,
    Json,
    MemoryMb,
    ModelName,
    RemoteCode,
    Revision,
    Seed,
    app,
    load,
    make_console,
    parse_depths,
    print_json,
    working,
)
from hyperlens.errors import InputError

if TYPE_CHECKING:
    from hyperlens.lenses import Lens
    from hyperlens.models import Model

HYPER = "hyper"
"""What HyperLens is called beside lenses with names of their own."""


@app.command("evaluate-lenses")
def evaluate_lenses(
    model: ModelName,
    text: Annotated[
        list[Path] | None, typer.Option("--text", help="A file of running text, or .jsonl; may be repeated.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="One text or JSON object per line.")] = None,
    task: Annotated[list[str] | None, typer.Option("--task", help="A task, such as logic or gsm8k; may be repeated.")] = None,
    data: Annotated[str, typer.Option("--data", help="Folder with local copies of data sets.")] = "",
    limit: Annotated[int, typer.Option("--limit", help="Most texts, of a task of each of its levels.")] = 50,
    lens: Annotated[list[str] | None, typer.Option("--lens", help="Folder of a tuned lens; may be repeated.")] = None,
    transfer: Annotated[bool, typer.Option("--transfer", help="Read with lenses of another model.")] = False,
    focal_depth: Annotated[
        str, typer.Option("--focal-depth", help="Numbers such as 1,2,4 of HyperLens; by default 1,2,4,8 as far as there are.")
    ] = "",
    context: ContextName = "jump",
    repeats: Annotated[int, typer.Option("--repeats", help="How often the time of each row is measured; 0 for never.")] = 1,
    seed: Seed = 0,
    batch_tokens: BatchTokens = 4096,
    memory_mb: MemoryMb = 256,
    dtype: DType = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    out: Annotated[Path | None, typer.Option("--out", help="File for all of it as JSON.")] = None,
    json: Json = False,
) -> None:
    """Lenses side by side on identical texts: KL, bias and next-token loss by state, separation by difficulty, and cost.
    Without texts, our questions."""
    from hyperlens.artefact import check_file, to_json, write_file

    if out is not None:
        check_file(out)
    if limit < 1:
        raise InputError(f"the limit is {limit} texts; give a number from 1 up")
    if sum(map(bool, (text, file, task))) > 1:
        raise InputError("--text, --file and --task each say what is read; give one of them")
    with working("loading and proving the model"):
        from hyperlens import evaluation
        from hyperlens.tracing import Limits

        depths, tuned = parse_depths(focal_depth) if focal_depth else None, _load_lenses(lens or [], context, transfer)
        loaded = load(model, dtype, device, device_map, revision, trust_remote_code)
        samples = _gather_texts(loaded, text, file, task, data, limit, seed)
    limits, lenses = Limits(memory_mb, batch_tokens), tuned | _focus(depths or evaluation.list_depths(loaded), context)
    document = evaluation.evaluate_lenses(loaded, samples, lenses, limits, seed, repeats).describe()
    if out is not None:
        write_file(out, to_json(document, indent=1) + "\n")
    if json:
        print_json(document)
    else:
        from hyperlens.terminal import show_evaluation

        show_evaluation(make_console(), document)


def _load_lenses(folders: Sequence[str], context: str, transfer: bool) -> dict[str, Lens]:
    """The logit lens, and the tuned lenses by the names of their folders. Raises InputError."""
    from hyperlens.lenses import LogitLens, load_lens

    lenses: dict[str, Lens] = {"logit": LogitLens()}
    for folder in folders:
        if (name := Path(folder).name) in {*lenses, HYPER}:
            raise InputError(f'two lenses are called "{name}"; give their folders different names')
        lenses[name] = load_lens(folder, context=context, transfer=transfer)
    return lenses


def _focus(depths: tuple[int, ...] | str, context: str) -> dict[str, Lens]:
    """HyperLens at some focal depths, if there are any."""
    from hyperlens.lenses import HyperLens

    return {HYPER: HyperLens(depths, context)} if depths else {}


def _gather_texts(
    model: Model, text: list[Path] | None, file: Path | None, task: list[str] | None, data: str, limit: int, seed: int
) -> list[Any]:
    """Chunks of running text, the samples of a file, or those of tasks. Raises InputError."""
    from hyperlens.tasks import GRADED, TaskSpec, draw_task, read_samples
    from hyperlens.training.texts import fit_length, read_source

    if text:
        sources = [read_source(model, one, fit_length(model, None)) for one in text]
        return [chunk for source in sources for part in source.texts for chunk in part if len(chunk) > 1][:limit]
    if file is not None:
        return list(read_samples(file)[:limit])
    return [sample for name in task or GRADED for sample in draw_task(TaskSpec(name), limit, seed, data).samples]
