"""Lenses of the original package: read as it wrote them, refused where they hold anything else, written as it reads them.

The fixture was written by tuned-lens 0.2.0 itself (`benchmarks/tuned_lens.py --fixture`).
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import build_family
from safetensors.torch import load_file
from sentences import is_one_sentence
from transformers import AutoModelForCausalLM

import hyperlens as hl
from hyperlens.errors import ArtefactError, HyperLensWarning, InputError
from hyperlens.lenses import Origin, Translators
from hyperlens.lenses.lens import route_batch
from hyperlens.lenses.unembedding import hash_unembedding
from hyperlens.splice import Inputs, Probes, at_rest

FIXTURE = Path(__file__).parent / "fixtures" / "tuned_lens"


@pytest.fixture(scope="module")
def model() -> hl.Model:
    return hl.load_model(AutoModelForCausalLM.from_pretrained(FIXTURE / "model"))


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(FIXTURE / "lens", tmp_path / "lens"))


def change_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value != "leave out"}))


def change_tensors(folder: Path, change) -> None:
    tensors = torch.load(folder / "params.pt", weights_only=True)
    torch.save(change(tensors), folder / "params.pt")


def read_logits(model: hl.Model, lens: hl.TunedLens, ids: torch.Tensor) -> torch.Tensor:
    probes = Probes(*torch.ones_like(ids).nonzero().unbind(1))
    with model.splice.lock, at_rest(model.network):
        states = next(route_batch(lens.fit_to(model), model.splice, Inputs(ids), probes, (0,), 512).by_depth)[1]
        return torch.stack([model.splice.head(state) for state in states]).unflatten(1, tuple(ids.shape))


def test_what_the_original_saved_reads_as_the_original_reads_it(model):
    expected = load_file(FIXTURE / "expected.safetensors")
    found = read_logits(model, hl.load_lens(FIXTURE / "lens"), expected["ids"])
    assert (found - expected["logits"]).abs().max() <= 1e-5 * expected["logits"].abs().max()
    plain = hl.TunedLens(translators=Translators.identity(3, 16), origin=Origin("", model.fingerprint))
    assert (read_logits(model, plain, expected["ids"]) - expected["logits"]).abs().max() > 0.1


def test_what_we_export_is_what_the_original_had_saved(model, tmp_path):
    lens = hl.load_lens(FIXTURE / "lens")
    out = hl.export_lens(lens, tmp_path / "out", model)
    theirs, ours = (torch.load(place / "params.pt", weights_only=True) for place in (FIXTURE / "lens", out))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert json.loads((out / "config.json").read_text()) == json.loads((FIXTURE / "lens" / "config.json").read_text())
    again = hl.load_lens(hl.export_lens(lens, out, model))  # in the place of the one before
    assert again.fingerprint == lens.fingerprint and again.origin == lens.origin


def test_a_lens_without_biases_is_exported_with_zeros(model, tmp_path):
    lens = hl.TunedLens(translators=Translators(torch.ones(3, 16, 16), None), origin=Origin("x", model.fingerprint))
    translators = hl.load_lens(hl.export_lens(lens, tmp_path / "out", model)).translators
    assert translators.bias is not None and not translators.bias.any() and translators.weight.all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_and_lenses_without_bias_are_read_in_float32(folder, dtype):
    change_config(folder, bias=False)
    change_tensors(folder, lambda tensors: {name: part.to(dtype) for name, part in tensors.items() if "weight" in name})
    translators = hl.load_lens(folder).translators
    assert translators.bias is None and translators.weight.dtype == torch.float32


class _Call:
    """What a pickle may hold: a call that happens when it is read."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


