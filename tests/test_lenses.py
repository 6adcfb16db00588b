"""One law for each lens, and for lenses side by side: what they are where they must agree, and whom they refuse."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import make_call
from families import LAYERS, WIDTH, build_family, build_tokenizer
from plain import layer_states, run_replaced
from sentences import is_one_sentence
from traced import CONTEXTS, TEXTS, loaded, own_logits, same

import hyperlens as hl
from hyperlens.anatomy import study_anatomy
from hyperlens.cli.app import name_folders
from hyperlens.errors import ArtefactError, ChangedModelError, HyperLensError, HyperLensWarning, InputError
from hyperlens.lenses import HyperLens, LogitLens, Origin, Translators, TunedLens, load_lens, save_lens
from hyperlens.models import Model, load_model
from hyperlens.report import gather_report
from hyperlens.report.tables import tabulate_models
from hyperlens.report.words import describe_findings
from hyperlens.runs.caveats import find_foreign
from hyperlens.runs.measure import make_lens
from hyperlens.tasks import Sample
from hyperlens.tracing import Limits, trace
from hyperlens.trajectory import measure_effort

ALL = tuple(range(1, LAYERS + 1))
SAMPLES = [Sample(f"w{20 + number} w30 w40", f" w{33 + number % 2}", level=1 + number % 2) for number in range(8)]


def random_lens(model: Model, seed: int = 0, scale: float = 0.3, bias: bool = True, **changes: Any) -> TunedLens:
    """A tuned lens of random translators that says it is the model's own."""
    draw = torch.Generator().manual_seed(seed)
    weight = scale * torch.randn(model.layers, WIDTH, WIDTH, generator=draw) / WIDTH**0.5
    offsets = scale * torch.randn(model.layers, WIDTH, generator=draw) if bias else None
    origin = Origin(model.name, model.fingerprint, model.splice.config.vocab_size)
    return TunedLens(translators=Translators(weight, offsets), origin=origin, **changes)


def zero_lens(model: Model, depths: tuple[int, ...], context: str = "jump") -> TunedLens:
    origin = Origin(model.name, model.fingerprint, focal_depth=depths[0])
    return TunedLens(depths, context, translators=Translators.identity(model.layers, WIDTH), origin=origin)


def compose(model: Model, ids: list[int], state: int, m: int, between: tuple[int, ...], lens: TunedLens | None) -> torch.Tensor:
    """D(h_l) `[token, vocabulary]` by PyTorch's own hooks: one layer after the other, each in a call of its own."""
    given = torch.tensor([ids])
    hidden = layer_states(model.network, given)[state]
    if lens is not None:
        hidden = lens.translators.translate(state, hidden)
    for layer in (one for one in between if state < one <= LAYERS - m):
        hidden = run_layer(model, given, layer, hidden)
    left = run_replaced(model.network, given, LAYERS - m, hidden)[0] if m else hidden[0]
    with torch.no_grad():
        return model.splice.head(left)


def run_layer(model: Model, given: torch.Tensor, layer: int, hidden: torch.Tensor) -> torch.Tensor:
    """What leaves layer number `layer` (from 1) where `hidden` enters it."""
    if layer == LAYERS:
        return run_replaced(model.network, given, layer - 1, hidden)
    layers, left = study_anatomy(model.network).layers, []
    enter = layers[layer - 1].register_forward_pre_hook(
        lambda _, args, kwargs: ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden}),
        with_kwargs=True,
    )
    leave = layers[layer - 1].register_forward_hook(lambda _, args, out: left.append(out[0] if isinstance(out, tuple) else out))
    try:
        with torch.no_grad():
            model.network(input_ids=given)
    finally:
        enter.remove()
        leave.remove()
    return left[0]


