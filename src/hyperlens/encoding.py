"""From samples to token ids, and to the places in them that are read."""

from __future__ import annotations

import operator
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hyperlens.configuration import context_length, image_tokens
from hyperlens.errors import HyperLensWarning, InputError, ModelError, first_sentence
from hyperlens.models import Model
from hyperlens.tasks.sample import Sample

Given = str | Sample | Sequence[int] | Mapping[str, Tensor]
"""A text, with or without what is known of it; token ids; or what a processor made of a text and its images."""

NOT_OF_A_TEXT = {"labels", "inputs_embeds", "past_key_values", "use_cache", "cache_position", "logits_to_keep", "return_dict"}
"""What a model takes that no text comes with."""

POSITIONS = ("last", "answer", "all", "generated")
REFERENCES = ("output", "target", "generated")


@dataclass(frozen=True)
class Encoded:
    """One text as token ids, the 0-based positions that are read, and the tokens of its answer options (or none).

    `merged` says that the target changed the last token of the prompt; `cut` how many tokens the text lost at its beginning;
    `beside` is what the model is given beside the ids, such as the pixels of an image.
    """

    sample: Sample
    ids: tuple[int, ...]
    positions: tuple[int, ...]
    option_ids: tuple[int, ...] = ()
    merged: bool = False
    cut: int = 0
    beside: Mapping[str, Tensor] = field(default_factory=dict)

    def following(self) -> list[int]:
        """The token after each position; -1 after the last token of the text."""
        return [self.ids[place + 1] if place + 1 < len(self.ids) else -1 for place in self.positions]


def encode_samples(samples: Iterable[Given], model: Model, positions: str) -> list[Encoded]:
    """Each sample as token ids, with the places that are read: `last`, of the prompt; `answer`, those that predict the target;
    `all`, of prompt and target (but for the tokens that stand for an image); `generated`, the prompt's last token, until a
    generation extends it.

    A target's tokens are those of prompt and target together, after what they share with the prompt's own. Raises InputError
    for a text that is empty or longer than the model's context, a target that is missing or empty, options that share
    their first token or differ in number, and images that do not fit the text or the model.
    """
    if positions not in POSITIONS:
        raise InputError(f'"{positions}" is not a choice of positions; choose from {", ".join(POSITIONS)}')
    encoded = [encode_sample(sample, model, positions, f"text {number}") for number, sample in enumerate(samples, 1)]
    if not encoded:
        raise InputError("there is no text to read; give at least one")
    counts = sorted({len(one.option_ids) for one in encoded})
    if len(counts) > 1:
        raise InputError(f"the texts have {_listed(counts)} answer options, whose efforts cannot be compared; trace them apart")
    if merged := sum(one.merged for one in encoded):
        warnings.warn(
            f"in {merged} of {len(encoded)} texts the target changes the last token of the prompt; it is read from there on",
            HyperLensWarning,
            stacklevel=3,
        )
    return encoded


def encode_sample(given: Given, model: Model, positions: str, name: str, room: int | None = None) -> Encoded:
    """One sample as `encode_samples` has it, called `name` in what is refused.

    With `room`, a text that leaves less than so many tokens of the model's context loses its first ones, all but what opens
    every text.
    """
    context, one = context_length(model.splice.config), encode_whole(given, model, positions, name)
    if room is not None and context is not None:
        one = _cut_left(one, context - room, model.tokenizer, name)
    return check_length(one, context, name)


def encode_whole(given: Given, model: Model, positions: str, name: str) -> Encoded:
    """One sample as `encode_samples` has it, however long it is."""
    vocabulary = len(model.splice.embedding)
    one = _skip_images(_encode(given, model, positions, name), image_tokens(model.network.config), name)
    if not all(0 <= token < vocabulary for token in one.ids):
        raise InputError(f"{name} has token ids outside 0 … {vocabulary - 1}, which this model does not know")
    return one


