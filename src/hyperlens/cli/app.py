"""What the commands share: the application, the options that mean the same everywhere, and what is printed how."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperlens.errors import NO_EXTRA, NO_LENS, InputError, ModelError

if TYPE_CHECKING:
    from rich.console import Console

    from hyperlens.lenses import Lens
    from hyperlens.models import Model
    from hyperlens.runs import LensSpec

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


class Interrupted(Exception):
    """Ctrl-C in a command that says how to go on."""


ModelName = Annotated[str, typer.Argument(help='A folder (an adapter\'s too), a .gguf file, a hub id, or "reference" (ours).')]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
DType = Annotated[str, typer.Option("--dtype", help="auto (as saved), float32, bfloat16, float16, int8, nf4, torchao-int8.")]
Device = Annotated[str | None, typer.Option("--device", help="Such as cpu, cuda or mps.")]
DeviceMap = Annotated[str | None, typer.Option("--device-map", help="How to spread the model: auto, disk.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the hub.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run the hub's code; needs --revision COMMIT.")]
FocalDepth = Annotated[
    str,
    typer.Option(
        "--focal-depth",
        help="Numbers such as 0,2,4; auto (one chosen, beside 0), the default of hyper; sweep. A tuned lens has its own.",
    ),
]
Between = Annotated[str, typer.Option("--between", help="Layers to pass on the way to the deepest ones, such as 3,7.")]
TopK = Annotated[int, typer.Option("--top-k", help="Top tokens to keep of every state.")]
Transfer = Annotated[bool, typer.Option("--transfer", help="Let a tuned lens read another model than it was trained for.")]
LENS_HELP = "hyper; logit; or the folder of a tuned lens, ours or the original package's."
LensName = Annotated[str, typer.Option("--lens", help=LENS_HELP)]
ContextName = Annotated[str, typer.Option("--context", help="What routed states attend to: jump or cached.")]
ReadingNames = Annotated[str, typer.Option("--reading", help="Names such as probability,entropy.")]
BatchTokens = Annotated[int, typer.Option("--batch-tokens", help="Most tokens of one batch.")]
MemoryMb = Annotated[int, typer.Option("--memory-mb", help="Memory above the model's own forward pass.")]
Seed = Annotated[int, typer.Option("--seed", help="What random draws start from.")]
TaskNames = Annotated[list[str] | None, typer.Option("--task", help="A task, such as logic:plain or gsm8k; may be repeated.")]
Levels = Annotated[list[int] | None, typer.Option("--level", help="A level; may be repeated. All by default.")]
OwnFile = Annotated[
    Path | None,
    typer.Option("--file", help="Own samples (.jsonl, .json, .csv, .parquet) with columns prompt, target, level …"),
]
DataFolder = Annotated[str, typer.Option("--data", help="Folder with local copies of data sets.")]
Limit = Annotated[int, typer.Option("--limit", help="Samples of each task, or of each of its levels.")]
FewShot = Annotated[int, typer.Option("--few-shot", help="Solved examples before each question.")]
Chat = Annotated[bool, typer.Option("--chat", help="Put questions through the model's chat template.")]
Host = Annotated[str, typer.Option("--host", help="Address to listen on; others than this machine's own need a token.")]
Port = Annotated[int, typer.Option("--port", help="Port to listen on; 0 for any that is free.")]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", help="File with the token to ask for; else HYPERLENS_TOKEN, else a new one.")
]
ReadAs = Annotated[str, typer.Option("--read", help="target, generated or options; by default what is usual.")]


def require_extras(command: str, extra: str, packages: Iterable[str]) -> None:
    """Raises ModelError, which says what to install, where a command lacks one of the packages of its extra."""
    for package in packages:
        if find_spec(package) is None:
            raise ModelError(NO_EXTRA.format(f"hyperlens {command}", package, extra))


def load(model: str, dtype: str, device: str | None, device_map: str | None, revision: str | None, remote: bool) -> Model:
    """The model that a command names."""
    from hyperlens.models import load_model

    return load_model(model, None, dtype, device, device_map, revision, remote)


def open_lens(name: str, depths: str = "", context: str = "jump", between: str = "", transfer: bool = False) -> Lens:
    """The lens that `--lens` names, with what the other options say of it. Raises InputError and ArtefactError."""
    check_lens_name(name)
    spec = describe_lens(name, depths, context, between, transfer)
    from hyperlens.runs.measure import make_lens

    return make_lens(spec)


def describe_lens(
    name: str,
    depths: str = "",
    context: str = "jump",
    between: str = "",
    transfer: bool = False,
    readings: tuple[str, ...] = ("probability",),
    top_k: int = 0,
) -> LensSpec:
    """The lens of `--lens` as a study has it; without `depths`, at the focal depth that is usual for it. Raises InputError."""
    from hyperlens.runs import LensSpec

    kind, path = ("tuned", name) if is_folder(name) else (name, "")
    if path and not _is_shipped(path) and "{model}" not in path:
        path = str(Path(path).resolve())
    try:
        layers = tuple(int(part) for part in split(between)) if between else ()
    except ValueError:
        raise InputError(f'the layers in between are "{between}"; give their numbers, such as 3,7') from None
    return LensSpec("", parse_depths(depths), context, readings, kind, path, layers, transfer, top_k)


def describe_tasks(names: list[str] | None, levels: list[int] | None, file: Path | None, **how: Any) -> tuple[Any, ...]:
    """The tasks of a study: those named, all graded domains where none is, or the one of a file. Raises InputError."""
    from hyperlens.runs import TaskSpec
    from hyperlens.tasks import GRADED

    if file is not None and (names or levels):
        raise InputError("--file brings its own tasks and levels; leave --task and --level away, or leave --file away")
    if file is not None:
        return (TaskSpec(file.stem, path=str(file.resolve()), **how),)
    return tuple(TaskSpec(name, levels=tuple(levels or ()), **how) for name in dict.fromkeys(names or GRADED))


def describe_loading(
    dtype: str, device: str | None, device_map: str | None, revision: str | None, remote: bool
) -> dict[str, Any]:
    """How a study's models are loaded."""
    places = {"device": device or "", "device_map": device_map or "", "revision": revision or ""}
    return {"dtype": dtype, **places, "trust_remote_code": remote}