def quietly(lens: TunedLens, model: Model) -> TunedLens:
    """The lens fitted to the model; that it is read at another focal depth than it was trained for is known here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HyperLensWarning)
        fitted = lens.fit_to(model)
    assert isinstance(fitted, TunedLens)
    return fitted


# What they are where they must agree.


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_zero_translators_are_the_logit_lens_and_hyperlens_at_each_focal_depth(family: str, context: str) -> None:
    model = loaded(family)
    same(trace(model, TEXTS, zero_lens(model, (0,)), "all"), trace(model, TEXTS, LogitLens(), "all"))
    for depth in (0, 2):
        found = trace(model, TEXTS, zero_lens(model, (depth,), context), "all")
        same(found, trace(model, TEXTS, HyperLens((depth,), context), "all"))


@pytest.mark.parametrize("depths", [(0,), (2,), (0, 1, 3)])
def test_with_all_layers_in_between_every_state_reads_as_the_models_own_output(depths: tuple[int, ...]) -> None:
    model = loaded("llama")
    found = trace(model, TEXTS, HyperLens(depths, between=ALL), "all")
    p = torch.cat([own_logits(model, ids) for ids in TEXTS]).softmax(-1).amax(-1).numpy()
    np.testing.assert_allclose(found.to_numpy(), np.broadcast_to(p[:, None, None], found.to_numpy().shape), atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HyperLensWarning)
        np.testing.assert_allclose(measure_effort(found)["effort"].values, 0, atol=1e-4)


def test_layers_that_no_state_still_has_before_it_change_nothing() -> None:
    model = loaded("llama")
    plain = trace(model, TEXTS, HyperLens((2,)), "all")
    same(plain, trace(model, TEXTS, HyperLens((2,), between=()), "all"))
    same(plain, trace(model, TEXTS, HyperLens((2,), between=(LAYERS - 1, LAYERS)), "all"))


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma4_text"])
def test_layers_in_between_are_what_pytorchs_own_hooks_compose(family: str, tuned: bool) -> None:
    model, ids, between = loaded(family), TEXTS[1], (1, 3, 4)
    lens = quietly(random_lens(model, focal_depths=(0, 2)), model) if tuned else None
    read: Any = HyperLens((0, 2), between=between) if lens is None else replace(lens, between=between)
    found, top = trace(model, [ids], read, "all"), own_logits(model, ids).argmax(-1)
    for m in (0, 2):
        for state in range(LAYERS - m):
            p = compose(model, ids, state, m, between, lens).softmax(-1)[range(len(ids)), top]
            np.testing.assert_allclose(found.confidence(m)[:, state], p, atol=2e-5, err_msg=f"m = {m}, state {state}")


def test_a_translator_is_applied_to_its_own_state_and_to_no_other() -> None:
    model, lens = loaded("llama"), random_lens(loaded("llama"))
    weight = torch.zeros_like(lens.translators.weight)
    weight[2] = lens.translators.weight[2]
    one = replace(lens, translators=Translators(weight, None))
    changed = trace(model, TEXTS, one, "all").to_numpy()[:, 0] != trace(model, TEXTS, LogitLens(), "all").to_numpy()[:, 0]
    assert changed[:, 2].all() and not changed[:, [0, 1, 3, 4, 5, 6]].any()


@pytest.mark.parametrize("context", CONTEXTS)
def test_neither_batches_nor_stacks_change_what_a_lens_reads(context: str) -> None:
    model = loaded("llama")
    between = (2, 5) if context == "jump" else ()
    lens = replace(quietly(random_lens(model, focal_depths=(0, 1, 3)), model), context=context, between=between)
    whole = trace(model, TEXTS, lens, "all")
    for limits in (Limits(memory_mb=1), Limits(batch_tokens=18), Limits(memory_mb=1, batch_tokens=40, padding_side="left")):
        same(whole, trace(model, TEXTS, lens, "all", limits=limits))


def test_linear_maps_and_16_bit_are_read_and_keep_the_fingerprint_of_what_was_saved(tmp_path: Path) -> None:
    model = loaded("llama")
    lens = random_lens(model, bias=False)
    kept = load_lens(save_lens(lens, tmp_path / "lens"))
    assert kept.translators.bias is None and kept.fingerprint == lens.fingerprint
    same(trace(model, TEXTS, lens), trace(model, TEXTS, kept))
    half = load_model(build_family("llama", torch.bfloat16), build_tokenizer())
    found = trace(half, TEXTS, replace(kept, transfer=True), "all")
    assert np.isfinite(found.to_numpy()).all() and found.manifest["lens"]["fingerprint"] == lens.fingerprint
    with pytest.raises(InputError, match="whose weights or configuration are others"):
        trace(half, TEXTS, kept)


# Whom they refuse.


def wide(lens: TunedLens) -> TunedLens:
    return replace(lens, translators=Translators.identity(LAYERS, WIDTH + 8))


def short(lens: TunedLens) -> TunedLens:
    return replace(lens, translators=Translators.identity(LAYERS - 1, WIDTH))


def strange(lens: TunedLens) -> TunedLens:
    return replace(lens, origin=Origin("another", "0123456789abcdef"))


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run `hyperlens` with these words: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    return make_call(capsys, monkeypatch)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (wide, f"the lens was trained for width {WIDTH + 8}; .* has {WIDTH}; train one"),
        (short, f"the lens has translators for {LAYERS - 1} states; .* has {LAYERS} before its last"),
        (
            strange,
            r"the lens was trained for another \(0123456789ab…\); .* whose weights or configuration are others; .*--transfer",
        ),
    ],
)
def test_a_lens_of_another_model_is_refused_with_what_differs(
    plain: Model, saved: Path, call: Any, change: Any, said: str
) -> None:
    save_lens(change(random_lens(plain)), "lens")
    with pytest.raises(InputError, match=said) as refused:
        trace(plain, "w20 w30", load_lens("lens"))
    assert is_one_sentence(str(refused.value))
    for command in (
        ("trace", saved, "w20 w30", "--lens", "lens"),
        ("study", "--model", saved, "--task", "logic", "--lens", "lens"),
    ):
        status, out, err = call(*command)
        assert status == 2 and out == "" and err.count("\n") == 1 and re.search(said, err), err


def test_a_lens_of_the_model_in_another_precision_says_which(plain: Model, saved: Path) -> None:
    lens = random_lens(plain)
    lens = replace(lens, origin=replace(lens.origin, dtype="float32"))
    half = load_model(saved, dtype="bfloat16")
    said = r"in float32; .* was loaded in bfloat16, .*; load it with --dtype float32, or train one"
    with pytest.raises(InputError, match=said) as refused:
        trace(half, "w20 w30", lens)
    assert is_one_sentence(str(refused.value))


def test_a_manifest_that_lacks_a_field_is_refused_in_one_sentence(plain: Model, tmp_path: Path) -> None:
    manifest = json.loads((save_lens(random_lens(plain), tmp_path / "lens") / "manifest.json").read_text())
    for name in ("fingerprint", "origin"):
        rest = {field: value for field, value in manifest.items() if field != name}
        (tmp_path / "lens" / "manifest.json").write_text(json.dumps(rest))
        with pytest.raises(ArtefactError, match="put back a copy, or train it again") as refused:
            load_lens(tmp_path / "lens")
        assert is_one_sentence(str(refused.value))
    del manifest["origin"]["dtype"]  # as earlier versions wrote it
    (tmp_path / "lens" / "manifest.json").write_text(json.dumps(manifest))
    assert load_lens(tmp_path / "lens").origin.dtype is None


def test_layers_in_between_that_are_no_whole_numbers_are_refused() -> None:
    for between in ((1.5,), "23", (True,)):
        given: Any = between
        with pytest.raises(InputError, match="in between is not a whole number") as refused:
            _bare(between=given).__post_init__()
        assert is_one_sentence(str(refused.value))


def _bare(**fields: Any) -> HyperLens:
    """A HyperLens as it is where types are not checked, before it checks itself."""
    lens = object.__new__(HyperLens)
    for name, value in {"focal_depths": (0,), "context": "jump", "between": (), **fields}.items():
        object.__setattr__(lens, name, value)
    return lens


def test_a_lens_is_refused_after_the_vocabulary_was_resized() -> None:
    network = build_family("llama")
    lens = random_lens(load_model(network, build_tokenizer()))
    network.resize_token_embeddings(network.config.vocab_size + 3, mean_resizing=False)
    with pytest.raises(InputError, match=r"trained for a vocabulary of 97 tokens; .* now has 100; .*transfer") as refused:
        trace(load_model(network, build_tokenizer()), TEXTS, lens)
    assert is_one_sentence(str(refused.value))


def test_a_tuned_lens_of_matrices_is_refused() -> None:
    model = loaded("gemma3n_text")
    with pytest.raises(InputError, match=r"each state of .* is a matrix of .* values; a tuned lens reads vectors"):
        trace(model, TEXTS, random_lens(model))


@pytest.mark.parametrize(
    ("words_given", "said"),
    [
        (("--lens", "logit", "--focal-depth", "2"), "is the logit lens, which passes no layer"),
        (("--lens", "none"), 'there is no lens "none"; choose hyper, logit, or the folder of a tuned lens'),
        (("--lens", "."), "expected a folder that it wrote"),
        (("--between", "3,x"), 'the layers in between are "3,x"; give their numbers'),
        (("--between", "3,70"), "this model has the layers 1 to 6"),
        (("--between", "0"), r"give their numbers from 1 up"),
        (("--between", "3", "--context", "cached"), "give it the context jump"),
        (("--transfer",), "has transfer, which only a tuned lens has"),
    ],
)
def test_lens_options_that_cannot_be_meant_are_refused(saved: Path, call: Any, words_given: tuple[str, ...], said: str) -> None:
    status, out, err = call("trace", saved, "w20 w30", *words_given)
    assert status == 2 and out == "" and err.count("\n") == 1 and said in err


# Side by side.


def test_a_lens_is_meant_by_its_name_or_its_folder_as_on_the_command_line(plain: Model, tmp_path: Path) -> None:
    folder = save_lens(random_lens(plain), tmp_path / "lens")
    for name, lens in (
        ("logit", LogitLens()),
        ("hyper", HyperLens()),
        (str(folder), load_lens(folder)),
        (folder, load_lens(folder)),
    ):
        same(trace(plain, "w20 w30", name), trace(plain, "w20 w30", lens))
    with pytest.raises(InputError, match='there is no lens "la"; choose hyper, logit, or the folder of a tuned lens'):
        trace(plain, "w20 w30", "la")


def test_folders_are_called_by_what_sets_them_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("a/lens")
    assert name_folders(["a/lens", "b/lens/", "other", "./other", "link"]) == {
        "a/lens": "a/lens",
        "b/lens": "b/lens/",
        "other": "other",
    }
    assert name_folders([f"a/x/{name}" for name in "yz"] + ["b/x/y"]) == {"a/x/y": "a/x/y", "z": "a/x/z", "b/x/y": "b/x/y"}


def test_a_study_tells_lenses_of_one_name_apart_and_is_shown_again_once_they_are_gone(
    saved: Path, plain: Model, call: Any, tmp_path: Path
) -> None:
    for number, name in enumerate("ab"):
        save_lens(random_lens(plain, number), tmp_path / name / "lens")
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"prompt": f"w2{n} w30", "target": " w33"}) + "\n" for n in range(3)))
    command = ["study", "--model", saved, "--file", "q.jsonl", "--no-report", "--json"]
    command += ["--lens", "a/lens", "--lens", "b/lens", "--lens", "./a/../b/lens"]
    status, shown, _ = call(*command)
    assert status == 0
    assert list(json.loads(shown)["models"].popitem()[1]["lenses"]) == ["tuned a/lens", "tuned b/lens"]
    shutil.rmtree(tmp_path / "a")
    assert call(*command)[:2] == (0, shown)
    status, _, err = call(*command, "--out", "elsewhere")
    assert status == 2 and 'there is no lens "a/lens"' in err
    save_lens(random_lens(plain, 5), tmp_path / "a" / "lens")
    assert "is not the one with which the run" in call(*command)[2]


def test_the_command_line_reads_with_each_lens_and_says_with_which(saved: Path, plain: Model, call: Any) -> None:
    save_lens(random_lens(plain), "lens")
    status, out, _ = call("trace", saved, "w20 w30", "--lens", "lens", "--json")
    lens = json.loads(out)["manifest"]["lens"]
    assert status == 0 and (lens["name"], lens["focal_depths"]) == ("tuned", [0]) and lens["transfer"] is False
    status, out, _ = call("trace", saved, "w20 w30", "--lens", "logit", "--focal-depth", "0")
    assert status == 0 and "Lens: logit lens." in out
    save_lens(strange(random_lens(plain)), "other")
    options = ("--lens", "other", "--transfer", "--between", "2,4", "--focal-depth", "0,1")
    status, out, _ = call("trace", saved, "w20 w30", *options)
    said = " ".join(out.split())
    assert status == 0 and "Lens: tuned lens of another, context jump, by way of layers 2, 4." in said
    assert "is read with the lens of another model" in said and "trained at m = 0; at m = 1" in said
    status, out, _ = call("trace", saved, "w20 w30", *options, "--json")
    assert (
        json.loads(out)["manifest"]["lens"]["transfer"] and json.loads(out)["manifest"]["lens"]["origin"]["model"] == "another"
    )


@pytest.fixture(scope="module")
def three(plain: Model, tmp_path_factory: pytest.TempPathFactory) -> hl.Run:
    """A run of three lenses and one that was trained for another model, on the same samples."""
    folder = tmp_path_factory.mktemp("three")
    save_lens(random_lens(plain), folder / "lenses" / "mine")
    save_lens(strange(random_lens(plain, 1)), folder / "other")
    lenses = (
        hl.LensSpec(focal_depths=(0, 2)),
        hl.LensSpec(kind="logit"),
        hl.LensSpec(kind="tuned", path="lenses/{model}"),
        hl.LensSpec("moved", (0, 2), kind="tuned", path="other", transfer=True, between=(3,)),
        hl.LensSpec("lost", kind="tuned", path="other"),
    )
    contrasts = (hl.ContrastSpec("q", "q", "levels", (1,), (2,)),)
    study = hl.Study("three", (hl.ModelSpec(name="mine"),), (hl.TaskSpec("q"),), lenses, contrasts, root=str(folder))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", HyperLensWarning)
        run = hl.run_study(study, folder / "run", {"mine": plain}, {"q": SAMPLES})
    told = [str(one.message) for one in said]
    assert sum("lost on mine was left out: the lens was trained for another" in one for one in told) == 1
    assert sum("trained at focal depth 0" in one for one in told) == 1
    return run


def test_a_study_reads_the_same_samples_through_each_lens(three: hl.Run, plain: Model) -> None:
    kept = three.models["mine"]["lenses"]
    assert list(kept) == ["jump", "logit", "tuned", "moved"]
    assert kept["jump"] == {"focal_depths": [0, 2], "auto": None, "context": "jump"}
    assert kept["logit"] == {"focal_depths": [0], "auto": None, "context": "jump", "name": "logit"}
    assert kept["tuned"]["fingerprint"] == random_lens(plain).fingerprint and kept["tuned"]["focal_depths"] == [0]
    assert kept["moved"]["transfer"] and kept["moved"]["between"] == [3] and kept["moved"]["origin"]["model"] == "another"
    np.testing.assert_array_equal(three.trajectory(lens="jump").confidence(0), three.trajectory(lens="logit").confidence(0))
    mine = trace(plain, SAMPLES, random_lens(plain), "answer", "output")
    np.testing.assert_allclose(three.trajectory(lens="tuned").to_numpy(), mine.to_numpy(), atol=1e-5)
    rows = three.samples()
    assert len(rows) == 4 * len(SAMPLES) and not rows.duplicated(["lens", "sample"]).any()


def test_a_lens_that_was_left_out_of_a_model_is_asked_for_with_the_reason(three: hl.Run) -> None:
    asked = (
        lambda: three.trajectory(lens="lost"),
        lambda: three.scan(lens="lost"),
        lambda: list(three.parts("q", lens="lost")),
    )
    for ask in asked:
        with pytest.raises(InputError, match=r"lost on mine was left out: the lens was trained for another"):
            ask()


def test_a_lens_that_knows_its_model_by_a_hash_alone_is_not_called_that_of_another() -> None:
    origin = {"model": "theirs", "fingerprint": None, "unembedding": "0" * 64, "focal_depth": 0}
    lens = {"focal_depths": [0], "origin": origin, "transfer": False}
    for changes, tells in (
        ({}, "only a hash of the unembedding tells"),
        ({"transfer": True}, "transfer was asked for, so that nothing tells"),
        ({"origin": origin | {"unembedding": None}}, "nothing tells"),
    ):
        found = list(find_foreign("mine", {"fingerprint": "1" * 64}, "tuned", lens | changes))
        assert found == [f"The translators of tuned name theirs as their model; {tells} that they fit mine."]


def test_a_report_names_each_lens_and_pools_none(three: hl.Run) -> None:
    data = gather_report(three)
    assert [(chapter.lens, chapter.logit) for chapter in data.chapters] == [
        ("jump", True),
        ("logit", True),
        ("tuned", False),
        ("moved", False),
    ]
    caveats = " ".join(data.caveats)
    assert "mine is read with the lens of another model: the translators of moved were trained for another" in caveats
    assert "states of mine pass layer 3" in caveats and "at m = 2 mine reads what they give" in caveats
    assert "Each lens has its own Ω" in caveats and "lost on mine was left out" in caveats
    cell = tabulate_models(data).rows[0][3]
    assert "tuned (tuned lens of" in cell and "moved (tuned lens of another, context jump, by way of layer 3): m = 0, 2" in cell
    found = describe_findings(data)
    assert all(sum(f"lens {lens}" in one for lens in ("jump", "logit", "tuned", "moved")) <= 1 for one in found), found
    assert any(one.startswith("Through the lens moved, at focal depth m = 2") for one in found), found
    assert {(row["lens"], row["compared"]) for row in data.results["contrasts"]} == {
        ("jump", 2),
        ("logit", 1),
        ("tuned", 1),
        ("moved", 2),
    }


def test_a_run_without_new_fields_is_described_as_before_and_goes_on(three: hl.Run, plain: Model, tmp_path: Path) -> None:
    old = {"name": "jump", "focal_depths": [0], "context": "jump", "readings": ["probability"]}
    study = hl.Study("old", (hl.ModelSpec(name="mine"),), (hl.TaskSpec("q"),), (hl.LensSpec(focal_depths=(0,)),))
    assert study.describe()["lenses"] == [old] and hl.runs.spec.parse_study(study.describe()) == study
    assert three.manifest["study"]["lenses"][2]["kind"] == "tuned" and hl.runs.spec.parse_study(three.manifest["study"])
    run = hl.run_study(study, tmp_path / "run", {"mine": plain}, {"q": SAMPLES})
    changed = replace(study, lenses=(hl.LensSpec(focal_depths=(0,), between=(2,)),))
    with pytest.raises(InputError, match=r"lenses\[jump\].between is null there and \[2\] here"):
        hl.run_study(changed, run.folder, {"mine": plain}, {"q": SAMPLES})


def test_translators_that_changed_are_not_mixed_with_what_was_measured(plain: Model, tmp_path: Path) -> None:
    save_lens(random_lens(plain), tmp_path / "lens")
    lens = hl.LensSpec(kind="tuned", path=str(tmp_path / "lens"))
    study = hl.Study("changing", (hl.ModelSpec(name="mine"),), (hl.TaskSpec("q"),), (lens,))
    run = hl.run_study(study, tmp_path / "run", {"mine": plain}, {"q": SAMPLES})
    before = run.results
    save_lens(random_lens(plain, 5), tmp_path / "lens")
    with pytest.raises(ChangedModelError, match=r'lens "tuned" is not the one with which the run in .* began .*--restart'):
        hl.run_study(study, tmp_path / "run", {"mine": plain}, {"q": SAMPLES})
    assert hl.open_run(run.folder).results == before


def test_a_lens_that_fits_later_is_measured_later(plain: Model, tmp_path: Path) -> None:
    lenses = (hl.LensSpec(kind="tuned", path=str(tmp_path / "late")), hl.LensSpec(focal_depths=(0,)))
    study = hl.Study("late", (hl.ModelSpec(name="mine"),), (hl.TaskSpec("q"),), lenses)
    with pytest.warns(HyperLensWarning, match="tuned on mine was left out: .*late does not exist"):
        run = hl.run_study(study, tmp_path / "run", {"mine": plain}, {"q": SAMPLES})
    assert list(run.models["mine"]["lenses"]) == ["jump"] and len(run.samples()) == len(SAMPLES)
    save_lens(random_lens(plain), tmp_path / "late")
    run = hl.run_study(study, tmp_path / "run", {"mine": plain}, {"q": SAMPLES})
    assert list(run.models["mine"]["lenses"]) == ["tuned", "jump"] and run.results["refused"] == {}
    assert len(run.samples()) == 2 * len(SAMPLES)
    alone = replace(study, lenses=lenses[:1])
    (tmp_path / "late" / "COMPLETE").unlink()
    with pytest.raises(HyperLensError, match="was not finished"):
        hl.run_study(alone, tmp_path / "alone", {"mine": plain}, {"q": SAMPLES})


def test_a_table_makes_the_lens_that_it_names(plain: Model, tmp_path: Path) -> None:
    save_lens(random_lens(plain), tmp_path / "lens")
    assert isinstance(make_lens(hl.LensSpec(kind="logit")), LogitLens)
    assert make_lens(hl.LensSpec(focal_depths=(2,), between=(1, 3))) == HyperLens((2,), between=(1, 3))
    tuned = make_lens(hl.LensSpec(kind="tuned", path="unused", focal_depths="auto", transfer=True), str(tmp_path / "lens"))
    assert isinstance(tuned, TunedLens) and tuned.focal_depths == "auto" and tuned.transfer
