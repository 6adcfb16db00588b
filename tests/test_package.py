"""The wheel, alone: what it holds, and that it works where no source tree is near."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*command: str | Path, cwd: Path) -> str:
    """What `command` prints; its standard error is the message where it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} gave {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel, and sees this one's packages but not its editable installation.

    Python reads `.pth` files only in its own site folder: the one line here adds the folder of dependencies, and the
    line in that folder that makes this project editable stays unread.
    """
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    run(*pip, "install", "--no-deps", "--no-index", "--ignore-installed", wheel, cwd=folder)
    return folder


def test_the_wheel_holds_the_reference_model_its_lens_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    data = {Path(name).name: size for name, size in sizes.items() if name.startswith("hyperlens/data/")}
    assert {"config.json", "tokenizer.json"} <= set(data)
    assert {"model.safetensors", "translators.safetensors", "COMPLETE"} <= set(data)
    assert sum(data.values()) < 20e6
    assert "hyperlens/py.typed" in sizes
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in sizes)


def test_the_wheel_runs_the_default_study_far_from_the_source(clean: Path, tmp_path: Path) -> None:
    python, hyperlens = clean / "bin" / "python", clean / "bin" / "hyperlens"
    home = run(python, "-c", "import hyperlens; print(hyperlens.__file__)", cwd=tmp_path)
    assert Path(home.strip()).is_relative_to(clean)
    assert version("hyperlens") in run(hyperlens, "--version", cwd=tmp_path)
    study = json.loads(run(hyperlens, "study", "--limit", "4", "--json", "--out", tmp_path / "run", cwd=tmp_path))
    assert study["groups"] and study["trends"]
    assert (tmp_path / "run" / "manifest.json").is_file()
