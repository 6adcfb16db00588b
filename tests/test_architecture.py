"""The laws of DESIGN that no type checker sees: which rooms may import what, and that no file knows this machine."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COLD = [
    "errors",
    "web",
    "effort",
    "resampling",
    "spelling",
    "notebook",
    "artefact",
    "trajectory",
    "contrast",
    "neighbours",
    "anomalies",
    "diagnosis",
    "tasks",
    "tasks.graded",
    "plots",
    "runs",
    "report",
    "viewer",
    "cli",
]
MACHINE_PATH = re.compile(r"(?<![\w.~/])/(?:home|mnt|opt|private|root|srv|tmp|Users|var|work)/\w|\b[A-Z]:\\\w")

WARM_ONES = "print(*sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr)"


def python(code: str) -> subprocess.CompletedProcess[str]:
    """`code` in a fresh interpreter, where nothing is imported yet."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)


@pytest.mark.parametrize("module", ["hyperlens", *(f"hyperlens.{room}" for room in COLD)])
def test_a_cold_module_starts_without_torch(module: str) -> None:
    done = python(f"import sys, {module}; {WARM_ONES}")
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_the_help_of_the_command_line_starts_without_torch() -> None:
    done = python(
        f"""import atexit, sys
atexit.register(lambda: {WARM_ONES})
sys.argv = ["hyperlens", "--help"]
from hyperlens.cli import main
main()"""
    )
    assert (done.returncode, done.stderr.strip()) == (0, "")
    assert "Usage" in done.stdout


def test_rooms_import_in_one_direction() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"
    done = python(code)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_of_the_package_names_a_path_of_one_machine() -> None:
    found = [
        f"{file.relative_to(ROOT)}: {match.group()}"
        for file in sorted((ROOT / "src").rglob("*"))
        if file.suffix in {".py", ".json", ".toml", ".txt", ".md"}
        for match in MACHINE_PATH.finditer(file.read_text(encoding="utf-8"))
    ]
    assert found == []
