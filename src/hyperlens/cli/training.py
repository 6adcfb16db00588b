"""Commands that train: `tune-lens` and `train-reference`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hyperlens.cli.app import (
    BatchTokens,
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
    print_json,
    working,
)
from hyperlens.errors import InputError

TextFiles = Annotated[
    list[Path] | None,
    typer.Option("--text", help="A text, or a .jsonl with text or prompt and target per line; may be repeated."),
]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="A task, such as logic:plain or gsm8k; may be repeated.")]
Generate = Annotated[int, typer.Option("--generate", help="Texts for the model to write itself.")]
Prompts = Annotated[Path | None, typer.Option("--prompts", help="File of texts that it goes on from; else from nothing.")]


@app.command("tune-lens")
def tune_lens(
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", help="Folder for the lens.")],
    text: TextFiles = None,
    task: Tasks = None,
    generate: Generate = 0,
    prompts: Prompts = None,
    limit: Annotated[int, typer.Option("--limit", help="Samples of each task, or of each of its levels.")] = 1000,
    data: Annotated[str, typer.Option("--data", help="Folder with local copies of data sets.")] = "",
    length: Annotated[int | None, typer.Option("--length", help="Tokens of a chunk; 256 if the context holds them.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="Folder to go on from; by default OUT.checkpoint.")
    ] = None,
    optimiser: Annotated[str, typer.Option("--optimiser", help="muon or adamw.")] = "muon",
    rate: Annotated[float | None, typer.Option("--rate", help="Highest learning rate; what is usual by default.")] = None,
    steps: Annotated[int, typer.Option("--steps", help="Optimiser steps.")] = 500,
    step_tokens: Annotated[int, typer.Option("--step-tokens", help="Tokens of a step, about.")] = 4096,
    warmup: Annotated[int, typer.Option("--warmup", help="Steps over which the rate rises.")] = 20,
    decay: Annotated[str, typer.Option("--decay", help="How the rate falls: linear or cosine.")] = "linear",
    weight_decay: Annotated[float, typer.Option("--weight-decay", help="Pull towards the logit lens.")] = 0.0,
    clip: Annotated[float, typer.Option("--clip", help="Longest gradient of one state.")] = 1.0,
    bias: Annotated[bool, typer.Option("--bias/--no-bias", help="Train a bias beside each matrix.")] = True,
    focal_depth: Annotated[int, typer.Option("--focal-depth", help="Deepest layers that follow a translator.")] = 0,
    autocast: Annotated[
        str | None, typer.Option("--autocast", help="bfloat16 for the model's products in steps; for one in float32.")
    ] = None,
    validation_share: Annotated[float, typer.Option("--validation-share", help="Share of the text held out.")] = 0.1,
    evaluate_every: Annotated[int, typer.Option("--evaluate-every", help="Steps between validations.")] = 50,
    patience: Annotated[int, typer.Option("--patience", help="Validations without a better one to end at; 0: none.")] = 0,
    seed: Seed = 0,
    batch_tokens: BatchTokens = 4096,
    memory_mb: MemoryMb = 256,
    dtype: DType = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Train a tuned lens for MODEL: on files, on tasks, or on what the model writes. Goes on where it was stopped."""
    if not (text or task or generate):
        raise InputError("there is no text to train on; give --text FILE, --task NAME or --generate NUMBER")
    if generate < 0 or (prompts is not None and not generate):
        raise InputError(f"--generate is {generate}; give the number of texts that the model is to write")
    folder = _check_folders(out, checkpoint)
    with working("loading and proving the model"):
        from hyperlens.lenses import save_lens
        from hyperlens.tracing import Limits
        from hyperlens.training.checkpoints import check_checkpoints
        from hyperlens.training.lens_recipe import LensRecipe
        from hyperlens.training.recipe import check_folder
        from hyperlens.training.texts import divide_texts, draw_source, fit_length, generate_source, read_source
        from hyperlens.training.tuning import check_lens, train_translators

        recipe = LensRecipe(
            optimiser=optimiser,
            rate=rate,
            steps=steps,
            step_tokens=step_tokens,
            warmup=warmup,
            decay=decay,
            weight_decay=weight_decay,
            clip=clip,
            focal_depth=focal_depth,
            bias=bias,
            autocast=autocast,
            validation_share=validation_share,
            evaluate_every=evaluate_every,
            patience=patience,
            seed=seed,
        )
        limits = Limits(memory_mb, batch_tokens)
        check_folder(check_checkpoints(folder), "--checkpoint")
        loaded = load(model, dtype, device, device_map, revision, trust_remote_code)
        each = fit_length(loaded, length)
    with working("reading, or writing, the text"):
        sources = [read_source(loaded, file, each) for file in text or []]
        sources += [draw_source(loaded, name, limit, each, seed, data) for name in dict.fromkeys(task or [])]
        sources += [generate_source(loaded, generate, each, seed, prompts)] if generate else []
    texts = [one for source in sources for one in source.texts]
    corpus = divide_texts(texts, recipe.validation_share, recipe.validation_tokens, seed)
    check_lens(out, loaded, corpus, recipe)
    show = print_json if json else _show_lens_training(steps)
    tuning = train_translators(loaded, corpus, recipe, folder, show, limits)
    place = save_lens(tuning.lens, out, tuning.describe([source.describe() for source in sources]))
    result = {"lens": str(place), "logit": tuning.logit, "tuned": tuning.tuned}
    if json:
        print_json(result)
    else:
        from hyperlens.terminal import show_tuning

        show_tuning(make_console(), result)


@app.command("train-reference")
def train_reference(
    out: Annotated[Path, typer.Option("--out", help="Folder for the trained model.")],
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="Folder to go on from.")] = Path("checkpoints/reference"),
    steps: Annotated[int | None, typer.Option("--steps", help="Steps instead of the recipe's.")] = None,
    seed: Seed = 0,
    device: Device = None,
    json: Json = False,
) -> None:
    """Train the reference model again from its recipe; goes on where it was stopped."""
    with working("starting"):
        from hyperlens.models import check_device
        from hyperlens.training.checkpoints import LOG, check_checkpoints
        from hyperlens.training.recipe import Recipe, check_folder, save_reference
        from hyperlens.training.reference import train_reference
    recipe = Recipe(seed=seed) if steps is None else Recipe(seed=seed, steps=steps)
    check_device(device or "cpu")
    check_folder(check_checkpoints(checkpoint), "--checkpoint")
    check_folder(out, "--out")
    show = print_json if json else _show_training(recipe.steps)
    model = train_reference(recipe, checkpoint, report=show, device=device or "cpu")
    save_reference(model, recipe, out, checkpoint / LOG)


def _check_folders(out: Path, checkpoint: Path | None) -> Path:
    """Where the checkpoint of a lens is kept. Raises InputError and ArtefactError where the lens must not be written."""
    from hyperlens.artefact import check_place

    check_place(out, "tuned lens")
    folder = checkpoint or out.absolute().with_name(f"{out.absolute().name}.checkpoint")
    if folder.resolve() == out.resolve():
        raise InputError(f"--checkpoint and --out are both {out}; choose a folder of its own for the checkpoint")
    return folder


def _show_training(steps: int) -> Any:
    """A line for each checkpoint: step, loss, time left, and the accuracy of each domain by level."""
    from hyperlens.terminal import show_training

    console = make_console()
    return lambda row: show_training(console, row, steps)


def _show_lens_training(steps: int) -> Any:
    """A line for each validation: step, KL in training and on the validation part, time left."""
    from hyperlens.terminal import show_lens_training

    console = make_console()
    return lambda row: show_lens_training(console, row, steps)
