"""A study and its plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from hyperlens.runs.caveats import describe_lens, describe_lenses, describe_losses, is_logit, pick_headline
from hyperlens.terminal.cells import (
    make_safe,
    spell,
    spell_cell,
    spell_duration,
    spell_interval,
    spell_rho,
    spell_size,
    spell_whole,
)
from hyperlens.terminal.reading import show_resolution


def show_study(console: Console, document: Mapping[str, Any], folder: object) -> None:
    """The tables of a study at its headline depths: groups by task and level, how effort follows the level, easy against hard,
    which depth follows the level best, what was left out, and where all of it is kept."""
    for name, model in document["models"].items():
        for lens, chosen in model["lenses"].items():
            groups = [group for group in document["groups"] if (group["model"], group["lens"]) == (name, lens)]
            several = f", lens {lens}" if len(model["lenses"]) > 1 else ""
            for depth in pick_headline(chosen):
                title = "logit lens, m = 0" if depth == 0 and is_logit(chosen) else f"focal depth m = {depth}"
                about = f"{name}{several}, {model['layers']} layers, {describe_lens(chosen)}"
                _show_groups(console, groups, f"{title} ({about})", depth)
            show_resolution(console, chosen["auto"])
    depths = {
        (name, lens): pick_headline(one) for name, model in document["models"].items() for lens, one in model["lenses"].items()
    }
    for kind, show in (("contrasts", _show_contrasts), ("trends", _show_trends)):
        if rows := [row for row in document[kind] if row["depth"] in depths[row["model"], row["lens"]]]:
            show(console, rows)
    for choice in document["choices"]:
        line = f"{choice['model']}, {choice['lens']}, {choice['task']}: with labels on one half, m = {choice['chosen']}; "
        plain = is_logit(document["models"][choice["model"]]["lenses"][choice["lens"]])
        line += f"on the other half its rho is {spell_rho(choice['held_out'])}, "
        line += f"that of {'the logit lens' if plain else 'm = 0'} {spell_rho(choice['logit'])}"
        console.print(make_safe(line, 200))
    for line in (*describe_losses(document), *describe_lenses(document)):
        console.print(make_safe(line, 400))
    console.print(make_safe(f"Ω: mean share of the final confidence still missing before state L − m. Kept in {folder}", 400))


def _show_groups(console: Console, groups: Sequence[Mapping[str, Any]], title: str, depth: int) -> None:
    table = Table(title=make_safe(title, 200), title_justify="left")
    for column in ("task", "level", "n", "accuracy", "confidence", "Ω [95 %]", "if correct", "struggle", "commit"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for number, group in enumerate(groups):
        if number and group["task"] != groups[number - 1]["task"]:
            table.add_section()
        effort, key = group["effort"][str(depth)], str(depth)
        cells: list[Any] = [make_safe(group["task"]), spell_whole(group["level"]), str(group["n"])]
        cells += [spell(group["accuracy"]), spell(group["confidence"])]
        cells.append(f"{spell(effort['mean'])} [{spell(effort['low'])}, {spell(effort['high'])}]")
        cells.append(spell(group["correct"]["effort"][key]["mean"]))
        cells += [spell(group[measure][key]["mean"], 1) for measure in ("struggle", "commit")]
        table.add_row(*map(spell_cell, cells))
    console.print(table)


def _show_contrasts(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Easy against hard: one line per model, lens, contrast and depth."""
    table = Table(title="Is the hard side more effort? Ω, hard − easy [95 %]", title_justify="left")
    for name in (
        "model",
        "lens",
        "contrast",
        "m",
        "Ω easy",
        "Ω hard",
        "hard − easy",
        "AUROC",
        "p (Holm)",
        "if correct",
        "at matched\nconfidence",
    ):
        table.add_column(name, justify="left" if name in ("model", "lens", "contrast") else "right")
    for row in rows:
        cells: list[Any] = [make_safe(row[name]) for name in ("model", "lens", "contrast")]
        cells += [
            str(row["depth"]),
            spell(row["easy"]["mean"]),
            spell(row["hard"]["mean"]),
            spell_interval(row["difference"]),
        ]
        cells += [spell_interval(row["auroc"]), f"{spell(row['p'], 4)} ({spell(row['p_holm'], 4)})"]
        cells += [spell_interval(row["correct"]), spell_interval(row["matched"]["confidence"])]
        table.add_row(*map(spell_cell, cells))
    console.print(table)


