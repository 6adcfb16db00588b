"""What the commands share: the application, the options that mean the same everywhere, and what is printed how."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperlens.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from hyperlens.models import Model

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

ModelName = Annotated[str, typer.Argument(help='A folder (an adapter\'s too), a .gguf file, a hub id, or "reference" (ours).')]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
DType = Annotated[str, typer.Option("--dtype", help="auto (as saved), float32, bfloat16, float16, int8, nf4, torchao-int8.")]
Device = Annotated[str | None, typer.Option("--device", help="Such as cpu, cuda or mps.")]
DeviceMap = Annotated[str | None, typer.Option("--device-map", help="How to spread the model: auto, disk.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the hub.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run the hub's code; needs --revision COMMIT.")]
FocalDepth = Annotated[str, typer.Option("--focal-depth", help="Numbers such as 0,2,4; auto (one chosen, beside 0); sweep.")]
ContextName = Annotated[str, typer.Option("--context", help="What routed states attend to: jump or cached.")]
ReadingNames = Annotated[str, typer.Option("--reading", help="Names such as probability,entropy.")]
BatchTokens = Annotated[int, typer.Option("--batch-tokens", help="Most tokens of one batch.")]
MemoryMb = Annotated[int, typer.Option("--memory-mb", help="Memory above the model's own forward pass.")]
Seed = Annotated[int, typer.Option("--seed", help="What random draws start from.")]


def load(model: str, dtype: str, device: str | None, device_map: str | None, revision: str | None, remote: bool) -> Model:
    """The model that a command names."""
    from hyperlens.models import load_model

    return load_model(model, None, dtype, device, device_map, revision, remote)


def parse_depths(given: str) -> tuple[int, ...] | str:
    """The focal depths of `--focal-depth`. Raises InputError."""
    if given.strip() in ("auto", "sweep"):
        return given.strip()
    try:
        return tuple(int(part) for part in split(given))
    except ValueError:
        raise InputError(f'focal depth "{given}" is not a number; give numbers such as 0,2,4, auto or sweep') from None


def split(given: str) -> tuple[str, ...]:
    """The parts between commas."""
    return tuple(part.strip() for part in given.split(","))


def make_console() -> Console:
    """Standard output, as wide as a table needs where it is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200)


def working(what: str) -> Any:
    """A spinner on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(what)


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    from hyperlens.artefact import to_json

    print(to_json(document), flush=True)
