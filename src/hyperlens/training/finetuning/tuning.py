"""Fine-tuning: from a model and samples to a network that can be measured and saved. TRL trains, PEFT adapts."""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from hyperlens.errors import ArtefactError, HyperLensWarning, InputError, first_sentence
from hyperlens.models import Model
from hyperlens.models.adapters import name_adapters, unwrap
from hyperlens.models.precision import require_extra
from hyperlens.models.quiet import quiet
from hyperlens.splice import Splice
from hyperlens.tasks import Sample
from hyperlens.training.finetuning.base_values import BaseValues, keep_base_values
from hyperlens.training.finetuning.examples import Examples, prepare_examples
from hyperlens.training.finetuning.keeping import (
    VALUES,
    begin_checkpoints,
    check_out,
    describe,
    find_checkpoints,
    identify,
    save_tuned,
)
from hyperlens.training.finetuning.recipe import FineTuneRecipe

Row = dict[str, Any]


@dataclass(frozen=True)
class FineTuned:
    """What came of a fine-tuning.

    `network` is what `load_model` takes together with the model's tokenizer: a PeftModel on the weights of the given model, or
    with the method "full" a copy of it. `log` has a row per `log_every` steps: `step`, `epoch`, `loss`, `grad_norm`,
    `learning_rate`, and what terms are at work. `about` says what it was made of; `base` has the effort of the given model at
    the answer tokens, if that was needed; `out` is where the network was saved, if anywhere.
    """

    network: Any = field(repr=False)
    log: tuple[Row, ...] = field(repr=False)
    recipe: FineTuneRecipe
    about: Mapping[str, Any] = field(repr=False)
    base: BaseValues | None = None
    out: Path | None = None

    def describe(self) -> dict[str, Any]:
        """What it was made of, and where it lies."""
        return {"out": None if self.out is None else str(self.out), **self.about}


def fine_tune(
    model: Model,
    samples: Iterable[Sample],
    recipe: FineTuneRecipe | None = None,
    out: str | os.PathLike[str] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    resume: bool = True,
    report: Callable[[Row], None] = lambda row: None,
) -> FineTuned:
    """Fine-tune `model` on the targets of `samples`, each encoded as it is measured; the model itself stays as it is.

    With `out`, what came of it is saved there, to be loaded by its path: an adapter, or the whole model. Then checkpoints are
    kept beside it, in `OUT.checkpoint`, and a training that was stopped goes on from the last one to the same result, bit for
    bit on the same machine. `callbacks` are those of transformers' Trainer; one with a method `watch`, such as EffortCallback,
    is given the trainer; without `out`, what they save in its folder is gone at the end. `report` is given each row of the log.
    Random states are set from the recipe's seed. All computing is in the model's own dtype, on its device, in
    one process. Raises InputError for samples, a recipe or a model that cannot be used, and where the loss is not finite;
    ArtefactError where `out` or a checkpoint cannot be used; ModelError where TRL or PEFT are not installed.
    """
    recipe = recipe or FineTuneRecipe()
    for package in ("trl", "peft", "datasets"):
        require_extra(package, "fine-tuning", "finetune")
    _check_model(model, recipe)
    examples = prepare_examples(model, samples, recipe)
    identity, place, folder, last = identify(model, examples, recipe), None, None, None
    if out is not None:
        place = check_out(Path(out), identity)
        folder = find_checkpoints(place)
        last = begin_checkpoints(folder, identity, resume)
    values = folder and folder / VALUES
    base = keep_base_values(model, examples, recipe, values) if recipe.effort_weight else None
    with _copied(model, recipe) as network:
        log = _train(model, network, examples, recipe, base, folder, last, callbacks, report)
    about = describe(model, examples, recipe, None if base is None else base.undefined)
    if place is not None:
        save_tuned(network, model, place, about, log)
    return FineTuned(network, tuple(log), recipe, about, base, place)


def _check_model(model: Model, recipe: FineTuneRecipe) -> None:
    """Raises InputError where the model cannot be trained so."""
    if model.tokenizer is None:
        raise InputError(f"{model.name} came without a tokenizer, which fine-tuning needs; give load_model one")
    if name_adapters(model.network):
        raise InputError(f"{model.name} has an adapter at work; merge it into a model of its own, and fine-tune that")
    if recipe.method == "full" and getattr(model.network.config, "quantization_config", None) is not None:
        raise InputError(f"{model.name} is quantised, so that its weights cannot be trained; choose the method lora")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("fine-tuning runs in one process, and this is one of several; start it without a launcher")
    spread = getattr(model.network, "hf_device_map", None) is not None
    if model.splice.device.type == "cuda" and torch.cuda.device_count() > 1 and not spread:
        raise InputError(
            f"{torch.cuda.device_count()} GPUs are visible, and fine-tuning uses one; let CUDA_VISIBLE_DEVICES name it, or "
            "spread the model with a device_map"
        )


