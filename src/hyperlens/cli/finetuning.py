"""The command that fine-tunes: `finetune`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperlens.cli.app import (
    Chat,
    DataFolder,
    Device,
    DeviceMap,
    DType,
    FewShot,
    Interrupted,
    Json,
    Limit,
    ModelName,
    RemoteCode,
    Revision,
    Seed,
    TaskNames,
    app,
    load,
    make_console,
    print_json,
    working,
)
from hyperlens.errors import InputError
from hyperlens.resampling import next_seed

if TYPE_CHECKING:
    from hyperlens.tasks import Sample
    from hyperlens.terminal.finetuning import Asked


WATCHED = 64
"""Samples of a task that are watched."""
LEAST_WATCHED = 8
"""Fewer show nothing."""


@app.command()
def finetune(
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", help="Folder for the adapter, or the whole model.")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DATA...", help="Files (.jsonl, .json, .csv, .parquet) with prompt and target, or messages."),
    ] = None,
    task: TaskNames = None,
    limit: Limit = 50,
    few_shot: FewShot = 0,
    chat: Chat = False,
    data: DataFolder = "",
    method: Annotated[str, typer.Option("--method", help="lora or full.")] = "lora",
    rate: Annotated[float | None, typer.Option("--rate", help="Highest learning rate; what is usual by default.")] = None,
    epochs: Annotated[float, typer.Option("--epochs", help="How often every example is seen.")] = 1.0,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimiser steps, in place of --epochs.")] = None,
    batch: Annotated[int, typer.Option("--batch", help="Examples of a step.")] = 16,
    accumulation: Annotated[int, typer.Option("--accumulation", help="Parts of a step, for less memory.")] = 1,
    warmup: Annotated[int, typer.Option("--warmup", help="Steps over which the rate rises.")] = 0,
    decay: Annotated[str, typer.Option("--decay", help="How the rate falls: linear, cosine or none.")] = "linear",
    weight_decay: Annotated[float, typer.Option("--weight-decay", help="Share of the weights taken away, times the rate.")] = 0,
    clip: Annotated[float, typer.Option("--clip", help="Longest gradient.")] = 1.0,
    label_smoothing: Annotated[float, typer.Option("--label-smoothing", help="Share spread over the vocabulary.")] = 0,
    kl: Annotated[float, typer.Option("--kl", help="Weight of the KL from the base.")] = 0,
    effort_weight: Annotated[float, typer.Option("--effort-weight", help="Weight of the effort term; 0 for none.")] = 0,
    focal_depth: Annotated[int, typer.Option("--focal-depth", help="Deepest layers at which the term reads effort.")] = 2,
    states: Annotated[int, typer.Option("--states", help="How many states it reads.")] = 4,
    aim: Annotated[str, typer.Option("--aim", help="What it asks of effort: keep, raise or lower.")] = "keep",
    shift: Annotated[float, typer.Option("--shift", help="How far to raise or lower it.")] = 0,
    lora_rank: Annotated[int, typer.Option("--lora-rank", help="Rank of the adapter.")] = 16,
    lora_alpha: Annotated[float, typer.Option("--lora-alpha", help="Strength of the adapter, times its rank.")] = 32,
    lora_dropout: Annotated[float, typer.Option("--lora-dropout", help="Share of its inputs left out in training.")] = 0,
    lora_targets: Annotated[str, typer.Option("--lora-targets", help="Layers, such as q_proj,v_proj.")] = "all-linear",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory for more time.")
    ] = False,
    length: Annotated[int | None, typer.Option("--length", help="Most tokens of an example; longer ones are refused.")] = None,
    end: Annotated[bool, typer.Option("--end/--no-end", help="Learn the token that ends a text after each answer.")] = True,
    save_every: Annotated[int, typer.Option("--save-every", help="Steps between checkpoints.")] = 100,
    log_every: Annotated[int, typer.Option("--log-every", help="Steps between lines.")] = 10,
    watch: Annotated[str, typer.Option("--watch", help="A file or task to measure as training goes on.")] = "",
    watch_every: Annotated[int, typer.Option("--watch-every", help="Steps between measurements.")] = 100,
    watch_share: Annotated[float, typer.Option("--watch-share", help="Most of the time that they may take.")] = 0.05,
    stop: Annotated[str, typer.Option("--stop", help='A pattern to stop at, such as "blind confidence".')] = "",
    keep: Annotated[str, typer.Option("--keep", help="Keep the best by accuracy, confidence or effort as well.")] = "",
    resume: Annotated[bool, typer.Option("--resume/--anew", help="Go on from the last checkpoint, if there is one.")] = True,
    seed: Seed = 0,
    dtype: DType = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Fine-tune MODEL on DATA, or on tasks, and let it keep its effort. Goes on where it was interrupted."""
    if not (files or task):
        raise InputError("there is nothing to train on; give files of examples, or --task NAME")
    if not watch and (stop or keep):
        raise InputError("--stop and --keep go by what is watched; give --watch FILE or TASK too")
    from hyperlens.training.finetuning.recipe import FineTuneRecipe

    recipe = FineTuneRecipe(
        method=method,
        rate=rate,
        epochs=epochs,
        steps=steps,
        batch=batch,
        accumulation=accumulation,
        warmup=warmup,
        decay=decay,
        weight_decay=weight_decay,
        clip=clip,
        label_smoothing=label_smoothing,
        kl_weight=kl,
        effort_weight=effort_weight,
        focal_depth=focal_depth,
        states=states,
        aim=aim,
        shift=shift,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        lora_targets=lora_targets,
        gradient_checkpointing=gradient_checkpointing,
        length=length,
        end=end,
        save_every=save_every,
        log_every=log_every,
        seed=seed,
    )
    with working("loading and proving the model"):
        from hyperlens.terminal.finetuning import Asked
        from hyperlens.training.finetuning.tuning import fine_tune

        samples = [one for file in files or [] for one in _read(file, chat)]
        samples += [one for name in dict.fromkeys(task or []) for one in _draw(name, limit, few_shot, chat, seed, data)]
        probe = _find_probe(watch, samples, chat, seed, data) if watch else []
        rules = {"most_share": watch_share, "stop": stop or None, "keep": keep or None}
        light = _watch(probe, watch_every, focal_depth, **rules) if watch else None
        loaded = load(model, dtype, device, device_map, revision, trust_remote_code)
    try:
        tuned = fine_tune(loaded, samples, recipe, out, [light] if light else [], resume, _report(light, json))
    except KeyboardInterrupt:
        raise Interrupted(_say_how_far(out, resume)) from None
    if json:
        print_json(tuned.describe())
        return
    options = ["--focal-depth", str(focal_depth)] if effort_weight or watch else []
    options += ["--chat"] if chat else []
    options += ["--data", data] if data else []
    shots = ["--few-shot", str(few_shot)] if few_shot else []
    _show(tuned, Asked(tuple(task or ()), bool(files), tuple(options), tuple(shots), stop))