def _show_trends(console: Console, trends: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title="Does effort follow the level? Spearman's rho [95 %]", title_justify="left")
    several = len({(trend["model"], trend["lens"]) for trend in trends}) > 1
    names = ("task", "m", "all", "if correct", "confidence\ntaken out", "at matched\nconfidence", "length\ntaken out")
    for name in (*(("model", "lens") if several else ()), *names):
        table.add_column(name, justify="left" if name in ("task", "model", "lens") else "right")
    for number, trend in enumerate(trends):
        if number and trend["task"] != trends[number - 1]["task"]:
            table.add_section()
        partial = trend["partial"]
        columns = (trend, trend["correct"], partial["confidence"], trend["matched"]["confidence"], partial["length"])
        labels = [make_safe(trend[name]) for name in (("model", "lens", "task") if several else ("task",))]
        table.add_row(*labels, str(trend["depth"]), *map(spell_rho, columns))
    console.print(table)


def show_plan(console: Console, plan: Mapping[str, Any]) -> None:
    """What a study would cost: its cells, what each model needs, and the sums."""
    table = Table(title="What would be read", title_justify="left")
    for name in ("model", "lens", "task", "m", "samples", "tokens", "read", "PFLOP", "time", "on disk"):
        table.add_column(name, justify="left" if name in ("model", "lens", "task") else "right")
    for cell in plan["cells"]:
        depths = ", ".join(map(str, cell["focal_depths"]))
        cells: list[Any] = [make_safe(cell[name]) for name in ("model", "lens", "task")]
        cells += [depths, f"{cell['samples']:,}", f"{cell['tokens']:,}", f"{cell['answer_tokens']:,}"]
        cells += [f"{cell['flops'] / 1e15:.3g}", spell_duration(cell["seconds"]), spell_size(cell["disk_bytes"])]
        table.add_row(*map(spell_cell, cells))
    console.print(table)
    table = Table(title="What a replica of each model needs, per device", title_justify="left")
    for name in ("model", "parameters", "layers", "dtype", "device", "weights", "memory", "most of it", "fits", "timed on"):
        table.add_column(name, justify="left" if name in ("model", "timed on") else "right")
    for model in plan["models"]:
        if model["refused"]:
            console.print(make_safe(f"{model['model']} cannot be planned: {model['refused']}", 400))
            continue
        fits = "-" if model["fits"] is None else f"{'yes' if model['fits'] else 'no'}, of {spell_size(model['device_bytes'])}"
        cells = [make_safe(model["model"]), f"{model['parameters']:,}", str(model["layers"]), model["dtype"]]
        cells += [
            f"{model['devices']} × {model['device']}",
            spell_size(model["weights_bytes"]),
            spell_size(model["memory_bytes"]),
        ]
        cells += [model["largest_memory"], fits, make_safe(model["timed_on"] or "-")]
        table.add_row(*map(spell_cell, cells))
    console.print(table)
    total = f"{plan['samples']:,} samples, {plan['tokens']:,} tokens, {plan['flops'] / 1e15:.3g} PFLOP, "
    total += f"{spell_duration(plan['seconds'])} with {plan['workers']} at work, {spell_size(plan['disk_bytes'])} on disk."
    for line in (total, *(f"Note: {note}." for note in plan["notes"])):
        console.print(make_safe(line, 400))
