"""What every test stands on: shapes checked at run time, no network, fixed seeds, the shared material where it is."""

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checks import install_checks
from hypothesis import settings

# huggingface_hub reads this when it is imported, and no import above imports it.
os.environ["HF_HUB_OFFLINE"] = "1"

# Never removed: modules that a test imports late are checked too.
install_checks("hyperlens")

ROOT = Path(__file__).resolve().parent.parent

settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with the most slow tests come first: what begins last is short, so that all workers end together."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """One thread: the models are too small for more, and threads that wait for busy cores make each test 50 times slower."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Every test starts from the same random state, in whatever order the tests run."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared material: HYPERLENS_SHARED, or `../shared` beside the project."""
    folder = Path(os.environ.get("HYPERLENS_SHARED", ROOT.parent / "shared"))
    return _present(folder, "set HYPERLENS_SHARED to the folder of shared material")


@pytest.fixture(scope="session")
def stories(shared: Path) -> Path:
    """A trained Llama of 260 thousand parameters."""
    return _present(shared / "models" / "stories260K", "it is part of the shared material")


@pytest.fixture(scope="session")
def bitllama(shared: Path) -> Path:
    """A trained BitNet of 3 million parameters."""
    return _present(shared / "models" / "bitllama_3M", "it is part of the shared material")


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small random Llama with its tokenizer. To be read only."""
    from families import build_family
    from loading import save

    return save(build_family("llama"), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def plain(saved: Path) -> Any:
    """The small Llama, loaded as anyone would."""
    from hyperlens.models import load_model

    return load_model(saved)


@pytest.fixture(scope="session")
def reference() -> Any:
    """The model that comes with us, loaded as anyone would. To be read only."""
    from hyperlens.models import load_model

    return load_model("reference")


@pytest.fixture
def loaded_once(reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that ask for the reference model as it is get the one that is loaded: for tests of what comes after."""
    from hyperlens import models
    from hyperlens.runs import measure

    def find(source: Any, *options: Any, load: Any = models.load_model, **more: Any) -> Any:
        plain = (source, *options) == ("reference", None, "auto", None, None, None, False) and not more
        return reference if plain else load(source, *options, **more)

    for room in (models, measure):
        monkeypatch.setattr(room, "load_model", find)


def _present(folder: Path, remedy: str) -> Path:
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; {remedy}")
    return folder
