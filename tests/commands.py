"""The command line as a user has it: words in, exit status and what is printed out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hyperlens import cli

Call = Callable[..., tuple[int, str, str]]
"""Words of a command; gives exit status, standard output, standard error."""


def make_call(capsys: Any, monkeypatch: pytest.MonkeyPatch, *first: str) -> Call:
    """Runs `hyperlens` with the words `first`, then those that it is given."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["hyperlens", *first, *map(str, words)])
        monkeypatch.setattr("warnings.showwarning", lambda *args, **kwargs: None)
        with pytest.raises(SystemExit) as left:
            cli.main()
        shown = capsys.readouterr()
        return int(left.value.code or 0), shown.out, shown.err

    return run
