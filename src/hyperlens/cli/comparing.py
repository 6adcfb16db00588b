"""The command about a model and what was made of it: `compare`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, no_type_check

import typer

from hyperlens.cli.app import (
    BatchTokens,
    Between,
    Chat,
    ContextName,
    DataFolder,
    Device,
    DeviceMap,
    DType,
    FewShot,
    FocalDepth,
    Json,
    Levels,
    Limit,
    OwnFile,
    ReadAs,
    RemoteCode,
    Revision,
    Seed,
    TaskNames,
    Transfer,
    app,
    check_lens_name,
    describe_lens,
    describe_loading,
    describe_tasks,
    given_options,
    make_console,
    parse_depths,
    print_json,
    working,
)
from hyperlens.errors import InputError

DEMO = ("knowledge:wide", "knowledge")
"""What `--demo` measures: the questions that the adapter was tuned for, and those that the model knew by heart."""
DEMO_DEPTHS = "0,2"
NAMING = {"--base-model", "--tuned-model"}
SHOWN = {"--demo", "--out", "--json", "--html", "--format", "--lens", "--focal-depth", *NAMING}
"""Options that say nothing of what is measured: all that saved runs can be compared by."""
LOADING = {"--dtype", "--device", "--device-map", "--revision", "--trust-remote-code", "--restart"}
"""What can be said of a model that is measured as a saved run was."""


@app.command()
@no_type_check  # the context that typer gives is not of the class by which it knows that one is wanted
def compare(
    context_of_call: typer.Context,
    base: Annotated[
        str | None, typer.Argument(help="The folder of a study, or a model as for trace; an adapter's, against its base.")
    ] = None,
    tuned: Annotated[str | None, typer.Argument(help="What was made of it: the folder of a study, or a model.")] = None,
    base_model: Annotated[str | None, typer.Option("--base-model", help="Which model of BASE, if it has several.")] = None,
    tuned_model: Annotated[str | None, typer.Option("--tuned-model", help="Which model of TUNED, if it has several.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Our model, and an adapter that made it blindly confident.")] = False,
    task: TaskNames = None,
    level: Levels = None,
    file: OwnFile = None,
    data: DataFolder = "",
    limit: Limit = 50,
    few_shot: FewShot = 0,
    chat: Chat = False,
    read: ReadAs = "",
    seed: Seed = 0,
    lens: Annotated[str, typer.Option("--lens", help="As for study; of saved runs, what they call it.")] = "",
    focal_depth: FocalDepth = "",
    context: ContextName = "jump",
    between: Between = "",
    transfer: Transfer = False,
    batch_tokens: BatchTokens = 4096,
    dtype: DType = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of what is measured; of saved runs, the page.")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Discard what was measured.")] = False,
    html: Annotated[bool, typer.Option("--html/--no-html", help="Write the page.")] = True,
    format: Annotated[str, typer.Option("--format", help="The page: html, or md.")] = "html",
    json: Json = False,
) -> None:
    """Say what fine-tuning did to a model: accuracy, confidence and effort before and after, on the same samples. Models are
    measured first, one after the other; goes on where it was stopped."""
    from hyperlens.runs import ModelSpec, Study

    if demo:
        base, tuned, task, focal_depth = *_find_demo(base, tuned), task or list(DEMO), focal_depth or DEMO_DEPTHS
    base, tuned = _find_pair(*_unfold(base, tuned), revision)
    saved = [_is_run(one) for one in (base, tuned or base)]
    _check_options(saved, given_options(context_of_call))
    folder = out or Path("runs") / _name_comparison(base, tuned)
    page = _check_page(out if all(saved) else None, tuned or base if saved[1] else folder / "tuned", format) if html else None
    load = describe_loading(dtype, device, device_map, revision, trust_remote_code)

    def describe_study() -> Study:
        check_lens_name(lens or "hyper")
        return Study(
            tasks=describe_tasks(task, level, file, few_shot=few_shot, chat=chat, read=read),
            lenses=(describe_lens(lens or "hyper", focal_depth, context, between, transfer),),
            limit=limit,
            seed=seed,
            data=data,
            batch_tokens=batch_tokens,
        )

    wanted = {
        "base": _Wanted(base, base_model, ModelSpec(base, **load)),
        "tuned": _Wanted(tuned or base, tuned_model, ModelSpec(tuned or base, **load)),
    }
    depth, named = (_parse_depth(focal_depth), lens or None) if any(saved) else (None, None)
    runs = _measure_pair(wanted, describe_study, folder, named, restart) if tuned else _open_pair(base, wanted)
    _show_comparison(runs, (base_model, tuned_model, named, depth), page, format, json)


@dataclass(frozen=True)
class _Wanted:
    """One side: the folder of a run and which of its models, or a model that is to be measured."""

    source: str
    model: str | None
    spec: Any


def _find_demo(base: str | None, tuned: str | None) -> tuple[str, str]:
    """The pair that comes with us. Raises InputError where another one is given."""
    from hyperlens.models import BLIND, REFERENCE

    if base is not None or tuned is not None:
        raise InputError(f"--demo compares {REFERENCE} with {BLIND}; leave {base} away, or leave --demo away")
    return REFERENCE, BLIND


def _find_pair(base: str | None, tuned: str | None, revision: str | None) -> tuple[str, str | None]:
    """What is compared: of an adapter alone, its base and itself; of a run alone, two models of it. Raises InputError and
    ModelError."""
    if base is None:
        raise InputError("there is nothing to compare; give two models or runs, an adapter, or --demo")
    if tuned is not None or _is_run(base):
        return base, tuned
    from hyperlens.models.loading import REFERENCE, REFERENCE_FOLDER, name_base

    found = name_base(base, revision)
    return (REFERENCE if found == str(REFERENCE_FOLDER) else found), base


def _unfold(base: str | None, tuned: str | None) -> tuple[str | None, str | None]:
    """The two runs in the folder of a comparison, where that is given alone. Raises InputError where it is one of two."""
    for one in (base, tuned):
        if one is None or _is_run(one) or not _is_run((sides := _list_sides(one))[0]):
            continue
        if not _is_run(sides[1]):
            raise InputError(f"{one} holds a comparison that was not finished; give the command that began it, and it goes on")
        if tuned is not None:
            raise InputError(f"{one} holds two runs of a comparison; give it alone, or one of them, {' or '.join(sides)}")
        return sides
    return base, tuned


def _list_sides(folder: str) -> tuple[str, str]:
    """Where a comparison that measured two models keeps their runs."""
    return str(Path(folder) / "base"), str(Path(folder) / "tuned")


def _is_run(source: str) -> bool:
    from hyperlens.artefact import is_artefact

    return is_artefact(Path(source))


def _check_options(saved: list[bool], given: set[str]) -> None:
    """That no option says what is measured where a saved run says it. Raises InputError."""
    if any(saved):
        if foreign := given - SHOWN - (set() if all(saved) else LOADING):
            raise InputError(f"a saved run says what was measured; leave {', '.join(sorted(foreign))} away")
    elif foreign := given & NAMING:
        raise InputError(f"{', '.join(sorted(foreign))} names a model of a saved run; give its folder, or leave it away")


def _check_page(out: Path | None, folder: str | Path, format: str) -> Path:
    """Where the page is to stand, if it may. Raises InputError and ArtefactError."""
    from hyperlens.artefact import check_file
    from hyperlens.report.comparison import MARK_COMPARISON, comparison_beside

    if format not in MARK_COMPARISON:
        raise InputError(f'there is no format "{format}" of a comparison; choose from {", ".join(MARK_COMPARISON)}')
    return check_file(out or comparison_beside(folder).with_suffix(f".{format}"), MARK_COMPARISON[format])


def _name_comparison(base: str, tuned: str | None) -> str:
    """The folder of what is measured, by both names."""
    names = [Path(one).name or one for one in (base, tuned or base)]
    return f"compare-{names[0]}-{names[1]}"


def _parse_depth(given: str) -> int | None:
    """The one focal depth at which saved runs are compared. Raises InputError."""
    depths = parse_depths(given) or ()
    if isinstance(depths, str) or len(depths) > 1:
        raise InputError(f"saved runs are compared at one focal depth, and {given} was given; give one number")
    return depths[0] if depths else None


def _open_pair(base: str, wanted: Mapping[str, _Wanted]) -> tuple[Any, Any]:
    """A run that is compared with itself: with None for its two models, or again where models are named."""
    from hyperlens.runs import open_run

    run = open_run(base)
    return run, None if len(run.models) > 1 or not any(one.model for one in wanted.values()) else run


def _measure_pair(
    wanted: Mapping[str, _Wanted], describe: Callable[[], Any], folder: Path, lens: str | None, restart: bool
) -> tuple[Any, Any]:
    """Both runs: models are measured now, the base as asked for, another one as the run that is there, so that the focal
    depths chosen for one are those of both."""
    from hyperlens.artefact import is_artefact
    from hyperlens.runs import open_run, run_study
    from hyperlens.runs.pairing import Side, read_alike

    runs = {name: open_run(one.source) for name, one in wanted.items() if _is_run(one.source)}
    if not runs:
        if not is_artefact(folder / "tuned"):
            _check_outlines(wanted)
        runs["base"] = run_study(replace(describe(), models=(wanted["base"].spec,)), folder / "base", restart=restart)
    for name, one in wanted.items():
        if name not in runs:
            (other,) = runs
            side = Side(runs[other], *runs[other].choose_pair(wanted[other].model, lens))
            study = read_alike(side, one.spec)
            models = {} if is_artefact(folder / name) else {one.spec.name: _load_kin(side, study)}
            runs[name] = run_study(study, folder / name, models, restart=restart)
    return runs["base"], runs["tuned"]


def _check_outlines(wanted: Mapping[str, _Wanted]) -> None:
    """That both models are there, and can be kin, before the first of them is measured. Raises InputError and ModelError."""
    from hyperlens.models.loading import outline_source
    from hyperlens.runs.pairing import check_outlines

    specs = [one.spec for one in wanted.values()]
    first, second = (outline_source(one.source, one.revision or None, one.trust_remote_code) for one in specs)
    check_outlines((specs[0].name, specs[1].name), (first, second))


def _load_kin(side: Any, study: Any) -> Any:
    """The model of a study that reads as a side was read. Raises InputError, before anything is measured, where neither can
    have been made of the other."""
    from hyperlens.runs.measure import describe_kin, load_spec
    from hyperlens.runs.pairing import check_kin

    model = load_spec(study.models[0], study)
    check_kin((side.said, study.models[0].name), (side.document, describe_kin(model)))
    return model


def _show_comparison(runs: tuple[Any, Any], named: tuple[Any, ...], page: Path | None, format: str, json: bool) -> None:
    """Compare two runs, show what changed, and write the page."""
    from hyperlens.report.comparison import write_comparison
    from hyperlens.runs import compare_runs
    from hyperlens.terminal import show_comparison

    with working("comparing"):
        comparison = compare_runs(*runs, *named)
    print_json(comparison.describe()) if json else show_comparison(make_console(), comparison)
    if page is not None:
        print(f"Page: {write_comparison(comparison, page, format)}", file=sys.stderr if json else sys.stdout)