@contextmanager
def _copied(model: Model, recipe: FineTuneRecipe) -> Iterator[Any]:
    """The network that is trained: a copy of the model's, for adapters one that shares its weights.

    What training does to a network beside its weights is undone at the end.
    """
    tensors = [*model.network.parameters(), *model.network.buffers()]
    needs = [(tensor, tensor.requires_grad) for tensor in model.network.parameters()]
    shared = {id(tensor): tensor for tensor in tensors} if recipe.method == "lora" else {}
    network: Any = copy.deepcopy(model.network, shared)
    try:
        yield _adapt(network, model, recipe) if recipe.method == "lora" else network.requires_grad_(True)
    finally:
        _undo(network)
        for tensor, needed in needs:
            tensor.requires_grad_(needed)


def _adapt(network: PreTrainedModel, model: Model, recipe: FineTuneRecipe) -> Any:
    """The network with an adapter that names its base as `load_model` finds it. Raises InputError."""
    import peft
    from transformers import set_seed

    targets: Any = recipe.lora_targets
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,  # pyright: ignore[reportArgumentType]  # a number is enough
        lora_dropout=recipe.lora_dropout,
        target_modules=targets if targets == "all-linear" else [name.strip() for name in targets.split(",")],
    )
    set_seed(recipe.seed)  # what a matrix begins with is random
    try:
        with quiet():
            adapted = peft.get_peft_model(network, settings)
    except ValueError as error:
        raise InputError(f"{model.name} takes no such adapter ({first_sentence(error)}); give other lora_targets") from None
    given = adapted.peft_config["default"]
    is_file = os.path.exists(model.name) and model.name != "reference"
    given.base_model_name_or_path = os.path.abspath(model.name) if is_file else model.name
    given.revision = getattr(network.config, "_commit_hash", None)
    return adapted


def _undo(network: Any) -> None:
    """Take off what TRL and the Trainer put on a network, which is at rest again."""
    network.__dict__.pop("forward", None)
    with quiet():
        network.activation_checkpointing_disable()
        if getattr(network, "_require_grads_hooks", None):
            network.disable_input_require_grads()
    network.zero_grad()
    network.eval()


def _train(
    model: Model,
    network: Any,
    examples: Examples,
    recipe: FineTuneRecipe,
    base: BaseValues | None,
    folder: Path | None,
    last: Path | None,
    callbacks: Sequence[TrainerCallback],
    report: Callable[[Row], None],
) -> list[Row]:
    """Let the trainer train; gives its log."""
    with ExitStack() as stack:
        kept = str(folder) if folder else stack.enter_context(tempfile.TemporaryDirectory(prefix="hyperlens-"))
        stack.enter_context(quiet())
        warnings.simplefilter("always", HyperLensWarning)  # those of callbacks are for the user
        from hyperlens.training.finetuning.trainer import EffortTrainer, make_config

        try:
            trainer = EffortTrainer(
                network,
                model,
                Splice(unwrap(network)),
                recipe,
                args=make_config(recipe, kept, folder is not None, model.splice.device),
                train_dataset=_tabulate(examples, base),
                processing_class=model.tokenizer,
            )
        except ValueError as error:
            raise InputError(f"the trainer does not take {model.name} ({first_sentence(error)})") from None
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Reporter(report))
        for callback in callbacks:
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
        return [_pick(row) for row in trainer.state.log_history if "train_runtime" not in row]


def _pick(row: Mapping[str, Any]) -> Row:
    """A row of the log without what a resumed training counts anew."""
    return {name: value for name, value in row.items() if name != "num_tokens"}


class _Reporter(TrainerCallback):
    """Has the last step logged, and gives each row of the log on."""

    def __init__(self, report: Callable[[Row], None]) -> None:
        self.report = report

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        control.should_log |= state.global_step == state.max_steps

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **given: Any) -> None:
        if logs and "train_runtime" not in logs:
            self.report({"step": state.global_step, "steps": state.max_steps, **_pick(logs)})


def _tabulate(examples: Examples, base: BaseValues | None) -> Any:
    """The examples as the trainer takes them."""
    from datasets import Dataset

    from hyperlens.training.finetuning.trainer import BASE_EFFORT

    columns: dict[str, Any] = {
        "input_ids": [list(row.ids) for row in examples.rows],
        "labels": [row.labels for row in examples.rows],
    }
    return Dataset.from_dict(columns if base is None else {**columns, BASE_EFFORT: base.split(examples)})
