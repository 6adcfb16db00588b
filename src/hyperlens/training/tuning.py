"""The training of a tuned lens: a translator per state, by the KL from the model's own output (Belrose et al. 2023).

All states are trained in one pass, and each by itself: the gradient of one reaches no other, is clipped by itself, and of each
state the translator that validated best is kept. A training that was stopped goes on from its last checkpoint with the same
data, to the same curve. With autocast the model's products are made in bfloat16 in steps, and never where a lens is validated.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hyperlens.artefact import is_artefact, list_versions, read_document
from hyperlens.encoding import Encoded, Given
from hyperlens.errors import ArtefactError, InputError
from hyperlens.lenses import HyperLens, Origin, Translators, TunedLens
from hyperlens.lenses.tuned import measure_width, name_dtype
from hyperlens.models import Model
from hyperlens.splice import Inputs, Probes, at_rest
from hyperlens.tasks import Sample
from hyperlens.tracing import Limits
from hyperlens.tracing.batches import Job, make_batches, prepare_batch
from hyperlens.tracing.limits import explain_memory
from hyperlens.training.checkpoints import (
    NAME,
    Checkpoint,
    check_checkpoints,
    check_shapes,
    list_differences,
    restore_checkpoint,
    save_checkpoint,
    save_log,
)
from hyperlens.training.distillation import autocasting, count_copies, distil_batch
from hyperlens.training.lens_recipe import BIAS_RATE, LensRecipe
from hyperlens.training.texts import Chunk, Corpus, count_tokens, cut_text, divide_texts, fit_length

HELD_COPIES = 4
"""Copies of a batch's states that are held at once: as they passed, stacked, translated, and their gradient."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Tuning:
    """A trained lens, and how it was trained.

    `curve` has a row per validation: `step`, the KL in nats of each state on the validation part (`validation`) and, of the
    steps since the row before, in training (`training`, and their mean `loss`). Its first row is that of the identity.
    """

    lens: TunedLens
    recipe: LensRecipe
    corpus: Corpus
    curve: tuple[Row, ...]

    @property
    def logit(self) -> list[float]:
        """KL from the output to the lens without translators, of each state that is trained, on the validation part."""
        return self.curve[0]["validation"]

    @property
    def tuned(self) -> list[float]:
        """The same with the translators that were kept."""
        return find_lowest(self.curve)

    def describe(self, sources: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """What is saved with the lens; `sources` say where the text is from."""
        parts = {"training": self.corpus.training, "validation": self.corpus.validation}
        return {
            "recipe": asdict(self.recipe) | {"rate": self.recipe.highest_rate},
            "text": {
                "sources": [dict(source) for source in sources],
                "sha256": self.corpus.fingerprint,
                **{name: {"chunks": len(part), "tokens": count_tokens(part)} for name, part in parts.items()},
            },
            "kl_to_output": {"logit": self.logit, "tuned": self.tuned, "unit": "nats, mean over the validation tokens"},
            "curve": list(self.curve),
            "versions": list_versions("hyperlens", "torch", "transformers"),
        }


def tune_lens(
    model: Model,
    texts: str | Sample | Mapping[str, Tensor] | Sequence[Given],
    recipe: LensRecipe | None = None,
    length: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    report: Callable[[Row], None] = lambda row: None,
    limits: Limits | None = None,
) -> TunedLens:
    """Train a tuned lens for `model` on `texts` (or one long one), cut into chunks of `length` tokens (256, if they fit).

    With a folder as `checkpoint`, goes on where a training of the same recipe, model and text left off. `report` is given a row
    at every validation. Raises InputError for a recipe, a model or a text that does not fit, and where the loss is not finite.
    """
    recipe, each = recipe or LensRecipe(), fit_length(model, length)
    listed = [texts] if isinstance(texts, str | Sample | Mapping) else texts
    cut = [cut_text(model, text, each, f"text {number}") for number, text in enumerate(listed, 1)]
    corpus = divide_texts(cut, recipe.validation_share, recipe.validation_tokens, recipe.seed)
    return train_translators(model, corpus, recipe, checkpoint, report, limits).lens


def train_translators(
    model: Model,
    corpus: Corpus,
    recipe: LensRecipe,
    checkpoint: str | os.PathLike[str] | None = None,
    report: Callable[[Row], None] = lambda row: None,
    limits: Limits | None = None,
) -> Tuning:
    """Train as `tune_lens` does, on text that is cut and divided already; gives the curve too."""
    training = _prepare(
        model, corpus, recipe, None if checkpoint is None else check_checkpoints(checkpoint), limits or Limits()
    )
    curve = training.restore()
    began, first = time.monotonic(), curve[-1]["step"] if curve else 0
    before = curve[-1]["seconds"] if curve else 0.0

    def note(step: int, losses: list[Tensor]) -> list[Row]:
        spent = time.monotonic() - began
        left = round(spent / (step - first) * (recipe.steps - step)) if step > first else None
        clock = {"seconds": round(before + spent, 1), "seconds_left": left}
        longer = [*curve, training.validate(step, losses, curve) | clock]
        training.keep(longer)
        report(longer[-1])
        return longer

    curve, losses = curve or note(0, []), []
    for step in range(curve[-1]["step"], recipe.steps):
        if _is_over(curve, recipe.patience):
            break
        losses.append(training.train(step, curve))
        if (step + 1) % recipe.evaluate_every == 0 or step + 1 == recipe.steps:
            curve, losses = note(step + 1, losses), []
    origin = Origin(
        model.name,
        model.fingerprint,
        model.splice.config.vocab_size,
        focal_depth=recipe.focal_depth,
        dtype=name_dtype(model),
    )
    lens = TunedLens((recipe.focal_depth,), translators=training.best, origin=origin)
    return Tuning(lens, recipe, corpus, tuple(curve))


def check_lens(folder: Path, model: Model, corpus: Corpus, recipe: LensRecipe) -> None:
    """Raises ArtefactError where a folder holds a lens that this training did not give, which would be lost."""
    if not is_artefact(folder):
        return
    manifest = read_document(folder)
    training = manifest.get("training") or {}
    kept = {"model": manifest["origin"]["fingerprint"], "text": training.get("text", {}).get("sha256")}
    differing = list_differences({**training.get("recipe", {}), **kept}, _identify(model, corpus, recipe))
    if differing:
        what = "; ".join(differing) if training else "how it was trained is not known"
        raise ArtefactError(f"{folder} holds a lens of another recipe ({what}); choose another --out, or remove it")


@dataclass(frozen=True)
class _Training:
    """What a training works with. `translators` are the leaves that the optimisers change, `best` the copies of those that
    validated best; `identity` is what a checkpoint must have been begun with."""

    model: Model
    corpus: Corpus
    recipe: LensRecipe
    limits: Limits
    translators: Translators
    best: Translators
    optimisers: list[torch.optim.Optimizer]
    folder: Path | None
    identity: Mapping[str, Any]

    def train(self, step: int, curve: Sequence[Row]) -> Float[Tensor, "state"]:
        """One optimiser step, from 0; gives the loss of each state before it."""
        chunks = self.corpus.draw(step, self.recipe.step_tokens, self.recipe.seed)
        losses = self._measure(chunks, learn=True)
        self._check_finite(losses, f"at step {step + 1}", curve)
        weight, bias = self.translators.weight, self.translators.bias
        gradients = [] if weight.grad is None else weight.grad.unbind()
        self._check_finite(_clip(self.translators, self.recipe.clip), f"at step {step + 1}, in its gradient,", curve)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["highest"] * self.recipe.scale_rate(step)
                if group.get("apart"):
                    for matrix, gradient in zip(group["params"], gradients, strict=True):
                        matrix.grad = gradient
            optimiser.step()
        weight.grad = None
        if bias is not None:
            bias.grad = None
        return losses

    def validate(self, step: int, losses: Sequence[Tensor], curve: Sequence[Row]) -> Row:
        """Measure the validation part after so many steps, and take the translators of the states that became better."""
        found = self._measure(self.corpus.validation, learn=False)
        self._check_finite(found, f"on the validation part after step {step}", curve)
        row: Row = {"step": step, "loss": None, "training": None, "validation": _spell(found)}
        if losses:
            mean = torch.stack(list(losses)).mean(0)
            row |= {"loss": _spell(mean.mean()[None])[0], "training": _spell(mean)}
        lowest = find_lowest(curve) if curve else row["validation"]
        better = [new < old for new, old in zip(row["validation"], lowest, strict=True)]
        for name, tensor in _name(self.best).items():
            for state in (state for state, is_better in enumerate(better) if is_better):
                tensor[state] = _name(self.translators)[name][state]
        return row

    def keep(self, curve: Sequence[Row]) -> None:
        """Write log and checkpoint, if there is a folder for them. Raises ArtefactError, the last ones intact."""
        if self.folder is None:
            return
        save_log(self.folder, list(curve))
        tensors = {f"last/{name}": tensor for name, tensor in _name(self.translators).items()}
        tensors |= {f"best/{name}": tensor for name, tensor in _name(self.best).items()}
        checkpoint = Checkpoint(curve[-1]["step"], tensors, {"curve": list(curve)})
        save_checkpoint(self.folder, self.identity, self.optimisers, checkpoint)

    def restore(self) -> list[Row]:
        """Go back to the checkpoint, if there is one: its curve. Raises InputError for that of another training."""
        if self.folder is None or not (found := restore_checkpoint(self.folder, self.identity, self.optimisers)):
            return []
        both = (("last", self.translators), ("best", self.best))
        own = {f"{part}/{name}": tensor for part, translators in both for name, tensor in _name(translators).items()}
        check_shapes(self.folder / NAME, found.tensors, own)
        for name, tensor in own.items():
            tensor.copy_(found.tensors[name])
        return list(found.progress["curve"])

    def _measure(self, chunks: Sequence[Chunk], learn: bool) -> Float[Tensor, "state"]:
        """The KL of each state, mean over the tokens of all chunks; to `learn`, its gradient is left with the translators."""
        splice, total, losses = self.model.splice, count_tokens(chunks), []
        precision = self.recipe.autocast if learn else None
        with (
            explain_memory(self.limits),
            splice.lock,
            at_rest(self.model.network, gradients=learn),
            autocasting(splice, precision),
        ):
            for inputs, probes in _batch(self.model, chunks, self.recipe.focal_depth, self.limits):
                share = len(probes.rows) / total
                found = distil_batch(
                    splice, self.translators, inputs, probes, self.recipe.focal_depth, self.limits, share if learn else None
                )
                losses.append(found.detach() * share)
        return torch.stack(losses).sum(0)

    def _check_finite(self, values: Tensor, when: str, curve: Sequence[Row]) -> None:
        """Raises InputError that names the first state whose value is not finite, and what is kept."""
        if torch.isfinite(values).all():
            return
        state = int((~torch.isfinite(values)).nonzero()[0])
        kept, other = "no checkpoint was asked for, so that nothing is kept", ""
        if self.folder is not None and curve:
            kept, other = f"the checkpoint of step {curve[-1]['step']} in {self.folder} is kept", ", with another --checkpoint"
        elif self.folder is not None:
            kept = f"nothing was written to {self.folder} yet"
        wider = "load the model in a wider --dtype"
        advice = f"lower the learning rate, clip gradients sooner or {wider}{other}" if curve else wider
        raise InputError(f"the loss of state {state} is not finite {when}; {kept}: {advice}")


def find_lowest(curve: Sequence[Row]) -> list[float]:
    """The lowest KL of each state on the validation part."""
    return [min(values) for values in zip(*(row["validation"] for row in curve), strict=True)]


def _is_over(curve: Sequence[Row], patience: int) -> bool:
    """Whether the mean has not become better for so many validations."""
    means = [sum(row["validation"]) for row in curve]
    return patience > 0 and len(curve) - 1 - means.index(min(means)) >= patience


def _prepare(model: Model, corpus: Corpus, recipe: LensRecipe, folder: Path | None, limits: Limits) -> _Training:
    """Raises InputError where model, text and recipe do not go together."""
    width = measure_width(model)
    if recipe.focal_depth >= model.layers:
        raise InputError(
            f"focal depth {recipe.focal_depth} leaves no state to train for; {model.name} has {model.layers} layers, give less"
        )
    if corpus.tokens < recipe.step_tokens:
        raise InputError(
            f"the text has {corpus.tokens} tokens to train on (and {count_tokens(corpus.validation)} held out to validate), "
            f"less than one step of {recipe.step_tokens}; give more text, or smaller steps (--step-tokens)"
        )
    if recipe.autocast is not None:
        limits = _leave_room(model, recipe.autocast, recipe.focal_depth, limits)
    translators, best = (_begin(model, width, recipe.bias) for _ in range(2))
    for tensor in (translators.weight, *([] if translators.bias is None else [translators.bias])):
        tensor.requires_grad_()
    size = model.layers * width * torch.finfo(model.splice.dtype).bits // 8
    limits = replace(limits, batch_tokens=min(limits.batch_tokens, limits.share(2, HELD_COPIES * size)))
    optimisers = _build_optimisers(translators, recipe)
    identity = _identify(model, corpus, recipe)
    return _Training(model, corpus, recipe, limits, translators, best, optimisers, folder, identity)


def _leave_room(model: Model, precision: str, focal_depth: int, limits: Limits) -> Limits:
    """What is left of the memory beside the weights that are held in another precision, which may take half of it.

    Raises InputError where they take more, and for a model that is not in float32.
    """
    if model.splice.dtype is not torch.float32:
        raise InputError(f"autocast is for a model in float32; {model.name} computes in {name_dtype(model)}: leave it away")
    taken = math.ceil(count_copies(model.splice, precision, focal_depth) / 2**20)
    if 2 * taken > limits.memory_mb:
        raise InputError(
            f"the weights that autocast holds in {precision} take {taken} MB, more than half of memory_mb {limits.memory_mb}; "
            f"give --memory-mb {2 * taken} or more, or leave autocast away"
        )
    return replace(limits, memory_mb=limits.memory_mb - taken)


def _identify(model: Model, corpus: Corpus, recipe: LensRecipe) -> dict[str, Any]:
    """All that decides a training."""
    return asdict(recipe) | {"rate": recipe.highest_rate, "model": model.fingerprint, "text": corpus.fingerprint}


def _begin(model: Model, width: int, bias: bool) -> Translators:
    start = Translators.identity(model.layers, width).to(model.splice.device, torch.float32)
    return start if bias else Translators(start.weight, None)


def _build_optimisers(translators: Translators, recipe: LensRecipe) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for each state's matrix with AdamW for the biases."""
    weight, bias, rate = translators.weight, translators.bias, recipe.highest_rate
    others = [{"params": [bias], "highest": rate if recipe.optimiser == "adamw" else BIAS_RATE}] if bias is not None else []
    if recipe.optimiser == "adamw":
        return [torch.optim.AdamW([{"params": [weight], "highest": rate}, *others], weight_decay=recipe.weight_decay)]
    if not hasattr(torch.optim, "Muon"):
        raise InputError(f"torch {torch.__version__} has no Muon; choose the optimiser adamw, or update torch")
    matrices = [matrix.requires_grad_() for matrix in weight.detach().unbind()]  # they share the memory of the whole
    muon = torch.optim.Muon(
        [{"params": matrices, "highest": rate, "apart": True}], weight_decay=recipe.weight_decay, adjust_lr_fn="original"
    )
    return [muon, *([torch.optim.AdamW(others, weight_decay=recipe.weight_decay)] if others else [])]


def _batch(model: Model, chunks: Sequence[Chunk], focal_depth: int, limits: Limits) -> Iterator[tuple[Inputs, Probes]]:
    """The chunks in batches, each of their tokens a probe and none of the padding."""
    job = Job(model, HyperLens((focal_depth,)), (focal_depth,), (), "output", limits)
    texts = [Encoded(Sample(""), chunk, tuple(range(len(chunk)))) for chunk in chunks]
    order = sorted(range(len(texts)), key=lambda number: -len(chunks[number]))
    for numbers in make_batches(job, texts, order):
        yield prepare_batch(job, [texts[number] for number in numbers])


def _clip(translators: Translators, longest: float) -> Float[Tensor, "state"]:
    """Shorten each state's gradient to `longest`; gives how long they were."""
    gradients = [
        tensor.grad for tensor in (translators.weight, translators.bias) if tensor is not None and tensor.grad is not None
    ]
    lengths = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    scale = (longest / lengths.clamp_min(1e-30)).clamp_max(1.0)
    for gradient in gradients:
        gradient *= scale.view(-1, *[1] * (gradient.ndim - 1))
    return lengths


def _name(translators: Translators) -> dict[str, Tensor]:
    """The tensors of translators by name, as they are and without a history."""
    named = {"weight": translators.weight, "bias": translators.bias}
    return {name: tensor.detach() for name, tensor in named.items() if tensor is not None}


def _spell(values: Tensor) -> list[float]:
    """Numbers as the curve keeps them, with six digits."""
    return [float(f"{value:.6g}") for value in values.tolist()]
