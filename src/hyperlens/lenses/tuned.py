"""The tuned lens (Belrose et al. 2023, arXiv 2303.08112): an affine translator per state, trained to the model's own output."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from hyperlens.artefact import is_artefact, read_document, write_artefact
from hyperlens.errors import ArtefactError, HyperLensWarning, InputError
from hyperlens.lenses.lens import CHOICES, Lens
from hyperlens.lenses.unembedding import hash_unembedding
from hyperlens.models import REFERENCE, Model

TENSORS = "translators.safetensors"
LENS_FOLDER = Path(__file__).parent.parent / "data" / "lens"
"""The lens of the model that comes with the package, called by that model's name."""
REMEDY = "train one for this model with hyperlens tune-lens, or read it as the lens of another model with transfer (--transfer)"


@dataclass(frozen=True)
class Origin:
    """For what a tuned lens was trained: the model by name, fingerprint, vocabulary and `dtype`, and the focal depth it is
    read at.

    `unembedding` is the original package's hash of the unembedding matrix, all that its artefacts know of a model; None, like
    `fingerprint`, `vocabulary` and `dtype`, where it is not known.
    """

    model: str
    fingerprint: str | None = None
    vocabulary: int | None = None
    unembedding: str | None = None
    focal_depth: int = 0
    dtype: str | None = None


@dataclass(frozen=True, eq=False)
class Translators:
    """One affine map per state, in residual form: zero is the identity. `bias` is None where the maps are linear."""

    weight: Float[Tensor, "state width width"]
    bias: Float[Tensor, "state width"] | None

    @classmethod
    def identity(cls, states: int, width: int) -> Translators:
        """Translators that change nothing, which makes the logit lens of a tuned lens."""
        return cls(torch.zeros(states, width, width), torch.zeros(states, width))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of their values in float32."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors().items()):
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.float().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device, dtype: torch.dtype) -> Translators:
        """The same in another place and precision."""
        return Translators(self.weight.to(device, dtype), None if self.bias is None else self.bias.to(device, dtype))

    def translate(self, state: int, hidden: Float[Tensor, "*place width"]) -> Float[Tensor, "*place width"]:
        """h + A h + b, with A and b of state number `state`."""
        bias = None if self.bias is None else self.bias[state]
        return hidden + torch.nn.functional.linear(hidden, self.weight[state], bias)

    def tensors(self) -> dict[str, Tensor]:
        """What is saved of them."""
        named = {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})
        return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}


@dataclass(frozen=True, eq=False)
class TunedLens(Lens):
    """Reads each state through its translator, then through the deepest layers. Zero translators are the logit lens.

    State l has translator l, from the embeddings (0) to what enters the last layer; what leaves it is read as it is. `transfer`
    allows another model than that of `origin`, as for a fine-tuned model read with its base's lens; results say so.
    """

    focal_depths: tuple[int, ...] | str = (0,)
    translators: Translators = field(kw_only=True, repr=False)
    origin: Origin = field(kw_only=True)
    transfer: bool = field(default=False, kw_only=True)
    saved: str | None = field(default=None, kw_only=True, repr=False)
    """The fingerprint from before the translators were brought into a model's precision; None where they are as they were."""

    @property
    def name(self) -> str:
        return "tuned"

    @property
    def fingerprint(self) -> str:
        """That of the translators as they were trained or saved."""
        return self.translators.fingerprint if self.saved is None else self.saved

    def prepare(self, state: int, hidden: Float[Tensor, "*place width"]) -> Float[Tensor, "*place width"]:
        return self.translators.translate(state, hidden)

    def fit_to(self, model: Model) -> TunedLens:
        """The translators where the model's states are. Raises InputError where they are another model's: what differs."""
        check_shape(self, model)
        if not self.transfer:
            check_origin(self.origin, model)
        if self.saved is None:
            self._say_doubts(model)
        splice = model.splice
        return replace(self, translators=self.translators.to(splice.device, splice.dtype), saved=self.fingerprint)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {
            "fingerprint": self.fingerprint,
            "origin": asdict(self.origin),
            "transfer": self.transfer,
        }

    def _say_doubts(self, model: Model) -> None:
        """Warn of a model that the lens knows only by name, and of a focal depth that it was not trained for."""
        origin = self.origin
        if not self.transfer and origin.fingerprint is None and origin.unembedding is None:
            warnings.warn(
                f"nothing in the lens tells whether it was trained for {model.name}; it names {origin.model}",
                HyperLensWarning,
                stacklevel=4,
            )
        if self.focal_depths not in ((origin.focal_depth,), *CHOICES):
            warnings.warn(
                f"the translators were trained at focal depth {origin.focal_depth}; read at another they lead into a basis "
                "that the deepest layers were not trained for",
                HyperLensWarning,
                stacklevel=4,
            )


def measure_width(model: Model) -> int:
    """Values of one residual state. Raises InputError where a state is a matrix of them."""
    width = model.splice.anatomy.width
    if len(width) != 1:
        raise InputError(f"each state of {model.name} is a matrix of {list(width)} values; a tuned lens reads vectors")
    return width[0]


