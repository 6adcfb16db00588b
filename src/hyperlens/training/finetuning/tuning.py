"""Fine-tuning: from a model and samples to a network that can be measured and saved. TRL trains, PEFT adapts."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from hyperlens.errors import InputError, first_sentence
from hyperlens.models import Model
from hyperlens.models.adapters import name_adapters
from hyperlens.models.loading import SHIPPED
from hyperlens.models.precision import require_extra
from hyperlens.models.quiet import quiet
from hyperlens.tasks import Sample
from hyperlens.training.finetuning.base_values import BaseValues, check_known, keep_base_values
from hyperlens.training.finetuning.examples import Examples, prepare_examples
from hyperlens.training.finetuning.keeping import (
    VALUES,
    begin_checkpoints,
    describe,
    find_checkpoints,
    holds_tuned,
    identify,
    load_weights,
    read_tuned,
    save_tuned,
)
from hyperlens.training.finetuning.loop import Row, train
from hyperlens.training.finetuning.recipe import FineTuneRecipe


@dataclass(frozen=True)
class FineTuned:
    """What came of a fine-tuning.

    `network` is what `load_model` takes together with the model's tokenizer: a PeftModel on the weights of the given model, or
    with the method "full" a copy of it. `log` has a row per `log_every` steps: `step`, `epoch`, `loss`, `grad_norm`,
    `learning_rate`, and what terms are at work. `about` says what it was made of; `base` has the effort of the given model at
    the answer tokens, if that was needed and is kept; `out` is where the network was saved, if anywhere, and `found` whether an
    earlier call had done so, and this one trained nothing.
    """

    network: Any = field(repr=False)
    log: tuple[Row, ...] = field(repr=False)
    recipe: FineTuneRecipe
    about: Mapping[str, Any] = field(repr=False)
    base: BaseValues | None = None
    out: Path | None = None
    found: bool = False

    def describe(self) -> dict[str, Any]:
        """What it was made of, and where it lies."""
        return {"out": None if self.out is None else str(self.out), "found": self.found, **self.about}


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
    kept beside it, in `OUT.checkpoint`, and a training that was interrupted goes on from the last one to the same result, bit
    for bit on the same machine; where `out` holds the same already, it is read, and nothing is trained. Without `resume` all
    begins anew, with an `out` that is not there. `callbacks` are those of transformers' Trainer; one with a method `watch`,
    such as EffortCallback, is given the trainer; without `out`, what they save in its folder is gone at the end. `report` is
    given each row of the log. Random states are set from the recipe's seed. All computing is in the model's own dtype, on its
    device, in one process. Warns where the base has no effort at many answer tokens. Raises InputError for samples, a recipe
    or a model that cannot be used, and where the loss is not finite; ArtefactError where `out` or a checkpoint cannot be used;
    ModelError where TRL or PEFT are not installed, and where the model fails in the first step.
    """
    recipe = recipe or FineTuneRecipe()
    for package in ("trl", "peft", "datasets"):
        require_extra(package, "fine-tuning", "finetune")
    _check_model(model, recipe)
    examples = prepare_examples(model, samples, recipe)
    _check_padding(model, examples, recipe)
    identity, place, folder, last = identify(model, examples, recipe), None, None, None
    if out is not None:
        place = Path(out).absolute()
        if holds_tuned(place, identity, resume):
            return _find_tuned(model, examples, recipe, place)
        folder = find_checkpoints(place)
        last = begin_checkpoints(folder, identity, resume)
    base = keep_base_values(model, examples, recipe, folder and folder / VALUES) if recipe.effort_weight else None
    if base is not None:
        check_known(base)
    with _copied(model, recipe) as network:
        log, training = train(model, network, examples, recipe, base, folder, last, callbacks, report)
    about = describe(model, examples, recipe, None if base is None else base.undefined, training)
    if place is not None:
        save_tuned(network, model, place, about, log)
    return FineTuned(network, tuple(log), recipe, about, base, place)


def _find_tuned(model: Model, examples: Examples, recipe: FineTuneRecipe, place: Path) -> FineTuned:
    """What an earlier call left. Raises ArtefactError."""
    about, log = read_tuned(place)
    values = find_checkpoints(place) / VALUES
    base = keep_base_values(model, examples, recipe, values) if recipe.effort_weight and values.exists() else None
    with _copied(model, recipe) as network:
        load_weights(network, place)
    return FineTuned(network, tuple(log), recipe, about, base, place, found=True)


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


def _check_padding(model: Model, examples: Examples, recipe: FineTuneRecipe) -> None:
    """Raises InputError where a term would read a padded batch of a model that reads such a one wrongly."""
    ragged = recipe.batch > recipe.accumulation and len({len(row.ids) for row in examples.rows}) > 1
    if ragged and not recipe.plain and "right" not in model.certificate.paddings:
        raise InputError(
            f"{model.name} reads texts of several lengths in one batch wrongly; give an accumulation as large as the batch, "
            f"which is {recipe.batch}"
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
    is_file = os.path.exists(model.name) and (model.name not in SHIPPED or os.path.isdir(model.name))
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