def given_options(context: Any) -> set[str]:
    """The options that stand on the command line."""
    given = {name for name in context.params if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    return {option.opts[0] for option in context.command.params if option.name in given and option.opts[0].startswith("--")}


def is_folder(name: str) -> bool:
    """Whether `--lens` names a tuned lens."""
    return name not in ("hyper", "logit")


def check_lens_name(name: str) -> None:
    """Raises InputError where `--lens` names nothing that could be a lens."""
    if is_folder(name) and not (Path(name).is_dir() or _is_shipped(name) or "{model}" in name):
        raise InputError(NO_LENS.format(name))


def _is_shipped(name: str) -> bool:
    """Whether `--lens` names the lens of the model that comes with the package."""
    from hyperlens.runs import ModelSpec

    return name == ModelSpec.source and not Path(name).is_dir()


def name_folders(folders: Iterable[str]) -> dict[str, str]:
    """Folders by the last parts of their paths, as few as set them apart; each folder once, however it is written."""
    places: dict[tuple[str, ...], str] = {}
    for folder in folders:
        places.setdefault(Path(folder).resolve().parts, folder)
    named = {}
    for parts, folder in places.items():
        others = [other for other in places if other != parts]
        few = next(few for few in range(1, len(parts) + 1) if all(other[-few:] != parts[-few:] for other in others))
        named["/".join(parts[-few:])] = folder
    return named


def parse_depths(given: str) -> tuple[int, ...] | str:
    """The focal depths of `--focal-depth`; nothing where none were given. Raises InputError."""
    if given.strip() in ("auto", "sweep", ""):
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
