"""Commands about lenses: `evaluate-lenses`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    name_folders,
    parse_depths,
    print_json,
    working,
)
from hyperlens.errors import HyperLensWarning, InputError

if TYPE_CHECKING:
    from hyperlens.lenses import Lens
    from hyperlens.models import Model
    from hyperlens.tracing import Limits
    from hyperlens.training.texts import Source

HYPER = "hyper"
"""What HyperLens is called beside lenses with names of their own."""
KIND = "evaluation of lenses"
OURS = f'"kind": "{KIND}"'
"""What tells a document of ours from a file that must not be replaced."""


@dataclass(frozen=True)
class Picked:
    """What is read of a source, its texts in their parts, and what the document says of it."""

    texts: Sequence[Sequence[Any]]
    about: Mapping[str, Any]


@app.command("evaluate-lenses")
def evaluate_lenses(
    model: ModelName,
    text: Annotated[
        list[Path] | None, typer.Option("--text", help="A file of running text, or .jsonl; may be repeated.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="One text or JSON object per line.")] = None,
    task: Annotated[list[str] | None, typer.Option("--task", help="A task, such as logic or gsm8k; may be repeated.")] = None,
    data: Annotated[str, typer.Option("--data", help="Folder with local copies of data sets.")] = "",
    limit: Annotated[int, typer.Option("--limit", help="Most texts of each file, of each level of a task.")] = 50,
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
    from hyperlens.resampling import check_seed

    check_seed(seed)
    if out is not None:
        check_file(out, OURS)
    if limit < 1:
        raise InputError(f"the limit is {limit} texts; give a number from 1 up")
    if sum(map(bool, (text, file, task))) > 1:
        raise InputError("--text, --file and --task each say what is read; give one of them")
    depths = parse_depths(focal_depth) if focal_depth else None
    with working("loading and proving the model"):
        from hyperlens.tracing import Limits

        folders = _name_folders(lens or [])
        tuned = _load_lenses(folders, context, transfer)
        loaded = load(model, dtype, device, device_map, revision, trust_remote_code)
        picked = _pick_texts(loaded, text, file, task, data, limit, seed)
    lenses = tuned | _focus(loaded, depths, context)
    sources = _describe_sources(picked, folders)
    document = _evaluate(loaded, picked, lenses, Limits(memory_mb, batch_tokens), seed, repeats)
    document = {"kind": KIND, "sources": sources} | document
    if out is not None:
        write_file(out, to_json(document, indent=1) + "\n")
    if json:
        print_json(document)
    else:
        from hyperlens.terminal import show_evaluation

        show_evaluation(make_console(), document)


def _name_folders(folders: Sequence[str]) -> dict[str, str]:
    """The folders of tuned lenses by what their lenses are called: what sets them apart. Raises InputError."""
    named = name_folders(folders)
    if taken := {"logit", HYPER} & named.keys():
        raise InputError(f'two lenses are called "{min(taken)}"; give their folders different names')
    return named


def _load_lenses(folders: Mapping[str, str], context: str, transfer: bool) -> dict[str, Lens]:
    """The logit lens, and the tuned lenses by name. Raises ArtefactError."""
    from hyperlens.lenses import LogitLens, load_lens

    tuned = {name: load_lens(folder, context=context, transfer=transfer) for name, folder in folders.items()}
    return {"logit": LogitLens(), **tuned}


def _focus(model: Model, depths: tuple[int, ...] | str | None, context: str) -> dict[str, Lens]:
    """HyperLens at these focal depths or the usual ones, if there are any."""
    from hyperlens.evaluation import list_depths
    from hyperlens.lenses import HyperLens

    chosen = depths or list_depths(model)
    return {HYPER: HyperLens(chosen, context)} if chosen else {}


def _pick_texts(
    model: Model, text: list[Path] | None, file: Path | None, task: list[str] | None, data: str, limit: int, seed: int
) -> list[Picked]:
    """What is read of each file of running text, of a file of samples, or of each task. Raises InputError."""
    from hyperlens.artefact import hash_file
    from hyperlens.tasks import GRADED, TaskSpec, draw_task, read_samples
    from hyperlens.training.texts import collect_texts, fit_length, read_source

    length = fit_length(model, None)
    if text:
        return [_pick_chunks(read_source(model, one, length), one.suffix == ".jsonl", limit) for one in dict.fromkeys(text)]
    if file is not None:
        about = {"kind": "file", "name": file.name, "sha256": hash_file(file), "unit": "text"}
        return [_pick([[sample] for sample in read_samples(file)], about, limit)]
    drawn = {name: draw_task(TaskSpec(name), limit, seed, data).samples for name in task or GRADED}
    sources = {name: collect_texts(model, samples, length, "task", name) for name, samples in drawn.items()}
    return [
        _pick([[sample] for sample in drawn[name]], {"kind": "task", "name": name, "sha256": one.sha256, "unit": "question"})
        for name, one in sources.items()
    ]


def _pick_chunks(source: Source, whole: bool, limit: int) -> Picked:
    """Texts of a source in their chunks; of running text, which is no `whole` texts, each chunk is one. Raises InputError."""
    texts = [parts for text in source.texts if (parts := [chunk for chunk in text if len(chunk) > 1])]
    if not texts:
        raise InputError(f"{source.name} holds a single token, which has no next one; give longer texts")
    about = {"kind": source.kind, "name": source.name, "sha256": source.sha256, "unit": "text" if whole else "chunk"}
    return _pick(texts, about, limit)


def _pick(texts: Sequence[Sequence[Any]], about: Mapping[str, Any], limit: int | None = None) -> Picked:
    """At most `limit` of the texts, spread evenly over them."""
    count = len(texts) if limit is None else min(limit, len(texts))
    read = [texts[number * len(texts) // count] for number in range(count)]
    return Picked(read, {**about, "texts": len(texts), "read": count})


def _describe_sources(picked: Sequence[Picked], folders: Mapping[str, str]) -> list[dict[str, Any]]:
    """What is read of what, and which lenses were trained on it; of these a warning is given."""
    from hyperlens.lenses.tuned import read_sources

    trained = {name: {one["sha256"] for one in read_sources(folder)} for name, folder in folders.items()}
    described = []
    for one in picked:
        seen = [name for name, hashes in trained.items() if one.about["sha256"] in hashes]
        for name in seen:
            warnings.warn(
                f"{name} was trained on {one.about['name']}, so that how near it is there says nothing of other text",
                HyperLensWarning,
                stacklevel=2,
            )
        described.append({**one.about, "trained_on_it": seen})
    return described


def _evaluate(
    model: Model, picked: Sequence[Picked], lenses: Mapping[str, Lens], limits: Limits, seed: int, repeats: int
) -> dict[str, Any]:
    """The evaluation as JSON, its intervals over whole texts."""
    from hyperlens.evaluation import evaluate_lenses

    texts = [text for one in picked for text in one.texts]
    parts, owners = [part for text in texts for part in text], [number for number, text in enumerate(texts) for _ in text]
    return evaluate_lenses(model, parts, lenses, limits, seed, repeats, owners).describe()