def check_shape(lens: TunedLens, model: Model) -> None:
    """Raises InputError where the translators are of another width or number of states than the model."""
    states, width = lens.translators.weight.shape[:2]
    own = measure_width(model)
    if width != own:
        raise InputError(f"the lens was trained for width {width}; {model.name} has {own}; train one with hyperlens tune-lens")
    if states != model.layers:
        raise InputError(
            f"the lens has translators for {states} states; {model.name} has {model.layers} before its last; train one with "
            "hyperlens tune-lens"
        )


def check_origin(origin: Origin, model: Model) -> None:
    """Raises InputError where a lens of that origin is not this model's."""
    vocabulary = model.splice.config.vocab_size
    if origin.vocabulary not in (None, vocabulary):
        raise InputError(
            f"the lens was trained for a vocabulary of {origin.vocabulary} tokens; {model.name} now has {vocabulary}; {REMEDY}"
        )
    if origin.fingerprint is None:
        _check_unembedding(origin, model)
    elif origin.fingerprint != model.fingerprint:
        dtype, own = origin.dtype, name_dtype(model)
        if dtype not in (None, own):
            raise InputError(
                f"the lens was trained for {origin.model} in {dtype}; {model.name} was loaded in {own}, which gives it other "
                f"weights; load it with --dtype {dtype}, or {REMEDY}"
            )
        raise InputError(
            f"the lens was trained for {origin.model} ({origin.fingerprint[:12]}…); {model.name} is {model.fingerprint[:12]}…, "
            f"whose weights or configuration are others; {REMEDY}"
        )


def name_dtype(model: Model) -> str:
    """The precision that a model computes in, as `--dtype` calls it."""
    return str(model.splice.dtype).removeprefix("torch.")


def _check_unembedding(origin: Origin, model: Model) -> None:
    """For a lens that knows no more of its model: raises InputError where that has another unembedding matrix."""
    if origin.unembedding is not None and origin.unembedding != (own := hash_unembedding(model)):
        what = "has none that can be compared" if own is None else f"has {own[:12]}…"
        raise InputError(
            f"the lens was trained for {origin.model} with the unembedding matrix {origin.unembedding[:12]}…; "
            f"{model.name} {what}; {REMEDY}"
        )


def save_lens(lens: TunedLens, folder: str | os.PathLike[str], training: Mapping[str, Any] | None = None) -> Path:
    """Write a tuned lens as a folder of json and safetensors, with what is known of its `training`. Raises ArtefactError."""
    manifest = {
        "kind": "tuned lens",
        "states": len(lens.translators.weight),
        "width": lens.translators.weight.shape[-1],
        "fingerprint": lens.translators.fingerprint,
        "origin": asdict(lens.origin),
        "training": dict(training or {}),
    }
    return write_artefact(folder, manifest, {}, files={TENSORS: save(lens.translators.tensors())})


def load_lens(
    folder: str | os.PathLike[str],
    focal_depths: tuple[int, ...] | str | None = None,
    context: str = "jump",
    transfer: bool = False,
) -> TunedLens:
    """Read a tuned lens that we or the original package (`config.json` and `params.pt`) wrote.

    "reference" is the one of the reference model. Read at the focal depth for which it was trained unless `focal_depths` says
    otherwise. Raises ArtefactError where the folder is neither, or damaged.
    """
    from hyperlens.lenses.original import is_original, read_original

    place = _find_folder(folder)
    if is_original(place) and not is_artefact(place):
        translators, origin = read_original(place)
    else:
        translators, origin = _read_own(place)
    depths = (origin.focal_depth,) if focal_depths is None else focal_depths
    return TunedLens(depths, context, translators=translators, origin=origin, transfer=transfer)


def read_sources(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The sources of the text that a saved lens was trained on, each with its sha256; none where it does not say."""
    place = _find_folder(folder)
    training = read_document(place).get("training", {}) if is_artefact(place) else {}
    return list(training.get("text", {}).get("sources", ()))


def _find_folder(folder: str | os.PathLike[str]) -> Path:
    return LENS_FOLDER if os.fspath(folder) == REFERENCE and not Path(folder).is_dir() else Path(folder)


def _read_own(place: Path) -> tuple[Translators, Origin]:
    manifest = read_document(place)
    if manifest.get("kind") != "tuned lens":
        raise ArtefactError(f"{place} holds no tuned lens but a {manifest.get('kind')}; choose another folder")
    try:
        tensors = load_file(place / TENSORS)
        translators, origin = Translators(tensors["weight"], tensors.get("bias")), Origin(**manifest["origin"])
        lens = TunedLens(translators=translators, origin=origin)
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ArtefactError(f"{place} holds a damaged tuned lens ({error}); put back a copy, or train it again") from None
    if lens.fingerprint != manifest.get("fingerprint"):
        raise ArtefactError(f"{place} holds other translators than its manifest says; put back a copy, or train it again")
    return translators, origin
