"""Monitor: wraps `generate` of a model, and tells of each new token how hard the model worked on it."""

from __future__ import annotations

import os
import queue
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import transformers
from torch import Tensor

from hyperlens.certificate import error_bound
from hyperlens.encoding import Encoded, Given
from hyperlens.errors import HyperLensError, HyperLensWarning, InputError, ModelError, first_sentence, is_memory_error
from hyperlens.lenses import Lens, LogitLens, open_lens
from hyperlens.models import Model
from hyperlens.monitoring.generation.following import follow_calls
from hyperlens.monitoring.generation.generated import Generated
from hyperlens.monitoring.generation.reading import UNREADABLE, Reader
from hyperlens.monitoring.generation.session import OnToken, Session
from hyperlens.monitoring.generation.settings import (
    Batch,
    check_rows,
    check_whole,
    encode_prompts,
    fit_length,
    resolve_settings,
)
from hyperlens.monitoring.generation.token import LiveToken
from hyperlens.tracing import Limits
from hyperlens.tracing.limits import explain_memory
from hyperlens.tracing.traces import resolve_depth
from hyperlens.trajectory import COARSE_BELOW

NO_PROBABILITIES = "probability tensor contains"
"""What torch says where a token is to be drawn by logits that are not numbers."""
UNAWAITED = 8
"""Tokens that are read in one call where nobody is told of them before the end."""


@dataclass(frozen=True)
class Monitor:
    """Follows a model while it generates: for each new token its confidence trajectory, effort Ω, onset and commit.

    What is generated, and the random state, are what they are without it: the states of each call are only looked at, and
    routed in calls of their own between those of `generate`. A routed state attends to the keys and values that the model
    itself made for the tokens before it: the context is `cached`, whatever the lens says, since no other position jumps.
    `lens` is a lens of one focal depth, or a name: "hyper" (its depth chosen on each prompt by resolution), "logit", or the
    folder of a tuned lens. `stride` reads every so many states, and always the last, L − m. `candidates` K ≥ 2 reads among the
    model's own K top tokens of each position (the chosen one with them) and leaves all other rows of the unembedding alone;
    confidence is then renormalised over these, guessing gives 1/K, and its Ω is not to be put beside that of the whole
    vocabulary. `top_k` top tokens are kept of every state. `together` tokens are read in one call, which is cheaper; each is
    told at most so many tokens late, less one. If it is left away, each token is told at once where `on_token` or a stream
    waits for it, and `UNAWAITED` are read together where nobody does.

    Raises InputError for settings that do not fit the model, CertificateError where it cannot be read in `cached`.
    """

    model: Model
    lens: Lens | str | os.PathLike[str] = "hyper"
    stride: int = 1
    candidates: int | None = None
    top_k: int = 0
    together: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, Model):
            raise InputError(f"the model is {type(self.model).__name__}; give what load_model gives")
        for name, least in (("stride", 1), ("together", 1), ("top_k", 0), ("candidates", 2)):
            if (value := getattr(self, name)) is not None or name not in ("together", "candidates"):
                check_whole(name, value, least)
        if self.top_k and self.candidates is not None:
            raise InputError("top tokens are kept of the whole vocabulary; leave one of top_k and candidates away")
        if not isinstance(self.lens, Lens | str | os.PathLike):
            raise InputError(f"the lens is {self.lens!r}; give a lens, its name, or the folder of a tuned one")
        lens = self.lens if isinstance(self.lens, Lens) else open_lens(self.lens)
        if lens.between:
            raise InputError("layers in between are passed by all positions together; monitor with a lens without them")
        object.__setattr__(self, "lens", lens if isinstance(lens, LogitLens) else replace(lens, context="cached"))
        self._check_lens()

    def generate(
        self,
        prompt: Given | Tensor | Sequence[Given],
        on_token: OnToken | None = None,
        stopped: Callable[[], bool] | None = None,
        **settings: Any,
    ) -> Generated:
        """Let the model go on from a prompt, a list of prompts, token ids, or a batch of them `[row, token]`.

        `on_token` is called with each token as it is read; where `stopped` gives true, no further token is made. `settings` go
        to the model's `generate`, and `max_new_tokens` is 32 if they do not say; what would not fit into the context is left
        away. A batch of texts of different length is padded on the left. Raises InputError for several beams and other ways to
        generate in which a call gives more or less than one token of each text; CertificateError where a routed state that must
        be the model's own output is not; ModelError for NaN or infinite logits.
        """
        model = self.model
        if any(module.training for module in model.network.modules()):
            raise InputError("the model is being trained, so that dropout may change what it says; call eval() on it first")
        mask = settings.pop("attention_mask", None)
        resolved = resolve_settings(model, settings)
        batch = encode_prompts(model, prompt, mask, resolved)
        longest = fit_length(model, resolved, batch)
        with model.splice.lock, explain_memory(Limits()):
            lens, sweep = self._choose_depth(batch.encoded)
            reader = self._make_reader(lens)
            check_rows(model, resolved, batch, reader.depth)
            together = self.together or (UNAWAITED if on_token is None else 1)
            session = Session(reader, together, batch, resolved, longest, on_token, stopped)
            with follow_calls(model, reader.states, reader.depth) as calls:
                session.calls = calls
                output = _call_generate(model, batch, session, resolved.limited(longest))
                session.flush()
        return session.finish(output, lens, sweep)

    def stream(self, prompt: Given | Tensor | Sequence[Given], **settings: Any) -> Iterator[LiveToken]:
        """The tokens as they come; closing the iterator ends the generation. Prompts, settings and errors as in `generate`."""
        if taken := {"on_token", "stopped"} & settings.keys():
            raise InputError(f"a stream has its own {min(taken)}; take its tokens, and close it to end the generation")
        told: queue.SimpleQueue[LiveToken | BaseException | None] = queue.SimpleQueue()
        over = threading.Event()

        def work() -> None:
            try:
                self.generate(prompt, told.put, over.is_set, **settings)
            except BaseException as error:  # raised again where the tokens are taken
                told.put(error)
            told.put(None)

        worker = threading.Thread(target=work, name="hyperlens-monitor", daemon=True)
        worker.start()
        try:
            while (token := told.get()) is not None:
                if isinstance(token, BaseException):
                    raise token
                yield token
        finally:
            over.set()
            worker.join()

    def _check_lens(self) -> None:
        """Raises InputError where the lens has no place in a generation, CertificateError where the model cannot be read so."""
        lens, layers = self.lens, self.model.layers
        assert isinstance(lens, Lens)
        if lens.focal_depths == "auto":
            return
        depths = () if isinstance(lens.focal_depths, str) else lens.check_depths(layers)
        if len(depths) != 1:
            raise InputError("a monitor reads one focal depth; give one number, or auto")
        _check_depth(self.model, depths[0])

    def _choose_depth(self, encoded: Sequence[Encoded]) -> tuple[Lens, dict[str, Any] | None]:
        """The lens at one focal depth, chosen on all positions of the prompts where it is to be chosen."""
        lens = self.lens
        assert isinstance(lens, Lens)
        if not isinstance(lens.focal_depths, str):
            return lens, None
        if _refusal(self.model, 1) is not None:
            return replace(lens, focal_depths=(0,)), None
        resolved, sweep = resolve_depth(self.model, encoded, replace(lens, context="jump"), Limits(progress=False))
        assert sweep is not None
        return replace(resolved, focal_depths=(sweep["chosen"],), context="cached"), sweep

    def _make_reader(self, lens: Lens) -> Reader:
        """How this model's steps are read. Warns where few states are left."""
        depth, vocabulary = lens.check_depths(self.model.layers)[0], len(self.model.splice.embedding)
        reader = Reader(
            self.model,
            lens.fit_to(self.model),
            depth,
            self.stride,
            None if self.candidates is None else min(self.candidates, vocabulary),
            min(self.top_k, vocabulary),
            Limits(progress=False),
            error_bound(self.model.splice.dtype),
        )
        if (left := len(reader.states) - 1) < COARSE_BELOW:
            warnings.warn(
                f"at focal depth {depth} and stride {self.stride} only {left} states are left; effort is coarse",
                HyperLensWarning,
                stacklevel=3,
            )
        return reader


