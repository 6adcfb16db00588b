"""The steps of a fine-tuning, as TRL's trainer takes them, from the last checkpoint on."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from hyperlens.errors import ArtefactError, HyperLensWarning, InputError, first_sentence
from hyperlens.models import Model
from hyperlens.models.adapters import unwrap
from hyperlens.models.quiet import quiet
from hyperlens.splice import Splice
from hyperlens.training.finetuning.base_values import BaseValues
from hyperlens.training.finetuning.examples import Examples
from hyperlens.training.finetuning.keeping import load_weights, read_progress
from hyperlens.training.finetuning.recipe import FineTuneRecipe

Row = dict[str, Any]


def train(
    model: Model,
    network: Any,
    examples: Examples,
    recipe: FineTuneRecipe,
    base: BaseValues | None,
    folder: Path | None,
    last: Path | None,
    callbacks: Sequence[TrainerCallback],
    report: Callable[[Row], None],
) -> tuple[list[Row], Row]:
    """Train the network from the checkpoint `last` to the end, or where that is the end already, give it its weights.

    Gives the log, and how far it came: `steps`, of how many, `planned`, and whether it was `stopped` before the end. Raises
    what the trainer raises, InputError where it does not take the model, ArtefactError where a checkpoint cannot be used.
    """
    progress = None if last is None else read_progress(last)
    if last is not None and progress is not None and progress["global_step"] >= progress["max_steps"]:
        load_weights(network, last)  # the trainer, asked to go on, would take one more step
        return _conclude(progress["log_history"], progress["global_step"], progress["max_steps"])
    with ExitStack() as stack:
        kept = str(folder) if folder else stack.enter_context(tempfile.TemporaryDirectory(prefix="hyperlens-"))
        stack.enter_context(quiet())
        warnings.simplefilter("always", HyperLensWarning)  # those of callbacks are for the user
        trainer = _make_trainer(model, network, examples, recipe, base, kept, folder is not None)
        for callback in (_Reporter(report), *callbacks):
            trainer.add_callback(callback)
            if callable(watch := getattr(callback, "watch", None)):
                watch(trainer)
        try:
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or first_sentence(error)
            raise ArtefactError(
                f"a checkpoint in {kept} cannot be written or read ({reason}); make room, then go on from the last whole one"
            ) from None
        return _conclude(trainer.state.log_history, trainer.state.global_step, trainer.state.max_steps)


def tabulate(examples: Examples, base: BaseValues | None) -> Any:
    """The examples as the trainer takes them."""
    from datasets import Dataset

    from hyperlens.training.finetuning.trainer import BASE_EFFORT

    columns: dict[str, Any] = {
        "input_ids": [list(row.ids) for row in examples.rows],
        "labels": [row.labels for row in examples.rows],
    }
    return Dataset.from_dict(columns if base is None else {**columns, BASE_EFFORT: base.split(examples)})


def _make_trainer(
    model: Model, network: Any, examples: Examples, recipe: FineTuneRecipe, base: BaseValues | None, kept: str, saving: bool
) -> Any:
    """The trainer, whose splice runs slices of the network in the way that was proved. Raises InputError."""
    from hyperlens.training.finetuning.trainer import EffortTrainer, make_config

    splice = Splice(unwrap(network))
    splice.way = model.splice.way
    try:
        trainer = EffortTrainer(
            network,
            model,
            splice,
            recipe,
            args=make_config(recipe, kept, saving, model.splice.device),
            train_dataset=tabulate(examples, base),
            processing_class=model.tokenizer,
        )
    except ValueError as error:
        raise InputError(f"the trainer does not take {model.name} ({first_sentence(error)})") from None
    trainer.remove_callback(PrinterCallback)
    return trainer


def _conclude(history: Sequence[Mapping[str, Any]], steps: int, planned: int) -> tuple[list[Row], Row]:
    rows = [_pick(row) for row in history if "train_runtime" not in row]
    return rows, {"steps": steps, "planned": planned, "stopped": steps < planned}


def _pick(row: Mapping[str, Any]) -> Row:
    """A row of the log without what a resumed training counts anew; in the order in which a checkpoint has it."""
    return {name: row[name] for name in sorted(row) if name != "num_tokens"}


class _Reporter(TrainerCallback):
    """Has the last step logged, and gives each row of the log on."""

    def __init__(self, report: Callable[[Row], None]) -> None:
        self.report = report

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        control.should_log |= state.global_step == state.max_steps

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **given: Any) -> None:
        if logs and "train_runtime" not in logs:
            self.report({"step": state.global_step, "steps": state.max_steps, **_pick(logs)})
