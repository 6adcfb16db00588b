"""Texts with images: read as the model reads them, alone in their batch, and shown to it once."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import IMAGE_PROMPTS, LAYERS, build_family, build_image_family, build_tokenizer, image_inputs
from loading import save_llava
from sentences import is_one_sentence

from hyperlens.encoding import Encoded
from hyperlens.errors import CertificateError, InputError, ModelError
from hyperlens.lenses import HyperLens
from hyperlens.models import Model, load_model
from hyperlens.tasks import Sample, read_samples
from hyperlens.tracing import batches, differentiate_steps, reading, trace

SIGN = "<image>"
CONTEXTS = ("jump", "cached")


@cache
def loaded(family: str) -> Model:
    return load_model(build_image_family(family))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small llava with its processor, as a folder, and two images."""
    pytest.importorskip("PIL", reason="images need pillow: pip install 'hyperlens[images]'")
    return save_llava(tmp_path_factory.mktemp("llava"), "one.png", "two.png")


@pytest.fixture(scope="session")
def llava(folder: Path) -> Model:
    return load_model(folder)


def confidence(model: Model, samples: Any, lens: HyperLens | None = None, **options: Any) -> np.ndarray:
    return trace(model, samples, lens or HyperLens((0, 2)), **options).to_numpy("probability")


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("family", IMAGE_PROMPTS)
def test_the_last_read_out_is_the_models_own_at_every_word(family: str, context: str) -> None:
    model, inputs = loaded(family), image_inputs(family)
    found = trace(model, inputs, HyperLens((0, 1, LAYERS - 1), context), "all")
    with torch.no_grad():
        own = model.network(**inputs).logits[0].float().softmax(-1).amax(-1)
    places = found.data["position"].values
    np.testing.assert_allclose(found.data["output_probability"], own[places], atol=1e-6)
    assert found.manifest["largest_error_in_run"] <= 1e-5
    assert len(places) == 12, "the tokens that stand for the image are no words"