def _cut_left(one: Encoded, length: int, tokenizer: PreTrainedTokenizerBase | None, name: str) -> Encoded:
    """The text without as many of its first tokens as it has too many. Raises InputError where one that is read would go."""
    over = len(one.ids) - length
    if over <= 0:
        return one
    opening = int(tokenizer is not None and one.ids[0] in tokenizer.all_special_ids)
    if one.beside or one.positions[0] < opening + over:
        raise InputError(f"{name} has {len(one.ids)} tokens, of which {length} fit, and none of the first can go; shorten it")
    ids = one.ids[:opening] + one.ids[opening + over :]
    return replace(one, ids=ids, positions=tuple(place - over for place in one.positions), cut=over)


def check_length(one: Encoded, context: int | None, name: str) -> Encoded:
    """The text, if it fits into the model's context. Raises InputError."""
    if context is not None and len(one.ids) > context:
        raise InputError(f"{name} has {len(one.ids)} tokens, and this model's context holds {context}; shorten the text")
    return one


def _encode(given: Given, model: Model, positions: str, name: str) -> Encoded:
    if isinstance(given, Mapping):
        return _encode_processed(given, model, positions, name)
    if not isinstance(given, str | Sample):
        return _encode_ids(given, model.tokenizer, positions, name)
    sample = Sample(given) if isinstance(given, str) else given
    if model.tokenizer is None:
        raise InputError(f"{name} is text, and this model came without a tokenizer; give load_model one, or trace token ids")
    for part in (sample.prompt, sample.target or "", *sample.options):
        if any("\ud800" <= sign <= "\udfff" for sign in part):
            raise InputError(f"{name} holds half a character (a lone surrogate); give valid Unicode")
    if sample.target == "":
        raise InputError(f"the target of {name} is empty or tokenises to nothing; give one that adds at least one token")
    if sample.options and positions == "generated":
        raise InputError(f'{name} has answer options, which a generated answer is not read by; choose positions "last"')
    if not sample.prompt.strip():
        raise InputError(f"{name} is empty; give a text of at least one word")
    sample = _write_out(sample, model, name)
    read = _reader(model, sample, name)
    prompt, beside = read(sample.prompt)
    if not prompt:
        raise InputError(f"{name} tokenises to nothing; give a text that this model's vocabulary can write")
    options, asked = _option_tokens(read, sample, prompt, name)
    if sample.target is None or positions in ("last", "generated"):
        if positions == "answer":
            raise InputError(f"{name} has no target, whose positions are to be read; give one with --target")
        return Encoded(sample, asked, _places(positions, len(asked), len(asked)), options, beside=beside)
    ids, beside = read(sample.prompt + sample.target)
    first = _shared(prompt, ids)
    if not sample.target or first >= len(ids):
        raise InputError(f"the target of {name} is empty or tokenises to nothing; give one that adds at least one token")
    if first == 0:
        raise InputError(f"the target of {name} changes its first token, which nothing predicts; begin the text with more")
    places = _places(positions, len(ids), first)
    if options and positions == "answer":
        if ids[: len(asked)] != asked or len(ids) == len(asked):
            raise InputError(f"the target of {name} is none of its answer options; give one of them, or leave it away")
        places = (len(asked) - 1,)  # where options are told apart
    return Encoded(sample, ids, places, options, merged=first < len(prompt), beside=beside)


def _write_out(sample: Sample, model: Model, name: str) -> Sample:
    """The sample with its solved examples in front of its prompt, or with all of it in the model's chat template."""
    if not sample.chat:
        shots = "".join(f"{prompt}{target}\n\n" for prompt, target in sample.shots)
        return replace(sample, prompt=shots + sample.prompt, shots=())
    turns = [
        {"role": role, "content": text.strip()}
        for shot in sample.shots
        for role, text in zip(("user", "assistant"), shot, strict=True)
    ]
    turns.append({"role": "user", "content": sample.prompt})
    text = write_chat(model, turns, name)
    target = None if sample.target is None else sample.target.lstrip()
    return replace(sample, prompt=text, target=target, options=tuple(one.lstrip() for one in sample.options), shots=())


