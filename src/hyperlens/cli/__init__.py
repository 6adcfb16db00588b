"""The command line: one short function per command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Annotated, Any

import typer

from hyperlens.cli import anomalies, comparing, finetuning, lenses, monitoring, reading, serving, studies, training, viewing  # noqa: F401  # each adds its commands
from hyperlens.cli.app import Interrupted, app
from hyperlens.errors import LOAD_ADVICE, HyperLensError, HyperLensWarning, is_memory_error
from hyperlens.heap import keep_blocks

INTERRUPTED = 130


def main() -> None:
    """Run a command; what a user can cause ends in one sentence and exit status 2."""
    keep_blocks()
    for talker in ("bitsandbytes", "torchao", "torch.utils._pytree"):  # transformers imports them; each has something to say
        logging.getLogger(talker).setLevel(logging.ERROR)
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", HyperLensWarning)
    try:
        status = app(standalone_mode=False)
        if status == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
    except HyperLensError as error:
        status = _refuse(str(error))
    except (KeyboardInterrupt, Interrupted) as stop:
        again = sys.argv[1:2] in (["compare"], ["study"], ["train-reference"], ["tune-lens"], ["finetune"])
        advice = str(stop) or ("the same command goes on from here" if again else "")
        print("; ".join(filter(None, ("hyperlens: stopped", advice))), file=sys.stderr)
        status = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except Exception as error:
        if is_memory_error(error):
            sys.exit(_refuse(LOAD_ADVICE))
        # Typer's own errors (an unknown option, a missing argument) carry a message for the user; all others are bugs.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        status = _refuse(f"{message().rstrip('.')}; see hyperlens --help")
    sys.exit(status)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    """How hard a language model works on a text, and where in its depth it makes up its mind."""
    if version:
        import hyperlens

        typer.echo(f"hyperlens {hyperlens.__version__}")
        raise typer.Exit


def _refuse(message: str) -> int:
    print(f"hyperlens: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _show_warning(message: Warning | str, category: type[Warning], *place: Any) -> None:
    """Ours are for the user; others' are for their developers."""
    if issubclass(category, HyperLensWarning):
        print(f"hyperlens: note: {message}", file=sys.stderr)