def _read(file: Path, chat: bool) -> list[Sample]:
    from hyperlens.training.finetuning.files import read_examples

    return read_examples(file, chat)


def _draw(name: str, limit: int, few_shot: int, chat: bool, seed: int, data: str) -> list[Sample]:
    from hyperlens.tasks import TaskSpec, draw_task

    return list(draw_task(TaskSpec(name, few_shot=few_shot, chat=chat), limit, seed, data).samples)


def _find_probe(name: str, trained: list[Sample], chat: bool, seed: int, data: str) -> list[Sample]:
    """The samples of a file; or of a task, spread over its levels, none of which is trained on.

    Raises InputError where too few are left of the task.
    """
    if Path(name).exists():
        return _read(Path(name), chat)
    known, limit, left, drawn = {(sample.prompt, sample.target) for sample in trained}, WATCHED, [], []
    while len(left) < WATCHED and limit < 4 * (WATCHED + len(trained)):  # more only if needed: to draw takes its time
        drawn = _draw(name, limit, 0, chat, next_seed(seed, 1), data)
        left = [sample for sample in drawn if (sample.prompt, sample.target) not in known]
        limit *= 4
    if len(left) < LEAST_WATCHED:
        raise InputError(
            f"of {len(drawn)} samples of {name} {len(left)} are not trained on, which are too few to watch; train on fewer, or "
            "watch another task"
        )
    count = min(WATCHED, len(left))
    return [left[place * len(left) // count] for place in range(count)]


def _watch(probe: list[Sample], every: int, focal_depth: int, **rules: Any) -> Any:
    from hyperlens.monitoring import EffortCallback

    return EffortCallback(probe, every, focal_depth, **rules)


def _report(light: Any, json: bool) -> Callable[[dict[str, Any]], None]:
    """Prints a row of the log, one of what is watched with the name of its pattern."""
    from hyperlens.terminal import show_fine_tuning

    console = make_console()

    def report(row: dict[str, Any]) -> None:
        if "confidence/probe" in row:  # logged right after it was read
            row = {**row, "verdict": light.readings[-1].verdict}
        print_json(row) if json else show_fine_tuning(console, row)

    return report


def _say_how_far(out: Path, resume: bool) -> str:
    """From where a fine-tuning that was stopped goes on."""
    from hyperlens.training.finetuning.keeping import count_steps

    return f"the same command{'' if resume else ', with --resume for --anew,'} goes on from step {count_steps(out)}"


def _show(tuned: Any, asked: Asked) -> None:
    from hyperlens.monitoring.keeping import read_best
    from hyperlens.terminal import show_fine_tuned
    from hyperlens.training.finetuning.keeping import find_checkpoints

    kept = any("effort/kept" in row for row in tuned.log)
    best = read_best(find_checkpoints(tuned.out)) if kept else None
    show_fine_tuned(make_console(), tuned.describe(), tuned.log, asked, best)
