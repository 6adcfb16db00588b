"""Text that a lens is trained on: tokens in chunks of one length, some texts of which are held out."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
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

    @cached_property
    def tokens(self) -> int:
        """The tokens to train on."""
        return count_tokens(self.training)

    def draw(self, step: int, tokens: int, seed: int) -> list[Chunk]:
        """The chunks of a step, about so many tokens: every chunk once, in an order drawn anew, then every chunk again."""
        number = len(self.training)
        each = max(1, round(tokens / self.tokens * number))
        places = range(step * each, (step + 1) * each)
        return [self.training[_shuffle(number, f"{seed}/{place // number}")[place % number]] for place in places]


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
    """A text as chunks of at most `length` tokens, each of which begins with the special tokens that the text begins with.

    Raises InputError for what is no text, and for images.
    """
    with quiet():  # tokenizers say of each long text that the model's context does not hold it
        one = encode_whole(given, model, "all", name)
    if one.beside:
        raise InputError(f"{name} has an image; a lens is trained on text alone, leave the image away")
    special = model.tokenizer.all_special_ids if model.tokenizer is not None else ()
    opening = tuple(itertools.takewhile(lambda token: token in special, one.ids[: length - 1]))
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

    The random state is left as it was. Raises InputError where there is nothing to begin with, and where the model writes
    nothing, or always the same.
    """
    begun = [_begin(model)] if prompts is None else _read_prompts(model, prompts, length)
    texts: list[Text] = []
    for which, prompt in enumerate(begun):
        wanted = len(range(which, number, len(begun)))
        texts += [(chunk,) for chunk in _sample(model, prompt, wanted, length, f"{seed}/{which}")]
    _check_written(model, texts)
    name = "the begin token" if prompts is None else prompts.name
    return Source("generated", name, tuple(texts), _hash_chunks(chunk for text in texts for chunk in text))


def divide_texts(texts: Sequence[Text], share: float, most: int, seed: int) -> Corpus:
    """Hold out about a `share` of the different texts' tokens, at most `most` (but one chunk at least), by whole texts.

    Where texts are so few or so long that whole ones fill less than half of that, each chunk counts as a text of its own. Equal
    texts, and equal chunks of different texts, stay on one side. Raises InputError where either side would be empty.
    """
    different = set(texts)
    tokens = sum(map(count_tokens, different))
    room = float(min(most, share * tokens))
    held = _hold_out(texts, room, seed)
    if sum(map(count_tokens, held)) < room / 2:
        texts = [(chunk,) for text in texts for chunk in text]
        held = _hold_out(texts, room, seed) or set(sorted(texts, key=lambda text: (count_tokens(text), text))[:1])
    validation = dict.fromkeys(chunk for text in texts if text in held for chunk in text)
    training = tuple(chunk for text in texts if text not in held for chunk in text if chunk not in validation)
    if not training:
        raise InputError(
            f"{_count(len(different), 'different text')} of {_count(tokens, 'token')} together cannot be divided into some to "
            "train on and others to validate with; give more text"
        )
    return Corpus(training, tuple(validation))


def _hold_out(texts: Sequence[Text], room: float, seed: int) -> set[Text]:
    """Texts of at most `room` tokens together, in an order drawn by their hashes up to the first that fits no more; while less
    than half is full, such texts are passed over."""
    held, full = set[Text](), 0
    for text in sorted(set(texts), key=lambda text: _hash_chunks([(seed,), *text])):
        tokens = count_tokens(text)
        if full + tokens <= room:
            held.add(text)
            full += tokens
        elif full >= room / 2:
            break
    return held


@lru_cache(maxsize=4)
def _shuffle(number: int, seed: str) -> list[int]:
    """So many places in an order drawn by a seed."""
    return random.Random(seed).sample(range(number), number)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


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


def _check_written(model: Model, texts: Sequence[Text]) -> None:
    """Raises InputError where texts that a model wrote hold nothing to learn from."""
    longest = max((count_tokens(text) for text in texts), default=0)
    if longest <= 2 or len(set(texts)) == 1 < len(texts):
        raise InputError(
            f"what {model.name} wrote ({_count(len(texts), 'text')}, {len(set(texts))} of them different, the longest of "
            f"{_count(longest, 'token')}) is nothing to train on; give --prompts, a file of texts to go on from"
        )


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
