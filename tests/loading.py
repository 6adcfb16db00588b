"""What the tests of loading share: prompts, how a loaded model is read, and what a refusal is."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import VOCABULARY, build_image_family, build_tokenizer
from sentences import is_one_sentence
from transformers import AutoModelForCausalLM

from hyperlens.lenses import HyperLens
from hyperlens.models import Model, load_model
from hyperlens.models.quiet import quiet
from hyperlens.tasks import Sample
from hyperlens.tracing import trace

SAMPLES = [Sample("w20 w30 w40 w21 w22", " w33"), Sample("w50 w60", " w11 w12")]
STORIES = [Sample("Once upon a time there was a little", " girl named Lily"), Sample("The dog ran to the", " park")]
CONTEXTS = ("jump", "cached")
LAYERS_ON_DISK = {f"model.layers.{number}": "disk" if number > 2 else "cpu" for number in range(6)}
ALL_QUANTISED = [("int8", "bitsandbytes"), ("nf4", "bitsandbytes"), ("torchao-int8", "torchao")]
SPREAD = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk", **LAYERS_ON_DISK}


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed; it is an extra")


# What PEFT itself calls when it wraps a model, and what we call to see that it does no harm.
deprecated = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")


def save(network: Any, folder: Path) -> Path:
    """`folder`, with the network and a tokenizer in it; drawing no bars, which are not what is tested."""
    with quiet():
        network.save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
    return folder


def adapt(base: Path, folder: Path, **changes: Any) -> Any:
    """A LoRA adapter of random weights on `base`, saved in `folder`; gives the PeftModel."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj"], "task_type": "CAUSAL_LM"}
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**{**settings, **changes}))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
    adapted.save_pretrained(folder)
    return adapted.eval()


def save_llava(place: Path, *images: str) -> Path:
    """`place`, with a small llava, its processor, and random images of these names in it."""
    from PIL import Image
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    layout: dict[str, Any] = {"patch_size": 8, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
    LlavaProcessor(pixels, tokenizer, image_token="<image>", **layout).save_pretrained(place)
    build_image_family("llava", image_token_id=VOCABULARY, text_config={"vocab_size": VOCABULARY + 1}).save_pretrained(place)
    random = np.random.default_rng(0)
    for name in images:
        Image.fromarray(random.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(place / name)
    return place


def read(model: Model, context: str = "jump", samples: list[Sample] = SAMPLES) -> np.ndarray:
    """Probabilities of the targets, whatever the model would say itself."""
    return np.nan_to_num(trace(model, samples, HyperLens((0, 2), context)).to_numpy())


def difference(model: Model, other: Model, samples: list[Sample] = SAMPLES) -> float:
    """The largest difference of any probability, in both contexts."""
    assert model.certificate.contexts == other.certificate.contexts == CONTEXTS
    return max(float(np.abs(read(model, way, samples) - read(other, way, samples)).max()) for way in CONTEXTS)


def refused(source: Any, kind: type[Exception], words: str, **options: Any) -> None:
    """`source` is refused with an error of exactly this kind, in one sentence with these words."""
    with pytest.raises(kind, match=words) as caught:
        load_model(source, **options)
    assert caught.type is kind
    assert is_one_sentence(str(caught.value)), str(caught.value)