@pytest.mark.parametrize("write", [torch.save, lambda value, place: place.write_bytes(pickle.dumps(value))])
def test_code_in_a_pickle_is_refused_and_never_runs(folder, tmp_path, write):
    trap = tmp_path / "trap"
    write({"0.weight": _Call(trap)}, folder / "params.pt")
    with pytest.raises(ArtefactError, match="may be code and was not run") as caught:
        hl.load_lens(folder)
    assert is_one_sentence(str(caught.value)) and not trap.exists()
    with suppress(RuntimeError):
        torch.load(folder / "params.pt", weights_only=False)
    assert trap.exists()  # it was a trap


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"d_model": "leave out"}, "says null as d_model"),
        ({"num_hidden_layers": "three"}, "which is no int"),
        ({"d_model": 8}, r"has \[16\] as 0.bias where"),
        ({"num_hidden_layers": 4}, r"has nothing as 3.bias where"),
        ({"num_hidden_layers": 2}, r"asks for nothing"),
        ({"num_hidden_layers": 0}, "says 0 as num_hidden_layers, which is no number from 1 up"),
        ({"num_hidden_layers": -1}, "says -1 as num_hidden_layers"),
        ({"bias": False}, "asks for nothing"),
        ({"bias": "no"}, "a bias or unembed_hash that is none"),
        ({"lens_type": "mlp"}, "only linear_tuned_lens can be read"),
    ],
)
def test_settings_that_do_not_describe_the_tensors_are_refused(folder, changes, says):
    change_config(folder, **changes)
    with pytest.raises(ArtefactError, match=says) as caught:
        hl.load_lens(folder)
    assert is_one_sentence(str(caught.value))


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04 half a file"])
def test_a_damaged_file_is_refused(folder, content):
    (folder / "params.pt").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"is damaged|may be code") as caught:
        hl.load_lens(folder)
    assert is_one_sentence(str(caught.value))
    (folder / "config.json").write_text("[")
    with pytest.raises(ArtefactError, match="cannot be read"):
        hl.load_lens(folder)


def test_tensors_that_are_no_translators_are_refused(folder):
    for change, says in (
        (lambda tensors: list(tensors.values()), "something else than named tensors"),
        (lambda tensors: tensors | {"0.bias": torch.zeros(16, dtype=torch.int64)}, "whole numbers as 0.bias"),
        (lambda tensors: tensors | {"0.bias": torch.full((16,), torch.nan)}, "not finite"),
        (lambda tensors: tensors | {"0.weight": tensors["0.weight"].to_sparse()}, "a sparse 0.weight"),
    ):
        shutil.copy(FIXTURE / "lens" / "params.pt", folder / "params.pt")
        change_tensors(folder, change)
        with pytest.raises(ArtefactError, match=says):
            hl.load_lens(folder)


def test_unknown_settings_are_named_and_left_out(folder):
    change_config(folder, dropout=0.1)
    with pytest.warns(HyperLensWarning, match="dropout"):
        hl.load_lens(folder)


