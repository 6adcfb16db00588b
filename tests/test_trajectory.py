from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from hyperlens.artefact import to_json, write_artefact
from hyperlens.errors import ArtefactError, HyperLensWarning, InputError
from hyperlens.trajectory import Trajectory, describe_trajectory, measure_effort, pool_effort

LAYERS, DEPTHS = 8, (0, 2)


def made(guess: float = 0.0, smallest: float = 0.0, top: bool = False, layers: int = LAYERS, depths=DEPTHS) -> Trajectory:
    """Three tokens of two texts, their confidence rising at random."""
    rng = np.random.default_rng(0)
    values = np.sort(rng.random((3, len(depths), layers + 1), dtype=np.float32), -1)
    values[:, :, -1] = values[:, :1, -1]
    for place, depth in enumerate(depths):
        values[:, place, layers - depth :] = values[:, place, -1:]
    variables = {"probability": (("token", "focal_depth", "state"), values)}
    if top:
        variables["top_ids"] = (
            ("token", "focal_depth", "state", "top"),
            rng.integers(0, 5, (*values.shape, 2), dtype=np.int32),
        )
    labels = {
        "sample": np.array([0, 1, 1]),
        "position": np.array([4, 2, 3]),
        "token_id": np.array([1, 2, 3]),
        "token_text": np.array([" is", "<script>", "\x1b[31m"], dtype=object),
        "output_id": np.array([3, 4, 5]),
        "output_text": np.array(["a", "b", "c"], dtype=object),
        "reference_id": np.array([3, 4, 5]),
        "reference_text": np.array(["a", "b", "c"], dtype=object),
        "output_probability": values[:, 0, -1],
    }
    coordinates = {name: (("token",), value) for name, value in labels.items()}
    data = xr.Dataset(variables, coords={**coordinates, "focal_depth": list(depths), "state": np.arange(layers + 1)})
    samples = pd.DataFrame({"text": ["one", "<b>two</b>"], "level": pd.array([1, None], "Int64")})
    manifest = {
        "model": {"name": "a<b>", "layers": layers},
        "lens": {"focal_depths": list(depths), "context": "jump", "auto": None},
        "readings": ["probability"],
        "guess": guess,
        "smallest": smallest,
        "top_tokens": {str(token): f"t{token}" for token in range(5)},
    }
    return Trajectory(data, samples, manifest)


def test_a_trajectory_survives_save_and_load_to_the_last_bit(tmp_path):
    saved = made(top=True)
    loaded = Trajectory.load(saved.save(tmp_path / "t"))
    xr.testing.assert_identical(loaded.data, saved.data)
    assert loaded.data["top_ids"].dtype == np.int32
    pd.testing.assert_frame_equal(loaded.samples, saved.samples)
    assert loaded.manifest["lens"] == saved.manifest["lens"]


def test_a_folder_without_trajectory_is_refused(tmp_path):
    folder = write_artefact(tmp_path / "other", {"kind": "lens"}, {})
    with pytest.raises(ArtefactError, match="holds no trajectory but a lens"):
        Trajectory.load(folder)


def test_every_token_depth_and_state_is_a_row_of_the_dataframe():
    frame = made(top=True).to_dataframe()
    assert len(frame) == 3 * 2 * (LAYERS + 1)
    assert {"token_text", "probability", "focal_depth", "state", "position"} <= set(frame.columns)


def test_confidence_holds_the_states_that_the_depth_can_read():
    assert made().confidence(2).shape == (3, LAYERS - 1)
    with pytest.raises(InputError, match="focal depth 3 was not read; this trajectory has 0, 2"):
        made().confidence(3)
    with pytest.raises(InputError, match='"entropy" was not read'):
        made().to_numpy("entropy")


def test_common_effort_compares_depths_over_the_same_states():
    measured = measure_effort(made())
    confidence = made().confidence(0)
    expected = 1 - np.clip(confidence[:, : LAYERS - 2] / confidence[:, -1:], 0, 1)
    np.testing.assert_allclose(measured["common_effort"].sel(focal_depth=0), expected.mean(1), rtol=1e-6)
    np.testing.assert_allclose(measured["common_effort"].sel(focal_depth=2), measured["effort"].sel(focal_depth=2), rtol=1e-6)


def test_the_struggle_lies_between_onset_and_commit():
    measured = measure_effort(made())
    np.testing.assert_array_equal(measured["struggle"], measured["commit"] - measured["onset"])
    assert (measured["struggle"] >= 0).all() and (measured["struggle_share"] <= 1).all()
    np.testing.assert_allclose(measured["effort_layers"].sel(focal_depth=2), 6 * measured["effort"].sel(focal_depth=2))


def test_few_states_are_coarse_and_none_undefined_and_both_are_said():
    with pytest.warns(HyperLensWarning, match="only 3 states are left to read; effort is coarse"):
        measure_effort(made(layers=5, depths=(0, 2)))
    with pytest.warns(HyperLensWarning, match="effort is undefined"):
        measured = measure_effort(made(layers=5, depths=(0, 5)))
    assert measured["effort"].sel(focal_depth=5).isnull().all()
    assert not measured["effort"].sel(focal_depth=0).isnull().any()


def test_a_text_pools_its_own_tokens_and_counts_what_it_leaves_out():
    trajectory = made(smallest=0.01)
    trajectory.data["probability"].values[1, :, :] = 0.001
    pooled, measured = pool_effort(trajectory), measure_effort(trajectory)["effort"]
    np.testing.assert_allclose(pooled["mean"].sel(sample=0), measured[0])
    np.testing.assert_allclose(pooled["mean"].sel(sample=1), measured[2])
    assert pooled["left_out"].sel(sample=1).values.tolist() == [1, 1]
    assert pooled["tokens"].values.tolist() == [1, 2]
    np.testing.assert_allclose(pooled["sum"], pooled["mean"] * (pooled["tokens"] - pooled["left_out"]))


def test_the_document_has_all_states_and_null_for_nan():
    document = json.loads(to_json(describe_trajectory(made(guess=2.0, top=True))))
    token = document["samples"][1]["tokens"][0]
    assert len(token["trajectory"]["2"]) == LAYERS + 1
    assert token["effort"] == {"0": None, "2": None} and token["commit"] == {"0": None, "2": None}
    assert len(token["top"]["0"]) == LAYERS + 1 and token["top"]["0"][0][0].startswith("t")


def test_texts_cannot_inject_markup_into_a_notebook():
    shown = made()._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "<b>" not in shown
    assert "3 tokens of 2 texts" in repr(made())
