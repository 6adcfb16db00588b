"""Commands that train: `train-reference`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hyperlens.cli.app import Device, Json, Seed, app, make_console, print_json, working


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
        from hyperlens.training.checkpoints import LOG
        from hyperlens.training.recipe import Recipe, check_folder, save_reference
        from hyperlens.training.reference import train_reference
    recipe = Recipe(seed=seed) if steps is None else Recipe(seed=seed, steps=steps)
    check_device(device or "cpu")
    check_folder(checkpoint, "--checkpoint")
    check_folder(out, "--out")
    show = print_json if json else _show_training(recipe.steps)
    model = train_reference(recipe, checkpoint, report=show, device=device or "cpu")
    save_reference(model, recipe, out, checkpoint / LOG)


def _show_training(steps: int) -> Any:
    """A line for each checkpoint: step, loss, time left, and the accuracy of each domain by level."""
    from hyperlens.terminal import show_training

    console = make_console()
    return lambda row: show_training(console, row, steps)