def looks(model: Model, depths: tuple[int, ...], inputs: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[set[bool], np.ndarray]:
    """Whether routed states were routed without the pixels, and what was read."""
    seen, prove = set(), reading.prove_image

    def watched(*args: Any) -> Any:
        given, error = prove(*args)
        seen.add(given.blind)
        return given, error

    with monkeypatch.context() as patch:
        patch.setattr(reading, "prove_image", watched)
        return seen, confidence(model, inputs, HyperLens(depths), positions="all")


@pytest.mark.parametrize("family", IMAGE_PROMPTS)
def test_states_are_routed_without_a_second_look_at_the_pixels(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, blind = looks(loaded(family), (0, 2), image_inputs(family), monkeypatch)
    assert seen == {True}
    monkeypatch.setattr(reading, "prove_image", lambda job, inputs, probes, number: (inputs, 0.0))
    np.testing.assert_allclose(blind, confidence(loaded(family), image_inputs(family), positions="all"), atol=1e-6)


def test_where_pixels_enter_later_layers_too_they_are_shown_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("qwen3_vl")
    assert looks(model, (2,), image_inputs("qwen3_vl"), monkeypatch)[0] == {True}
    assert looks(model, (LAYERS - 1,), image_inputs("qwen3_vl"), monkeypatch)[0] == {False}


def test_an_image_in_front_of_the_text_is_refused() -> None:
    model = loaded("git")
    inputs = {"input_ids": torch.full((1, 9), 20), "pixel_values": torch.zeros(1, 3, 32, 32)}
    with pytest.raises(ModelError, match="as where an image stands in front of the text"):
        trace(model, inputs, HyperLens((0,)))


@pytest.mark.parametrize("context", CONTEXTS)
def test_an_image_leaves_nothing_behind_for_the_texts_after_it(context: str) -> None:
    model = load_model(build_image_family("qwen3_5"))
    assert model.certificate.cached_form == "steps"
    text, lens = [20, 21, 22, 23, 24], HyperLens((0, 3), context)
    before = confidence(model, [text], lens)
    confidence(model, image_inputs("qwen3_5"), lens)
    np.testing.assert_allclose(confidence(model, [text], lens), before, atol=1e-6)
    assert load_model(model.network).certificate == model.certificate


@pytest.mark.parametrize("positions", ["last", "generated"])
def test_an_image_that_does_not_fit_its_text_is_refused_however_it_is_read(positions: str) -> None:
    inputs = image_inputs("llava") | {"input_ids": torch.full((1, 9), 20)}
    with pytest.raises(InputError, match="LlavaForConditionalGeneration does not take a text with its image"):
        trace(loaded("llava"), inputs, HyperLens((0,)), positions)
    with pytest.raises(InputError, match="LlavaForConditionalGeneration does not take a text with its image"):
        differentiate_steps(loaded("llava"), [inputs], (1,))


def test_an_image_that_is_not_finite_is_named_as_what_it_is() -> None:
    inputs = image_inputs("llava")
    inputs["pixel_values"] = inputs["pixel_values"] * torch.inf
    with pytest.raises(ModelError, match="gives NaN or infinite logits"):
        trace(loaded("llava"), inputs, HyperLens((0,)))


def test_maps_of_tokens_are_cut_and_go_on_as_generation_lets_them() -> None:
    maps = {"kinds": torch.tensor([[0, 1, 1]]), "sees": torch.tensor([[[1, 0], [1, 1], [0, 1]]]), "pixels": torch.ones(1, 3, 2)}
    text = Encoded(Sample(""), (5, 6, 7), (2,), beside=maps)
    longer, shorter = batches.cut_beside(text, 5), batches.cut_beside(text, 2)
    assert longer["kinds"].tolist() == [[0, 1, 1, 0, 0]] and shorter["kinds"].tolist() == [[0, 1]]
    assert longer["sees"].tolist() == [[[1, 0], [1, 1], [0, 1], [0, 1], [0, 1]]] and shorter["sees"].shape == (1, 2, 2)
    assert longer["pixels"].shape == shorter["pixels"].shape == (1, 3, 2), "pixels are no map, whatever their number"


def test_derivatives_see_the_image() -> None:
    model = loaded("qwen3_vl")
    found = differentiate_steps(model, [image_inputs("qwen3_vl")], (LAYERS - 1,))
    assert np.isfinite(found.values[0, 0, 0])
    other = image_inputs("qwen3_vl")
    other["pixel_values"] = other["pixel_values"].flip(0)
    assert found.values[0, 0, 0] != differentiate_steps(model, [other], (LAYERS - 1,)).values[0, 0, 0]


def test_another_image_gives_another_trajectory() -> None:
    model, inputs = loaded("gemma3"), image_inputs("gemma3")
    other = inputs | {"pixel_values": inputs["pixel_values"].flip(-1)}
    assert np.abs(confidence(model, inputs) - confidence(model, other)).max() > 1e-4


def test_a_lens_that_is_wrong_on_an_image_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(build_image_family("llava"))
    monkeypatch.setattr(reading, "check_jump", lambda *_: 0.25)
    with pytest.raises(CertificateError, match="on a text with an image the lens differs"):
        confidence(model, image_inputs("llava"))


def test_a_folder_with_a_processor_reads_prompts_with_images(llava: Model, folder: Path) -> None:
    sample = Sample(f"w20 {SIGN} w30 w31", images=(str(folder / "one.png"),))
    found = trace(llava, sample, HyperLens((0, 2)), "all")
    assert found.data["token_text"].values.tolist() == ["w20", "w30", "w31"]
    assert found.data["position"].values.tolist() == [0, 17, 18]
    made = llava.processor(text=[sample.prompt], images=[open_image(folder / "one.png")], return_tensors="pt")  # type: ignore[misc]
    np.testing.assert_allclose(confidence(llava, dict(made), positions="all"), found.to_numpy("probability"), atol=1e-7)


def open_image(file: Path) -> Any:
    from PIL import Image

    return Image.open(file).convert("RGB")


def test_texts_with_and_without_images_are_read_together_as_alone(llava: Model, folder: Path) -> None:
    first, second = (Sample(f"w20 {SIGN} w30", images=(str(folder / name),)) for name in ("one.png", "two.png"))
    samples = [first, Sample("w20 w30"), second, Sample("w21 w31")]
    together = confidence(llava, samples)
    alone = np.concatenate([confidence(llava, sample) for sample in samples])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert np.abs(together[0] - together[2]).max() > 1e-5


def test_targets_and_options_stand_behind_an_image_too(llava: Model, folder: Path) -> None:
    image = (str(folder / "one.png"),)
    answer = trace(llava, Sample(f"w20 {SIGN} w30", " w31 w32", images=image), HyperLens((0,)))
    assert answer.data["reference_id"].values.tolist() == [31, 32]
    chosen = trace(llava, Sample(f"w20 {SIGN} w30", None, ("w31", "w32"), images=image), HyperLens((0,)))
    assert chosen.data["reference_text"].values[0] in ("A", "B")


def test_an_answer_to_an_image_is_generated_as_the_model_generates(llava: Model, folder: Path) -> None:
    prompt = f"w20 {SIGN} w30"
    found = trace(llava, Sample(prompt, images=(str(folder / "one.png"),)), HyperLens((0, 2)), "generated")
    made: Any = llava.processor(text=[prompt], images=[open_image(folder / "one.png")], return_tensors="pt")  # type: ignore[misc]
    network: Any = llava.network
    own = network.generate(**made, do_sample=False, max_new_tokens=32, pad_token_id=0)[0, made["input_ids"].shape[1] :]
    assert found.data["reference_id"].values.tolist() == own.tolist()
    assert (found.data["reference_id"] == found.data["output_id"]).all()


def test_a_file_names_images_beside_itself(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"prompt": f"{SIGN} what is it?", "images": ["pictures/cat.png"]}))
    assert read_samples(file)[0].images == (str(tmp_path / "pictures/cat.png"),)
    file.write_text(json.dumps({"prompt": "what is it?", "images": "cat.png"}))
    with pytest.raises(InputError, match=r'has images that are no list of texts; expected a list such as \["cat.png"\]'):
        read_samples(file)