def write_chat(model: Model, turns: Sequence[Mapping[str, str]], name: str) -> str:
    """Messages, each with role and content, in the model's chat template, up to where its answer begins. Raises InputError."""
    tokenizer = model.tokenizer
    if tokenizer is None or not tokenizer.chat_template:
        raise InputError(
            f"{model.name} has no chat template for {name}; leave chat away, or give a model that was made to chat"
        )
    try:
        return str(tokenizer.apply_chat_template([dict(turn) for turn in turns], tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program; what it refuses has no common class
        raise InputError(f"the chat template of {model.name} refused {name} ({first_sentence(error)})") from None


Reader = Callable[[str], tuple[tuple[int, ...], dict[str, Tensor]]]


def _reader(model: Model, sample: Sample, name: str) -> Reader:
    """What turns a text of the sample into token ids, and into what goes beside them."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    if not sample.images:
        return lambda text: (_tokenize(tokenizer, text, sample.chat), {})
    if model.processor is None:
        raise InputError(
            f"{name} has an image, and {model.name} came without a processor of images; give an image-text model with its "
            "processor's files, and install what that needs: pip install 'hyperlens[images]'"
        )
    images = [_open_image(file, name) for file in sample.images]
    return lambda text: _process(model, text, images, name)


def _open_image(file: str, name: str) -> Any:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ModelError("reading images needs pillow; install it with: pip install 'hyperlens[images]'") from None
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except UnidentifiedImageError:
        raise InputError(f"the image {file} of {name} is not one that can be read; give a PNG or JPEG") from None
    except Exception as error:  # what pillow raises on a damaged or a giant file has no common class
        reason = getattr(error, "strerror", None) or first_sentence(error)
        raise InputError(f"the image {file} of {name} cannot be read ({reason}); give its file") from None


def _process(model: Model, text: str, images: list[Any], name: str) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """Token ids of a text with images, and their pixels and maps, by the model's own processor."""
    processor: Any = model.processor
    sign = getattr(processor, "image_token", None)
    advice = "name each image where it belongs" if sign is None else f"put {sign} where each image belongs"
    try:
        made = processor(text=[text], images=images, return_tensors="pt")
    except Exception as error:  # each processor has its own way to find that text and images do not fit
        raise InputError(f"the processor of {model.name} refused {name} ({first_sentence(error)}); {advice}") from None
    whole, beside = _split_processed(made, model, name)
    pieces = image_tokens(model.network.config)
    if pieces and not pieces & set(whole):
        raise InputError(f"{name} comes with {len(images)} images, and its prompt has no place for them; {advice}")
    assert model.tokenizer is not None
    ids = _without_end(model.tokenizer, whole, text)
    return ids, {part: value[:, : len(ids)] if value.shape[:2] == (1, len(whole)) else value for part, value in beside.items()}


def _split_processed(made: Mapping[str, Any], model: Model, name: str) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """The ids of one text, and what a processor put beside them. Raises InputError."""
    ids, mask = made.get("input_ids"), made.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or len(ids) != 1:
        raise InputError(f"{name} is what a processor made, but not of one text; expected input_ids of shape [1, tokens]")
    if isinstance(mask, Tensor) and not mask.bool().all():
        raise InputError(f"{name} is padded; give each text by itself, without padding")
    taken = model.splice.parameters
    passing = {"input_ids", "attention_mask"} | ({"token_type_ids"} - taken)  # tokenizers make these for any model
    beside = {part: value for part, value in made.items() if part not in passing}
    for part, value in beside.items():
        if not isinstance(value, Tensor):
            raise InputError(f'{name} has {part} as {type(value).__name__}; expected a tensor, as with return_tensors="pt"')
        if part not in taken or part in NOT_OF_A_TEXT:
            raise InputError(f"{name} comes with {part}, which {model.name} does not take; give what its own processor makes")
    return tuple(ids[0].tolist()), beside


def _encode_processed(given: Mapping[str, Any], model: Model, positions: str, name: str) -> Encoded:
    """What a processor made of one text and its images."""
    ids, beside = _split_processed(given, model, name)
    return replace(_encode_ids(ids, model.tokenizer, positions, name), beside=beside)


def _skip_images(one: Encoded, pieces: Collection[int], name: str) -> Encoded:
    """The text without the positions that are a piece of an image. Raises InputError where none is left."""
    if not one.beside:
        return one
    places = tuple(place for place in one.positions if one.ids[place] not in pieces)
    if not places:
        raise InputError(f"{name} ends with an image, which is no word to read at; let a word follow")
    return replace(one, positions=places)


def _encode_ids(given: Sequence[int], tokenizer: PreTrainedTokenizerBase | None, positions: str, name: str) -> Encoded:
    if not isinstance(given, Sequence) and not hasattr(given, "tolist"):
        raise InputError(f"{name} is {type(given).__name__}; expected a text, a Sample, or a list of token ids")
    try:
        ids = tuple(operator.index(token) for token in given)
    except TypeError:
        raise InputError(f"{name} holds something that is no token id; expected whole numbers") from None
    if not ids:
        raise InputError(f"{name} has no token ids; give at least one")
    if positions == "answer":
        raise InputError(f'{name} is given as token ids, which have no target; choose positions "last" or "all"')
    text = str(tokenizer.decode(list(ids))) if tokenizer is not None else " ".join(map(str, ids))
    return Encoded(Sample(text), ids, _places(positions, len(ids), len(ids)))


def _places(positions: str, length: int, first: int) -> tuple[int, ...]:
    """The positions to read in a text of `length` tokens whose answer begins at token `first`."""
    match positions:
        case "answer":
            return tuple(range(first - 1, length - 1))
        case "all":
            return tuple(range(length))
        case _:
            return (length - 1,)


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str, chat: bool) -> tuple[int, ...]:
    """The text's tokens; an end token that the tokenizer puts behind every text is left away, since the text goes on. A chat
    template has written what opens a text itself."""
    return _without_end(tokenizer, tuple(tokenizer(text, add_special_tokens=not chat)["input_ids"]), text)


def _without_end(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...], text: str) -> tuple[int, ...]:
    ended = ids[-1:] == (tokenizer.eos_token_id,) and not text.endswith(str(tokenizer.eos_token))
    return ids[:-1] if ended else ids


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def _option_tokens(read: Reader, sample: Sample, prompt: tuple[int, ...], name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The token by which each option differs from the others, and the prompt with the tokens that all of them begin with, such
    as a space that is a token of its own. Raises InputError where two options do not differ there."""
    if not sample.options:
        return (), prompt
    if len(sample.options) < 2:
        raise InputError(f"{name} has one answer option; give at least two")
    behind = []
    for option in sample.options:
        ids, _ = read(sample.prompt + option)
        shared = _shared(prompt, ids)
        if shared < len(prompt):
            raise InputError(
                f'the option "{option}" of {name} changes the last token of the prompt; begin it with a space, or let the '
                "options be lettered"
            )
        if shared == len(ids):
            raise InputError(f'the option "{option}" of {name} tokenises to nothing; give one that adds at least one token')
        behind.append(ids[shared:])
    common = 0 if sample.images else min(_shared(behind[0], ids) for ids in behind[1:])
    firsts = [ids[common] if common < len(ids) else -1 for ids in behind]
    kinds = Counter(firsts)
    if colliding := sum(count for count in kinds.values() if count > 1) or kinds[-1]:
        lettered = all(len(option.strip()) == 1 for option in sample.options)
        advice = "which this vocabulary cannot tell apart: read the target instead" if lettered else "let them be lettered"
        raise InputError(f"{colliding} of the {len(behind)} options of {name} share their first token; {advice}")
    return tuple(firsts), prompt + behind[0][:common]


def _listed(values: Sequence[object]) -> str:
    return " and ".join(str(value) for value in values)