def test_a_lens_goes_only_with_the_unembedding_it_was_trained_for(model, folder):
    lens = hl.load_lens(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lens.fit_to(model)
    change_config(folder, unembed_hash="0" * 64)
    with pytest.raises(InputError, match=r"unembedding matrix 000000000000…; .* has ac788a7d4fe3…") as caught:
        hl.load_lens(folder).fit_to(model)
    assert is_one_sentence(str(caught.value))
    hl.load_lens(folder, transfer=True).fit_to(model)
    change_config(folder, unembed_hash="leave out")
    with pytest.warns(HyperLensWarning, match="nothing in the lens tells") as told:
        hl.load_lens(folder).fit_to(model).fit_to(model)
    assert len(told) == 1


@pytest.mark.parametrize("shape", [(40, 16), (1000, 1), (300, 4), (300, 7), (120, 80)])
def test_the_hash_is_that_of_the_whole_printed_matrix(model, shape):
    weight = torch.randn(shape) * 10
    network = torch.nn.Module()
    network.get_output_embeddings = lambda: torch.nn.Linear(1, 1)  # type: ignore[attr-defined]
    head = torch.nn.Linear(shape[1], shape[0], bias=False)
    head.weight.data = weight
    before = model.network.get_output_embeddings
    try:
        model.network.get_output_embeddings = lambda: head
        found = hash_unembedding(model)
    finally:
        model.network.get_output_embeddings = before
    assert found == hashlib.sha256(np.array_str(weight.numpy(), precision=1).encode()).hexdigest()


def test_a_lens_of_another_model_is_not_exported_as_this_ones(model, tmp_path):
    network = AutoModelForCausalLM.from_pretrained(FIXTURE / "model")
    with torch.no_grad():
        network.get_output_embeddings().weight.mul_(-1)
    other, own = hl.load_model(network), hl.load_lens(FIXTURE / "lens", transfer=True)
    for lens in (own, replace(own, origin=Origin("base", model.fingerprint))):
        lens.fit_to(other)  # it may read that model
        with pytest.raises(InputError, match="the lens was trained for") as caught:
            hl.export_lens(lens, tmp_path / "out", other)
        assert is_one_sentence(str(caught.value)) and not (tmp_path / "out").exists()
    assert hl.load_lens(hl.export_lens(own, tmp_path / "own", model)).fingerprint == own.fingerprint


def test_the_gradients_that_are_compared_are_not_clipped():
    from original_lens import draw_ids, draw_translators, prepare_ours
    from tuned_lens import find_gradients

    network = AutoModelForCausalLM.from_pretrained(FIXTURE / "model")
    with torch.no_grad():
        network.get_output_embeddings().weight.mul_(10)
    model, ids, drawn = hl.load_model(network), draw_ids(network, 2, 9), draw_translators(3, 16)
    weight, bias = find_gradients(model, drawn, ids)
    assert torch.cat([weight.flatten(), bias.flatten()]).norm() > 2
    prepare_ours(model, drawn, ids, "none")()
    clipped = torch.cat([drawn.weight.grad.flatten(), drawn.bias.grad.flatten()])
    assert clipped.norm() == pytest.approx(1, rel=1e-4)  # as a step does


def test_what_misses_its_target_is_named_and_the_throughput_never_is():
    from tuned_lens import RESULTS, find_missed

    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert find_missed(found) == [] == find_missed({})
    slow = {"one": {"float32": {"original": {"ours_is_faster_by": 0.1}}}}
    assert find_missed(found | {"throughput": slow}) == []
    for part, name, value in (("equality", "same_translators", 1e-3), ("equality", "same_hash", False)):
        row = found[part]["llama"] | {name: value}
        assert len(find_missed(found | {part: found[part] | {"llama": row}})) == 1
    for worst in (1e-3, float("nan")):
        assert "gradients of llama" in find_missed({"gradients": {"llama": {"ours_to_theirs": worst}}})[0]
    assert "257 MB where 256 are allowed" in find_missed({"memory": {"beside_these_mb": 257, "budget_mb": 256}})[0]


def test_the_floor_is_the_forward_pass_and_the_products_and_bounds_every_ratio():
    from tuned_lens_page import put_throughput
    from tuned_lens_speed import report_rounds

    rounds = {"forward": [1.0, 3.0, 2.0], "original": [8.0, 12.0, 9.0], "ours": [4.0, 4.0, 6.0]}
    report = report_rounds(rounds, {"seconds": 1.0}, 100)
    assert (report["forward_seconds"], report["floor_seconds"]) == (2.0, 3.0)
    assert report["ours"]["times_the_floor"] == pytest.approx(4 / 3, rel=1e-3)
    assert report["original"] == {
        "seconds": 9.0,
        "tokens_per_second": 11.11,
        "times_the_floor": 3.0,
        "ours_is_faster_by": 2.0,
        "spread": [1.5, 3.0],
    }
    row = put_throughput({"a": {"bfloat16": report}}).splitlines()[2]
    assert row == "| a | bfloat16 | 11 | – | 25 | 2.00 [1.50, 3.00] | – | 2 | 3 | 3.00 | – | 1.33 |"


def test_what_the_original_cannot_read_is_not_exported(model, tmp_path):
    lens = hl.load_lens(FIXTURE / "lens")
    with pytest.raises(InputError, match="focal depth 0"):
        hl.export_lens(replace(lens, origin=replace(lens.origin, focal_depth=2), focal_depths=(2,)), tmp_path / "out", model)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtefactError, match="something else"):
        hl.export_lens(lens, tmp_path, model)
    with pytest.raises(ArtefactError, match="something else"):
        hl.export_lens(lens, tmp_path / "thesis.txt", model)
    other = hl.load_model(build_family("qwen3"))
    own = hl.TunedLens(translators=Translators.identity(other.layers, 32), origin=Origin("x", other.fingerprint))
    with pytest.warns(HyperLensWarning, match="cannot read models of the family qwen3"):
        hl.export_lens(own, tmp_path / "own", other)