def refused(model: Model, sample: Any) -> str:
    with pytest.raises(InputError) as caught:
        trace(model, sample, HyperLens((0,)))
    assert is_one_sentence(str(caught.value)), str(caught.value)
    return str(caught.value)


def test_images_that_do_not_fit_are_refused_in_one_sentence(llava: Model, folder: Path, tmp_path: Path) -> None:
    image = str(folder / "one.png")
    (tmp_path / "no.png").write_text("no image")
    assert "put <image> where each image belongs" in refused(llava, Sample("w20", images=(image,)))
    assert "put <image> where each image belongs" in refused(llava, Sample(f"{SIGN} {SIGN} w20", images=(image,)))
    assert "cannot be read (No such file" in refused(llava, Sample(f"{SIGN} w20", images=("nowhere.png",)))
    assert "is not one that can be read" in refused(llava, Sample(f"{SIGN} w20", images=(str(tmp_path / "no.png"),)))
    assert "ends with an image" in refused(llava, Sample(f"w20 {SIGN}", images=(image,)))
    words = load_model(build_family("llama"), build_tokenizer())
    assert "came without a processor of images" in refused(words, Sample(f"{SIGN} w20", images=(image,)))


def test_what_a_processor_made_is_refused_where_it_is_not_one_text(llava: Model) -> None:
    inputs = {"input_ids": torch.full((2, 5), 20), "pixel_values": torch.zeros(2, 3, 32, 32)}
    assert "expected input_ids of shape [1, tokens]" in refused(llava, inputs)
    ids = torch.full((1, 5), 20)
    assert "has pixel_values as list; expected a tensor" in refused(llava, {"input_ids": ids, "pixel_values": [1.0]})
    padded = {"input_ids": ids, "attention_mask": torch.tensor([[0, 1, 1, 1, 1]])}
    assert "is padded; give each text by itself" in refused(llava, padded)
    pixels = torch.zeros(1, 3, 32, 32)
    assert "does not take a text with its image" in refused(llava, {"input_ids": ids, "pixel_values": pixels})
    assert "comes with labels, which" in refused(llava, {"input_ids": ids, "labels": ids})
    assert trace(llava, {"input_ids": ids, "token_type_ids": 0 * ids}, HyperLens((0,))).data.sizes["token"] == 1
    said = refused(load_model(build_family("llama")), {"input_ids": ids, "pixel_values": pixels})
    assert "comes with pixel_values, which LlamaForCausalLM does not take" in said
