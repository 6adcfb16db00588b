"""What a plan says before a study runs is what the run then does: parameters, tokens, batches, arithmetic, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build_family
from loading import save
from sentences import is_one_sentence
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import AutoModelForCausalLM

from hyperlens.errors import InputError, ModelError
from hyperlens.lenses import HyperLens, Origin, Translators, TunedLens, save_lens
from hyperlens.models import Model, load_model
from hyperlens.runs.measure import _encode
from hyperlens.runs.plan import Plan, plan_study
from hyperlens.runs.plan.cells import _make_job, choose_depths, list_candidates
from hyperlens.runs.plan.frames import frame_model
from hyperlens.runs.plan.timing import SLICE_PARAMETERS
from hyperlens.runs.spec import LensSpec, ModelSpec, Study
from hyperlens.splice import at_rest
from hyperlens.tasks import Drawn, Sample, TaskSpec
from hyperlens.tracing import Limits, prefixes, resolve_depth
from hyperlens.tracing.reading import read_texts

WORDS = [f"w{number}" for number in range(11, 90)]
LLAMA_70B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "dtype": "bfloat16",
}


def draw(count: int = 12, read: str = "target", words: int = 20, max_new_tokens: int = 0, alike: int = 0) -> Drawn:
    samples = []
    for number in range(count):
        text = " ".join(["w50"] * alike + [WORDS[(number + place) % len(WORDS)] for place in range(words + number % 5)])
        samples.append(Sample(text, f" {WORDS[number % 7]} w12", ("one", "two") if read == "options" else ()))
    return Drawn(tuple(samples), (), max_new_tokens, (), read)


def study_of(source: Any, *lenses: LensSpec, **options: Any) -> Study:
    model = source if isinstance(source, ModelSpec) else ModelSpec(str(source), name="model")
    tasks = options.pop("tasks", (TaskSpec("own", prompt="{text}"),))
    return Study(models=(model,), tasks=tasks, lenses=lenses or (LensSpec(focal_depths=(0, 2)),), **options)


def plan(study: Study, drawn: Drawn | None = None, **options: Any) -> Plan:
    return plan_study(study, lambda number: drawn or draw(), **{"calibrate": False, **options})


def config_folder(folder: Path, values: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "falcon", "mamba", "bloom"])
def test_parameters_and_layers_are_those_of_the_loaded_model(family: str, tmp_path: Path) -> None:
    network = build_family(family)
    frame = frame_model(study_of(save(network, tmp_path)), ModelSpec(str(tmp_path)))
    assert frame.parameters == sum(part.numel() for part in network.parameters())
    assert frame.layers == network.config.num_hidden_layers


def test_of_the_experts_only_those_that_a_token_passes_are_active(tmp_path: Path) -> None:
    network = build_family("mixtral")
    frame = frame_model(study_of(save(network, tmp_path)), ModelSpec(str(tmp_path)))
    experts = sum(part.numel() for name, part in network.named_parameters() if ".experts." in name)
    config = network.config
    left_out = experts * (1 - config.num_experts_per_tok / config.num_local_experts)
    assert frame.active_parameters == frame.parameters - left_out


def test_parameters_of_the_models_at_hand_are_exact(stories: Path, bitllama: Path) -> None:
    counts = {name: frame_model(study_of(name), ModelSpec(str(name))).parameters for name in ("reference", stories, bitllama)}
    assert list(counts.values()) == [2639488, 260032, 3285248]


@pytest.fixture(scope="module")
def counted(saved: Path, plain: Model) -> Model:
    """The small Llama as it is loaded."""
    network = AutoModelForCausalLM.from_pretrained(saved)
    return load_model(network, plain.tokenizer)


def count_fused(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Of attention in one kernel for processors, which torch does not count by itself."""
    return sdpa_flop_count(query, key, value)


FUSED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: count_fused}
LENSES: list[dict[str, Any]] = [
    {"focal_depths": (0,)},
    {"focal_depths": (1,)},
    {"focal_depths": (0, 2)},
    {"focal_depths": (0, 1, 2), "context": "cached"},
    {"focal_depths": (0, 2), "between": (1, 3, 6)},
    {"kind": "tuned", "path": "here", "focal_depths": (0,)},
    {"kind": "tuned", "path": "here", "focal_depths": (0, 2), "between": (2,)},
    {"kind": "tuned", "path": "here", "focal_depths": (0, 2), "context": "cached"},
]


def untrained(model: Model, lens: LensSpec) -> TunedLens:
    """A tuned lens of translators that change nothing."""
    translators = Translators.identity(model.layers, model.splice.anatomy.width[0])
    origin = Origin(model.name, model.fingerprint)
    return TunedLens(lens.focal_depths, lens.context, lens.between, translators=translators, origin=origin)


