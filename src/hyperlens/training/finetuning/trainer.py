"""TRL's trainer with a loss that minds effort. Importing this takes some seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from hyperlens.effort import measure_shortfall
from hyperlens.errors import ArtefactError, HyperLensError, InputError, ModelError, first_sentence, is_memory_error
from hyperlens.models import Model
from hyperlens.models.adapters import save_network
from hyperlens.splice import Inputs, Probes, Splice, at_rest
from hyperlens.training.effort_term import choose_states, read_effort
from hyperlens.training.finetuning.examples import LEFT_OUT
from hyperlens.training.finetuning.keeping import load_weights
from hyperlens.training.finetuning.recipe import DECAYS, FineTuneRecipe
from hyperlens.training.finetuning.terms import find_answers, read_spread

BASE_EFFORT = "base_effort"
"""The column with Ω of the base at each token, NaN where it has none."""


@dataclass(frozen=True)
class Collator:
    """Makes a batch of examples, padded on the right with the token `filler`."""

    filler: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        fillers = {"input_ids": self.filler, "labels": LEFT_OUT, BASE_EFFORT: float("nan")}
        longest = max(len(row["input_ids"]) for row in rows)
        padded = {
            name: torch.tensor([row[name] + [filler] * (longest - len(row[name])) for row in rows])
            for name, filler in fillers.items()
            if name in rows[0]
        }
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        return {**padded, "attention_mask": (torch.arange(longest) < lengths[:, None]).long()}


class EffortTrainer(SFTTrainer):
    """SFTTrainer with the recipe's terms in its loss: label smoothing, the KL from the base, and the shortfall of effort.

    `model` is the network that is trained, `base` the model as it was, which stays so. Where the recipe has no term the loss is
    SFTTrainer's own. Each row of the log has, of those terms that are at work, `kl` (nats) and `effort/term`, means over the
    answer tokens of its steps, and Ω of the network and of the base, `effort/mean` and `effort/base`, over those that have one
    in both; each is a sum over tokens, divided when it is logged. Nothing is sent anywhere. Raises InputError where a loss or a
    gradient is not finite, ModelError where the first step fails, ArtefactError where a checkpoint cannot be written or read.
    """

    def __init__(self, model: Any, base: Model, splice: Splice, recipe: FineTuneRecipe, **options: Any) -> None:
        super().__init__(model=model, data_collator=Collator(splice.filler), **options)
        self.base, self.splice, self.recipe = base, splice, recipe
        self.chosen = choose_states(splice.depth, recipe.focal_depth, recipe.states) if recipe.effort_weight else ()
        self.sums: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
        self.runs = False

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a part of a step, as the trainer asks for it."""
        effort = inputs.pop(BASE_EFFORT, None)
        if self.recipe.plain or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with self.splice.watch([*self.chosen, self.splice.depth]) as recorded:
            loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        probes, targets = find_answers(inputs["labels"])
        count = len(targets) if num_items_in_batch is None else num_items_in_batch
        text = Inputs(inputs["input_ids"])
        total = self._spread(text, probes, targets, recorded[self.splice.depth]) + self._mind(
            text, probes, targets, recorded, effort
        )
        return loss + total / count

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One part of a step."""
        try:
            loss = super().training_step(*args, **kwargs)
        except HyperLensError:
            raise
        except Exception as error:  # the model's own code may raise anything; later steps do what the first one did
            if self.runs or is_memory_error(error):
                raise
            raise ModelError(
                f"{self.base.name} cannot be trained by TRL's SFTTrainer: its first step raised {type(error).__name__} "
                f"({first_sentence(error)}); fine-tune another model"
            ) from error
        self.runs = True
        if not torch.isfinite(loss):
            self._refuse(f"the loss is {loss.item()}")
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            self._refuse("the gradient is not finite")
        return norm

    def _refuse(self, what: str) -> None:
        raise InputError(
            f"{what} at step {self.state.global_step + 1}, so that nothing more can be learned; lower the rate or the weights "
            "of the terms, or load the model in a wider dtype (checkpoints of earlier steps are kept)"
        )

    def _spread(self, text: Inputs, probes: Probes, targets: Tensor, left: Tensor) -> Tensor | float:
        """Label smoothing and KL, summed over the answer tokens."""
        recipe = self.recipe
        if not (recipe.label_smoothing or recipe.kl_weight):
            return 0.0
        own = self._run_base(text, probes) if recipe.kl_weight else None
        base = None if own is None else lambda place: self._read_base(own[place])
        sums = read_spread(self.splice, probes.pick(left), targets, base)
        if own is not None:
            self._note("kl", sums.kl, len(targets))
        return recipe.label_smoothing * sums.smoothing + recipe.kl_weight * sums.kl

    def _mind(
        self, text: Inputs, probes: Probes, targets: Tensor, recorded: dict[int, Tensor], effort: Tensor | None
    ) -> Tensor | float:
        """The effort term, summed over the answer tokens whose effort is known."""
        if not self.chosen or effort is None:
            return 0.0
        wanted = effort[probes.rows, probes.positions + 1]
        known = ~wanted.isnan()
        if not known.any():
            self._note("effort/term", 0.0, len(targets))
            return 0.0
        wanted, places = wanted[known], Probes(probes.rows[known], probes.positions[known])
        found = read_effort(self.splice, text, recorded, self.chosen, self.recipe.focal_depth, places, targets[known])
        term = measure_shortfall(found, wanted.to(found.dtype), self.recipe.aim, self.recipe.shift).sum()
        self._note("effort/term", term, len(targets))
        if (both := ~found.isnan()).any():
            self._note("effort/mean", found[both].sum(), int(both.sum()))
            self._note("effort/base", wanted[both].sum(), int(both.sum()))
        return self.recipe.effort_weight * term

    @torch.no_grad()
    def _run_base(self, text: Inputs, probes: Probes) -> Tensor:
        """What leaves the last layer of the base at the probes."""
        splice = self.base.splice
        with splice.lock, at_rest(splice.model):
            return splice.run(text, record=[splice.depth], probes=probes, read=False).states[splice.depth]

    @torch.no_grad()
    def _read_base(self, left: Tensor) -> Tensor:
        """The base's logits of some of that."""
        splice = self.base.splice
        with splice.lock, at_rest(splice.model):
            return splice.head(left)

    def _note(self, name: str, total: Tensor | float, count: int) -> None:
        before, tokens = self.sums[name]
        self.sums[name] = before + float(total), tokens + count

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """A row of the log, with the means over all tokens since the row before."""
        logs.update({name: total / count for name, (total, count) in self.sums.items()})
        self.sums.clear()
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:
            if not isinstance(error, OSError | SafetensorError) and not _says_unwritten(error):
                raise
            reason = getattr(error, "strerror", None) or first_sentence(error)
            raise ArtefactError(
                f"the checkpoint of step {self.state.global_step} cannot be written to {self.args.output_dir} ({reason}); make "
                "room, then go on from the last whole one"
            ) from None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The network of a checkpoint; recipe and tokenizer are known without it."""
        save_network(self.model, Path(output_dir or self.args.output_dir or ""))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.model, Path(resume_from_checkpoint))

    def _send_telemetry(self) -> None:
        """Nothing: TRL's would go to the hub."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: a card of TRL's says nothing of what was trained here."""


def make_config(recipe: FineTuneRecipe, folder: str, saving: bool, device: torch.device) -> SFTConfig:
    """What SFTTrainer is told: all computed in the model's own dtype, nothing cut, packed or sent anywhere."""
    return SFTConfig(
        output_dir=folder,
        learning_rate=recipe.highest_rate,
        num_train_epochs=recipe.epochs,
        max_steps=recipe.steps or -1,
        per_device_train_batch_size=recipe.batch // recipe.accumulation,
        gradient_accumulation_steps=recipe.accumulation,
        warmup_steps=recipe.warmup,
        lr_scheduler_type=DECAYS[recipe.decay],
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        gradient_checkpointing=recipe.gradient_checkpointing,
        max_length=None,
        packing=False,
        bf16=False,
        save_strategy="steps" if saving else "no",
        save_steps=recipe.save_every,
        save_total_limit=1,
        logging_steps=recipe.log_every,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        seed=recipe.seed,
        use_cpu=device.type == "cpu",
        report_to="none",
        disable_tqdm=True,
    )


def _says_unwritten(error: RuntimeError) -> bool:
    """Whether torch.save, which has no error of its own for it, could not write a file."""
    return any(words in str(error) for words in ("inline_container", "PytorchStreamWriter", "iostream error"))