def _check_depth(model: Model, depth: int) -> None:
    """Raises InputError where nothing is left to read, CertificateError where the model cannot be read so in `cached`."""
    if depth >= model.layers:
        raise InputError(f"focal depth {depth} leaves no state to read in {model.layers} layers; give 0 to {model.layers - 1}")
    if depth:
        model.certificate.require("cached")
    if reason := _refusal(model, depth):
        raise InputError(reason)


def _refusal(model: Model, depth: int) -> str | None:
    """Why states cannot be routed while this model generates."""
    if not depth or model.certificate.cached_form in ("rows", "steps"):
        return None
    return f"{model.name} keeps no memory of its own that states could be routed beside; choose focal depth 0"


def _call_generate(model: Model, batch: Batch, session: Session, passed: dict[str, Any]) -> Any:
    """What `generate` returns. Raises InputError for what it refuses before it begins."""
    network: Any = model.network
    criteria = transformers.StoppingCriteriaList([session])
    try:
        return network.generate(batch.ids, attention_mask=batch.mask, stopping_criteria=criteria, **passed)
    except HyperLensError:
        raise
    except Exception as error:  # what a setting of any kind makes it raise has no common class
        if NO_PROBABILITIES in str(error):
            raise ModelError(UNREADABLE.format(model.name)) from None
        if session.made or is_memory_error(error):
            raise
        raise InputError(f"generation refuses its settings ({first_sentence(error)}); change them") from None
