"""The README's Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_example_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(block, str(README), "exec"), {})
    assert re.fullmatch(r"\[\[0\.\d+ +0\.\d+ *\]\n \[0\.\d+ +0\.\d+ *\]\]\n", capsys.readouterr().out)
