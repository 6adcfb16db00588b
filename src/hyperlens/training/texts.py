"""Text that a lens is trained on: tokens in chunks of one length, some texts of which are held out."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from hyperlens.artefact import hash_file
from hyperlens.configuration import context_length
from hyperlens.encoding import Given, encode_whole
from hyperlens.errors import InputError
from hyperlens.models import Model
from hyperlens.models.quiet import quiet
from hyperlens.splice import at_rest
from hyperlens.tasks import TaskSpec, draw_task, read_samples
from hyperlens.tasks.files import read_text

LENGTH = 256
"""Tokens of a chunk, where the model's context holds as many."""

Chunk = tuple[int, ...]
Text = tuple[Chunk, ...]
"""What stays together: all chunks of a text are trained on, or none is."""


@dataclass(frozen=True)
class Source:
    """Texts and where they are from. `sha256` is that of the file, or of the tokens where there is none."""

    kind: str
    name: str
    texts: tuple[Text, ...]
    sha256: str

    def describe(self) -> dict[str, Any]:
        """What a lens keeps of it."""
        counts = {"texts": len(self.texts), "tokens": sum(map(count_tokens, self.texts))}
        return {"kind": self.kind, "name": self.name, "sha256": self.sha256, **counts}


@dataclass(frozen=True)
class Corpus:
    """Chunks to train on, and chunks of other texts to validate with; no chunk is in both."""

    training: tuple[Chunk, ...]
    validation: tuple[Chunk, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all tokens, in their order and parts."""
        return _hash_chunks([*self.training, (), *self.validation])

    def draw(self, step: int, tokens: int, seed: int) -> list[Chunk]:
        """The chunks of a step, about so many tokens: every chunk once, in an order drawn anew, then every chunk again."""
        number = len(self.training)
        each = max(1, round(tokens / count_tokens(self.training) * number))
        drawn = []
        for place in range(step * each, (step + 1) * each):
            if not drawn or place % number == 0:
                order = random.Random(f"{seed}/{place // number}").sample(range(number), number)
            drawn.append(self.training[order[place % number]])
        return drawn


def count_tokens(chunks: Iterable[Chunk]) -> int:
    """The tokens of all chunks."""
    return sum(map(len, chunks))


def fit_length(model: Model, length: int | None) -> int:
    """Tokens of a chunk: as asked for, if the context holds them, else the usual. Raises InputError."""
    context = context_length(model.splice.config)
    if length is None:
        return min(LENGTH, context or LENGTH)
    if length < 2 or length > (context or length):
        most = f"{context}, all that the context of {model.name} holds" if context else "any number"
        raise InputError(f"chunks of {length} tokens cannot be trained on; give a length from 2 to {most}")
    return length


def cut_text(model: Model, given: Given, length: int, name: str) -> Text:
    """A text as chunks of at most `length` tokens, each of which begins as the tokenizer lets every text begin.

    Raises InputError for what is no text, and for images.
    """
    with quiet():  # tokenizers say of each long text that the model's context does not hold it
        one = encode_whole(given, model, "all", name)
    if one.beside:
        raise InputError(f"{name} has an image; a lens is trained on text alone, leave the image away")
    special = model.tokenizer.all_special_ids if model.tokenizer is not None else ()
    opening = one.ids[:1] if one.ids[0] in special else ()
    body, each = one.ids[len(opening) :], length - len(opening)
    return tuple(opening + body[first : first + each] for first in range(0, len(body), each)) or (one.ids,)


def read_source(model: Model, file: Path, length: int) -> Source:
    """A file's texts: one per line of a .jsonl, with `text` or `prompt` and `target`; of any other file each chunk of the
    running text is one. Raises InputError."""
    if file.suffix == ".jsonl":
        samples = read_samples(file)
        texts = tuple(cut_text(model, sample, length, f"text {number} of {file}") for number, sample in enumerate(samples, 1))
    else:
        texts = tuple((chunk,) for chunk in cut_text(model, read_text(file), length, str(file)))
    return Source("file", file.name, texts, hash_file(file))


def draw_source(model: Model, task: str, limit: int, length: int, seed: int, data: str = "") -> Source:
    """Prompts and targets of a task, up to `limit` (of each level, where it has levels). Raises InputError."""
    return collect_texts(model, draw_task(TaskSpec(task), limit, seed, data).samples, length, "task", task)


def collect_texts(model: Model, given: Iterable[Given], length: int, kind: str, name: str) -> Source:
    """Texts at hand as a source of that kind and name. Raises InputError."""
    texts = tuple(cut_text(model, one, length, f"text {number} of {name}") for number, one in enumerate(given, 1))
    return Source(kind, name, texts, _hash_chunks(chunk for text in texts for chunk in text))


def generate_source(model: Model, number: int, length: int, seed: int, prompts: Path | None = None) -> Source:
    """`number` texts that the model writes, each of at most `length` tokens: drawn from its own distribution as it is, after
    the token that begins every text or, by turns, after the `prompts` of a file.

    The random state is left as it was. Raises InputError where there is nothing to begin with.
    """
    begun = [_begin(model)] if prompts is None else _read_prompts(model, prompts, length)
    texts: list[Text] = []
    for which, prompt in enumerate(begun):
        wanted = len(range(which, number, len(begun)))
        texts += [(chunk,) for chunk in _sample(model, prompt, wanted, length, f"{seed}/{which}")]
    name = "the begin token" if prompts is None else prompts.name
    return Source("generated", name, tuple(texts), _hash_chunks(chunk for text in texts for chunk in text))


def divide_texts(texts: Sequence[Text], share: float, most: int, seed: int) -> Corpus:
    """Hold out about a `share` of the tokens, at most `most`, by whole texts; equal texts, and equal chunks of different
    texts, stay on one side. Raises InputError where either side would be empty."""
    tokens = sum(map(count_tokens, texts))
    room, held = min(most, share * tokens), set[Text]()
    for text in sorted(set(texts), key=lambda text: _hash_chunks([(seed,), *text])):
        room -= count_tokens(text)
        if held and room < 0:
            break
        held.add(text)
    validation = dict.fromkeys(chunk for text in texts if text in held for chunk in text)
    training = tuple(chunk for text in texts if text not in held for chunk in text if chunk not in validation)
    if not training:
        raise InputError(
            f"there are {len(set(texts))} different texts of {tokens} tokens together, none of which is left to train on "
            "once some are held out to validate; give more text"
        )
    return Corpus(training, tuple(validation))


def _hash_chunks(chunks: Iterable[Chunk]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(f"{' '.join(map(str, chunk))}\n".encode())
    return digest.hexdigest()


def _begin(model: Model) -> Chunk:
    tokenizer = model.tokenizer
    token: Any = None if tokenizer is None else tokenizer.bos_token_id
    if token is None:
        raise InputError(f"{model.name} has no token that begins a text; give --prompts, a file of texts to go on from")
    return (token,)


def _read_prompts(model: Model, file: Path, length: int) -> list[Chunk]:
    """The prompts of a file, as much of each as leaves half a chunk to write."""
    samples = read_samples(file)
    return [
        cut_text(model, sample.prompt, length, f"prompt {number} of {file}")[0][: max(1, length // 2)]
        for number, sample in enumerate(samples, 1)
    ]


def _sample(model: Model, prompt: Chunk, number: int, length: int, seed: str) -> list[Chunk]:
    """Texts that go on from a prompt, each up to its end token. The model's own settings are set aside meanwhile, since
    transformers mixes them into any that it is given."""
    network: Any = model.network
    end = getattr(network.generation_config, "eos_token_id", None)
    ends = set(end if isinstance(end, list) else [] if end is None else [end])
    settings = transformers.GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_length=length, eos_token_id=end, pad_token_id=0
    )
    own, texts = network.generation_config, []
    with torch.random.fork_rng(), model.splice.lock, at_rest(network):
        torch.manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7]))
        try:
            network.generation_config = settings
            while len(texts) < number:
                rows = torch.tensor([prompt] * min(32, number - len(texts)), device=model.splice.device)
                made = network.generate(rows, attention_mask=torch.ones_like(rows), generation_config=settings)
                texts += [_until_end(tuple(row), len(prompt), ends) for row in made.tolist()]
        finally:
            network.generation_config = own
    return texts


def _until_end(chunk: Chunk, prompt: int, ends: set[int]) -> Chunk:
    """A text up to its end token, behind which there is only padding."""
    last = next((place for place, token in enumerate(chunk) if place >= prompt and token in ends), len(chunk))
    return chunk[: last + 1]