@pytest.mark.parametrize("fields", LENSES, ids=str)
@pytest.mark.parametrize(("memory_mb", "alike"), [(256, 0), (1, 0), (256, 30)])
def test_arithmetic_is_what_torch_counts_of_a_real_reading(
    counted: Model, saved: Path, fields: dict[str, Any], memory_mb: int, alike: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefixes, "ENOUGH", 100)
    lens = LensSpec(**fields)
    study = study_of(saved, lens, batch_tokens=200, memory_mb=memory_mb)
    frame = frame_model(study, study.models[0])
    drawn = draw(alike=alike)
    encoded = [one for _, one in _encode(counted, {"read": "target", "max_new_tokens": 0}, drawn.samples, range(12), "skip")[0]]
    job = replace(_make_job(study, frame, lens, fields["focal_depths"]), model=counted)
    if lens.kind == "tuned":
        job = replace(job, lens=untrained(counted, lens))
    with counted.splice.lock, at_rest(counted.network), FlopCounterMode(display=False, custom_mapping=FUSED) as counter:
        read_texts(job, encoded)
    planned = plan(study, drawn).cells[0].work
    assert planned.flops == pytest.approx(counter.get_total_flops(), rel=0.001), planned


@pytest.mark.parametrize("read", ["target", "options"])
def test_tokens_and_answers_are_those_that_encoding_gives(plain: Model, saved: Path, read: str) -> None:
    drawn = draw(read=read)
    encoded, _ = _encode(plain, {"read": read, "max_new_tokens": 0}, drawn.samples, range(12), "skip")
    cell = plan(study_of(saved), drawn).cells[0]
    assert cell.tokens == sum(one.positions[-1] + 1 for _, one in encoded)
    assert (cell.answer_tokens, cell.samples) == (sum(len(one.positions) for _, one in encoded), 12)


def test_a_tuned_lens_is_planned_at_the_focal_depth_that_it_was_trained_for_with_its_own_memory(
    plain: Model, saved: Path, tmp_path: Path
) -> None:
    trained = untrained(plain, LensSpec(focal_depths=(2,), kind="tuned", path="x"))
    save_lens(replace(trained, origin=replace(trained.origin, focal_depth=2)), tmp_path / "model")
    tuned = LensSpec(kind="tuned", path=str(tmp_path / "{model}"))
    found = plan(study_of(saved, tuned))
    assert found.cells[0].focal_depths == (2,) and found.models[0].note == ""
    plainly = plan(study_of(saved, LensSpec(focal_depths=(2,)))).models[0]
    width = plain.splice.anatomy.width[0]
    assert found.models[0].memory_bytes - plainly.memory_bytes == 4 * plain.layers * width * (width + 1)
    absent = plan(study_of(saved, replace(tuned, path=str(tmp_path / "absent"))))
    assert absent.cells[0].focal_depths == (0,) and "absent is not here: its lens is counted" in absent.models[0].note


