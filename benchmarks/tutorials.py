"""Run the tutorials and keep what they show: python benchmarks/tutorials.py [NAME …].

Each notebook in docs/tutorials is run from top to bottom in an empty folder, in this process and without a network. What a cell
prints and the value of its last line are kept as Jupyter keeps them; times and what goes to standard error are not, so that
the same code writes the same file.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

TUTORIALS = Path(__file__).resolve().parent.parent / "docs" / "tutorials"
NUMBER = re.compile(r"[+−-]?\d+\.\d+")


def run_notebook(file: Path) -> Any:
    """The notebook with the outputs that its code has now."""
    import nbformat

    notebook = nbformat.read(file, as_version=4)
    scope: dict[str, Any] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for number, cell in enumerate(code, 1):
            cell.execution_count, cell.outputs = number, list(_run_cell(cell.source, scope, number))
    for number, cell in enumerate(notebook.cells, 1):
        cell.id, cell.metadata = f"cell-{number}", {}
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return notebook


def _run_cell(source: str, scope: dict[str, Any], number: int) -> Iterator[Any]:
    """What one cell prints, and the value of its last line."""
    from IPython.lib.pretty import pretty
    from nbformat.v4 import new_output

    lines, value = ast.parse(source).body, None
    last = ast.Expression(lines.pop().value) if isinstance(lines[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()):
        exec(compile(ast.Module(lines, []), f"cell {number}", "exec"), scope)
        if last is not None:
            value = eval(compile(last, f"cell {number}", "eval"), scope)
    if said.getvalue():
        yield new_output("stream", name="stdout", text=said.getvalue())
    if value is not None:
        shown = {"text/plain": pretty(value)}
        if page := getattr(value, "_repr_html_", lambda: None)():
            shown["text/html"] = str(page)
        yield new_output("execute_result", shown, execution_count=number)


def list_words(notebook: Any) -> Iterator[str]:
    """What its outputs say, one by one, without their markup."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            yield _Text(data["text/html"]).text if "text/html" in data else data["text/plain"]


def part_numbers(said: str) -> tuple[str, list[float]]:
    """A text without its fractions, and these."""
    found = [float(one.replace("−", "-")) for one in NUMBER.findall(said)]
    return " ".join(NUMBER.sub("#", said).split()), found


class _Text(HTMLParser):
    """The words of some HTML, without its style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.said: list[str] = []
        self.inside = ""
        self.feed(page)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.said).split())

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.inside = tag

    def handle_data(self, data: str) -> None:
        if self.inside != "style":
            self.said.append(data)


def main() -> None:
    """The command line."""
    import nbformat

    os.environ["HF_HUB_OFFLINE"] = "1"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="which, such as first-look; all of them by default")
    names = parser.parse_args().names
    for file in sorted(TUTORIALS.glob("*.ipynb")):
        if not names or file.stem in names:
            nbformat.write(run_notebook(file), file)
            print(file)


if __name__ == "__main__":
    main()
