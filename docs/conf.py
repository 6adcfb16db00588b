"""How `make docs` builds the site: Sphinx with furo and MyST; no network, no foreign scripts, warnings are errors."""

from __future__ import annotations

import re
from importlib.metadata import version as find_version
from typing import Any

project = "HyperLens"
author = "The HyperLens authors"
project_copyright = author
version = release = find_version("hyperlens")

extensions = ["myst_nb", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
html_theme = "furo"
html_title = f"HyperLens {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False

nb_execution_mode = "off"  # outputs are those that are committed; tests/test_tutorials.py runs the code
myst_heading_anchors = 4  # links to headings work here as they do on GitHub
highlight_language = "none"  # blocks without a language are formulas and drawings

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
default_role = "literal"  # one pair of backticks is code in docstrings, as it is in Markdown

SPECIAL = re.compile(r"([*_|\\])")


def quote_docstring(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Take docstrings as they are meant: plain sentences with code in backticks, in which a star is a star."""
    code = False
    for place, line in enumerate(lines):
        parts = line.split("`")
        for number, part in enumerate(parts):
            code ^= number > 0
            if not code:
                parts[number] = SPECIAL.sub(r"\\\1", part)
        lines[place] = "`".join(parts)


def setup(app: Any) -> None:
    """Sphinx calls it."""
    app.connect("autodoc-process-docstring", quote_docstring)