def test_of_many_samples_a_drawn_part_stands_for_all(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = plan(study_of(saved), draw(400)).cells[0]
    monkeypatch.setattr("hyperlens.runs.plan.cells.COUNTED_SAMPLES", 100)
    part = plan(study_of(saved), draw(400)).cells[0]
    assert (part.counted, part.note) == (100, "100 of 400 samples were counted")
    assert part.tokens == pytest.approx(every.tokens, rel=0.02)
    assert part.work.flops == pytest.approx(every.work.flops, rel=0.1)


def test_without_a_tokenizer_four_characters_are_a_token_and_the_plan_says_so(tmp_path: Path) -> None:
    folder = config_folder(tmp_path, {**LLAMA_70B, "hidden_size": 64, "num_hidden_layers": 6, "intermediate_size": 64})
    sample = Sample("x" * 992, "y" * 32)
    found = plan(study_of(folder), Drawn((sample,) * 3, (), 0, (), "target"))
    assert (found.cells[0].tokens, found.cells[0].answer_tokens) == (3 * 255, 3 * 8)
    assert "4 characters" in found.models[0].note


def test_what_a_model_cannot_read_is_counted_as_skipped(saved: Path) -> None:
    long = Sample(" ".join(WORDS * 20), " w11")
    drawn = draw()
    found = plan(study_of(saved), replace(drawn, samples=(*drawn.samples, long))).cells[0]
    assert (found.samples, found.skipped) == (13, 1)


def test_the_candidates_are_those_that_a_reading_chooses_from(plain: Model) -> None:
    encoded = [one for _, one in _encode(plain, {"read": "target", "max_new_tokens": 0}, draw(4).samples, range(4), "skip")[0]]
    lens, chosen = resolve_depth(plain, encoded, HyperLens("sweep"), Limits())
    assert chosen is not None
    assert list_candidates(plain.layers) == tuple(chosen["candidates"]) == lens.focal_depths
    assert choose_depths(LensSpec(focal_depths="sweep"), plain.layers) == lens.focal_depths


def test_more_of_anything_never_needs_less_memory(saved: Path) -> None:
    def needed(*lenses: LensSpec, **options: Any) -> int:
        return plan(study_of(saved, *lenses, **options)).models[0].memory_bytes

    shallow = LensSpec(focal_depths=(0,))
    least = needed(shallow, batch_tokens=512, memory_mb=64)
    assert least <= needed(shallow, batch_tokens=2048, memory_mb=64) <= needed(shallow, batch_tokens=2048, memory_mb=512)
    assert needed(LensSpec(focal_depths=(0, 1), context="cached")) <= needed(LensSpec(focal_depths=(0, 4), context="cached"))
    weights = [
        plan(study_of(ModelSpec(str(saved), dtype=name))).models[0].weights_bytes
        for name in ("nf4", "int8", "bfloat16", "float32")
    ]
    assert weights == sorted(weights)
    assert 2 * weights[2] == weights[3]


def test_a_model_of_seventy_billion_parameters_is_planned_in_seconds_from_its_configuration(tmp_path: Path) -> None:
    folder, began = config_folder(tmp_path, LLAMA_70B), time.perf_counter()
    study = study_of(folder, LensSpec(focal_depths=(0, 2)), LensSpec("sweep", "sweep", "cached"))
    found = plan(study, Drawn((Sample("x" * 992, "y" * 32),) * 300, (), 0, (), "target"))
    model = found.models[0]
    assert time.perf_counter() - began < 30
    assert (model.parameters, model.weights_bytes) == (70_553_706_496, 141_107_412_992)
    assert model.largest_memory == "weights"
    jump, cached = found.cells
    assert (jump.focal_depths, cached.focal_depths) == ((0, 2), (0, 1, 2, 4, 8, 16, 32, 64))
    last = 2 * 8192 * 1024 / (2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672)  # of the last layer, keys and values of all
    assert jump.work.routed_flops / jump.work.ordinary_flops == pytest.approx(78 * (1 + last) / (79 + last), rel=0.03)
    assert cached.tokens == 300 * 255


def test_a_short_calibration_gives_times_that_grow_with_the_work(saved: Path) -> None:
    lenses = LensSpec("logit", (0,)), LensSpec("deep", (0, 2)), LensSpec("auto")
    tasks = (TaskSpec("read", prompt="{text}"), TaskSpec("write", prompt="{text}"))
    study = study_of(saved, *lenses, tasks=tasks)
    found = plan_study(study, lambda number: draw(40, "generated" if number else "target", max_new_tokens=4 * number))
    shared = replace(found, workers=2)
    logit, written, deep = (cell.seconds for cell in found.cells[:3])
    assert logit and written and deep and found.seconds
    assert logit < deep and logit < written
    assert shared.seconds == pytest.approx(found.seconds / 2)
    model = found.models[0]
    assert model.choosing_flops > 0 and model.timed_on == "4 of 6 layers, random, float32 on cpu"
    described = json.loads(json.dumps(found.describe()))
    assert described["flops"] == pytest.approx(sum(row["flops"] for row in described["cells"]) + model.choosing_flops)


def test_a_model_too_large_to_be_timed_as_it_is_is_timed_narrower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SLICE_PARAMETERS, "cpu", 2_000_000)
    folder = config_folder(tmp_path, {**LLAMA_70B, "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8})
    found = plan(
        study_of(folder, LensSpec(focal_depths=(0,))), Drawn((Sample("x" * 64, "y"),), (), 0, (), "target"), calibrate=True
    )
    assert found.models[0].timed_on == "4 of 80 layers, 4096 of 128256 tokens, 1/4 of the width, random, bfloat16 on cpu"
    assert found.seconds


def test_where_the_device_is_not_here_there_is_a_plan_without_times(saved: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    found = plan(study_of(ModelSpec(str(saved), device="cuda")), calibrate=True)
    assert (found.seconds, found.models[0].note) == (None, "cuda is not here: no time was measured")


def test_a_model_that_cannot_be_had_is_left_out_and_all_are_refused(saved: Path, tmp_path: Path) -> None:
    study = replace(study_of(saved), models=(ModelSpec(str(saved)), ModelSpec(str(tmp_path), name="empty")))
    found = plan(study)
    assert found.models[0].refused == ""
    assert found.models[1].refused.startswith(f"{tmp_path} has no config.json")
    assert [cell.model for cell in found.cells] == [study.models[0].name]
    with pytest.raises(ModelError, match=r"no config\.json"):
        plan(study_of(tmp_path))


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"lenses": (LensSpec(focal_depths=(0, 9)),)}, InputError, "above this model's 6 layers"),
        ({"models": (ModelSpec("nobody/nothing-of-this-name"),)}, ModelError, "go online"),
        ({"models": (ModelSpec("./not-there"),)}, ModelError, "there is no folder"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_sentence(
    saved: Path, change: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        plan(replace(study_of(saved), **change))
    assert is_one_sentence(str(caught.value))


def test_fewer_than_no_workers_and_unreadable_samples_are_refused(saved: Path) -> None:
    with pytest.raises(InputError, match="workers is 0"):
        plan(study_of(saved), workers=0)
    with pytest.raises(InputError, match="none of the samples can be read"):
        plan(study_of(saved), Drawn((Sample(" "),), (), 0, (), "target"))


def test_importing_the_room_does_not_import_torch() -> None:
    code = "import sys, hyperlens.runs.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0
