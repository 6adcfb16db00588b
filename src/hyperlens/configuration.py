"""What a model's configuration says of its texts: their length, and which tokens mean more than a word."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the model's language decoder."""
    return model.config.get_text_config(decoder=True)


def context_length(config: PreTrainedConfig) -> int | None:
    """How many tokens the model's context holds; None where its configuration names no limit."""
    length = getattr(config, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def rotary_boundary(config: PreTrainedConfig) -> int | None:
    """Beyond how many tokens the rotary angles of a whole batch depend on its longest text; None where they never do.

    Those of the kind "dynamic" depend on earlier calls too, until a call of few tokens, such as each read-out, resets them.
    """
    given = getattr(config, "rope_parameters", None) or {}
    kinds = [given, *(part for part in given.values() if isinstance(part, dict))]
    found = [kind.get("original_max_position_embeddings") for kind in kinds if kind.get("rope_type") in ("longrope", "dynamic")]
    return min((length for length in found if length), default=None)


def attention_widths(config: PreTrainedConfig) -> tuple[float, float]:
    """The width of a layer's queries (the mean of what is compared and of the values), and of what it keeps of a token.

    Both are 0 where the configuration does not say.
    """
    said = config.to_dict()  # a configuration may refuse to be asked for what differs between its layers

    def named(name: str) -> Any:
        return said.get(config.attribute_map.get(name, name))

    heads = named("num_attention_heads")
    if not isinstance(heads, int):
        return 0.0, 0.0
    each = named("head_dim") or named("hidden_size") // heads
    compared, values = named("qk_head_dim") or each, named("v_head_dim") or each
    groups = named("num_key_value_heads") or heads
    return heads * (compared + values) / 2, float(groups * (compared + values))


def plain_token(config: PreTrainedConfig) -> int:
    """A token id for places whose token does not matter; not a special one."""
    special = special_tokens(config)
    return next(token for token in range(len(special) + 1) if token not in special)


def special_tokens(config: PreTrainedConfig) -> set[int]:
    """Token ids that mean more than a word: padding, about which some models warn, places of an image, ends."""
    named = (value for name, value in config.to_dict().items() if name.endswith(("_token_id", "_token_index")))
    return {value for value in named if isinstance(value, int)}


def image_tokens(config: PreTrainedConfig) -> set[int]:
    """The token ids that stand for a piece of an image, a video or a sound."""
    names = [f"{kind}_token_{end}" for kind in ("image", "video", "audio") for end in ("id", "index")]
    return {value for value in (getattr(config, name, None) for name in names) if isinstance(value, int)}
