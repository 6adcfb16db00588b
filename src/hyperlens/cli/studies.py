"""Commands about studies: `study` and `report`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, no_type_check

import typer

from hyperlens.cli.app import (
    LENS_HELP,
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
    ReadingNames,
    RemoteCode,
    Revision,
    Seed,
    TaskNames,
    TopK,
    Transfer,
    app,
    check_lens_name,
    describe_lens,
    describe_loading,
    describe_tasks,
    given_options,
    is_folder,
    make_console,
    name_folders,
    print_json,
    split,
    working,
)
from hyperlens.errors import InputError

KEPT_BESIDE_A_FILE = {"--out", "--workers", "--ray-address", "--plan", "--restart", "--report", "--json"}
"""Options of `study` that say nothing of what is measured."""


@app.command()
@no_type_check  # the context that typer gives is not of the class by which it knows that one is wanted
def study(
    context_of_call: typer.Context,
    spec: Annotated[Path | None, typer.Argument(metavar="STUDY.toml", help="A study; see docs/studies.md.")] = None,
    model: Annotated[list[str] | None, typer.Option("--model", help="As for trace; may be repeated.")] = None,
    task: TaskNames = None,
    level: Levels = None,
    file: OwnFile = None,
    data: DataFolder = "",
    limit: Limit = 50,
    few_shot: FewShot = 0,
    chat: Chat = False,
    read: ReadAs = "",
    seed: Seed = 0,
    lens: Annotated[list[str] | None, typer.Option("--lens", help=f"{LENS_HELP} May be repeated.")] = None,
    focal_depth: FocalDepth = "",
    context: ContextName = "jump",
    between: Between = "",
    transfer: Transfer = False,
    reading: ReadingNames = "probability",
    top_k: TopK = 0,
    batch_tokens: BatchTokens = 4096,
    dtype: DType = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run; runs/NAME by default.")] = None,
    workers: Annotated[int, typer.Option("--workers", help="Processes that share the work through Ray.")] = 0,
    ray_address: Annotated[str | None, typer.Option("--ray-address", help="A Ray cluster, such as auto or HOST:6379.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it would cost, and measure nothing.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Discard what the folder's run has measured.")] = False,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write the HTML page.")] = True,
    json: Json = False,
) -> None:
    """Measure accuracy, confidence and effort: a study from its file, or one put together by options; without any, our model
    on our questions. Goes on where it was stopped."""
    from hyperlens.artefact import MARK, check_file, is_artefact, page_beside
    from hyperlens.runs import ModelSpec, Study, read_study, run_study

    if spec is not None:
        if given := given_options(context_of_call) - KEPT_BESIDE_A_FILE:
            raise InputError(f"{spec} says what is measured; leave {', '.join(sorted(given))} away, or write it there")
        wanted = read_study(spec)
    else:
        if plan or not is_artefact(out or Path("runs") / Study.name):  # what was measured is shown though its lens is gone
            for name in lens or []:
                check_lens_name(name)
        load = describe_loading(dtype, device, device_map, revision, trust_remote_code)
        wanted = Study(
            models=tuple(ModelSpec(name, **load) for name in dict.fromkeys(model or ["reference"])),
            tasks=describe_tasks(task, level, file, few_shot=few_shot, chat=chat, read=read),
            lenses=_describe_lenses(lens or ["hyper"], focal_depth, context, between, transfer, split(reading), top_k),
            limit=limit,
            seed=seed,
            data=data,
            batch_tokens=batch_tokens,
        )
    if plan:
        _plan_study(wanted, workers, json)
        return
    out = out or Path("runs") / wanted.name
    if report:
        check_file(page_beside(out), MARK)
    run = run_study(wanted, out, workers=workers, ray_address=ray_address, restart=restart)
    _show_run(run, report, json)


@app.command("report")
def write_report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a study.")],
    out: Annotated[Path | None, typer.Option("--out", help="File for the page; beside the folder by default.")] = None,
    format: Annotated[str, typer.Option("--format", help="html, one self-contained page; or md.")] = "html",
    figures: Annotated[
        str | None, typer.Option("--figures", help="Figures for papers instead: svg, png, pdf; --out is their folder.")
    ] = None,
) -> None:
    """Write a study's results as one self-contained HTML page, as Markdown, or as figures."""
    from hyperlens.report import write_figures, write_report
    from hyperlens.runs import open_run

    run = open_run(folder)
    if figures is not None:
        for place in write_figures(run, out, split(figures)):
            print(f"Figure: {place}")
    else:
        print(f"Page: {write_report(run, out, format)}")


def _plan_study(study: Any, workers: int, json: bool) -> None:
    """Say what a study would cost."""
    from hyperlens.runs import draw_samples
    from hyperlens.runs.plan import plan_study
    from hyperlens.terminal import show_plan

    with working("planning"):
        planned = plan_study(study, lambda number: draw_samples(study, number), workers=max(1, workers)).describe()
    print_json(planned) if json else show_plan(make_console(), planned)


def _show_run(run: Any, report: bool, json: bool) -> None:
    """Show what a run found, and write its page."""
    from hyperlens.report import write_report
    from hyperlens.terminal import show_study

    document = {"manifest": run.manifest, **run.results}
    print_json(document) if json else show_study(make_console(), document, run.folder)
    if report:
        print(f"Page: {write_report(run)}", file=sys.stderr if json else sys.stdout)


def _describe_lenses(
    names: list[str], depths: str, context: str, between: str, transfer: bool, readings: tuple[str, ...], top_k: int
) -> tuple[Any, ...]:
    """The lenses of a study, side by side; of several, each takes the options that it has. Raises InputError."""
    tuned = {folder: called for called, folder in name_folders(filter(is_folder, names)).items()}
    found = []
    for name in (name for name in dict.fromkeys(names) if name in tuned or not is_folder(name)):
        if name == "logit" and len(names) > 1:
            found.append(describe_lens(name, readings=readings, top_k=top_k))
            continue
        one = describe_lens(name, depths, context, between, transfer and (name in tuned or not tuned), readings, top_k)
        found.append(replace(one, name=f"tuned {tuned[name]}") if name in tuned and len(tuned) > 1 else one)
    return tuple(found)
