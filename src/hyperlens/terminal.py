"""What the command line shows: tables and small drawings, with all that comes from texts and models made harmless."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hyperlens.neighbours import NUMBERS, pool_neighbours
from hyperlens.runs.caveats import describe_lens, describe_lenses, describe_losses, find_foreign, is_logit, pick_headline
from hyperlens.trajectory import Trajectory, measure_effort

BLOCKS = "▁▂▃▄▅▆▇█"
MOST_TOKENS = 60


def make_safe(text: object, most: int = 60) -> Text:
    """`text` as it is, but for control characters, which are spelled out; no markup, at most `most` characters."""
    spelled = "".join(
        {"\n": "⏎", "\t": "⇥"}.get(sign, sign) if sign.isprintable() or sign in "\n\t" else f"\\u{ord(sign):04x}"
        for sign in str(text)
        if unicodedata.category(sign) != "Cs"
    )
    return Text(spelled if len(spelled) <= most else spelled[: most - 1] + "…")


def draw_line(values: Sequence[float] | np.ndarray) -> str:
    """Values in [0, 1] as one block each, lowest to highest; a dot where there is none.

    >>> draw_line([0.0, 0.5, 1.0])
    '▁▅█'
    """
    return "".join("·" if np.isnan(value) else BLOCKS[int(min(max(value, 0.0), 1.0) * 7 + 0.5)] for value in values)


def show_certificate(console: Console, name: str, certificate: Mapping[str, Any]) -> None:
    """What was proved of a model."""
    table = Table(show_header=False, title=make_safe(name), title_justify="left", box=None)
    for key, value in certificate.items():
        shown = ", ".join(value) if isinstance(value, list | tuple) else f"{value:.2g}" if isinstance(value, float) else value
        table.add_row(key.replace("_", " "), make_safe("-" if shown is None else shown, 400))
    console.print(table)


def show_trajectory(console: Console, trajectory: Trajectory) -> None:
    """One line per token that was read: what follows it, and the drawing, effort and commit state at each focal depth."""
    measured = measure_effort(trajectory)
    confidence = trajectory.to_numpy("probability")
    data = trajectory.data
    bounds = np.searchsorted(data["sample"].values, np.arange(len(trajectory.samples) + 1))
    for number, text in enumerate(trajectory.samples["text"]):
        mine = range(bounds[number], bounds[number + 1])
        table = Table(title=make_safe(text, 100), title_justify="left")
        for name in ("position", "token", "y", "p(y)"):
            table.add_column(name, justify="right" if name in ("position", "p(y)") else "left")
        for depth in trajectory.focal_depths:
            table.add_column(f"m = {depth}, states 0…{trajectory.layers}", no_wrap=True)
            table.add_column("Ω", justify="right")
            table.add_column("commit", justify="right")
        for token in mine[:MOST_TOKENS]:
            cells: list[Any] = [str(data["position"].values[token])]
            cells += [make_safe(data[name].values[token], 20) for name in ("token_text", "reference_text")]
            cells.append(_number(confidence[token, 0, -1]))
            for place in range(len(trajectory.focal_depths)):
                cells.append(draw_line(confidence[token, place]))
                cells += [_number(measured["effort"].values[token, place]), _whole(measured["commit"].values[token, place])]
            table.add_row(*cells)
        if len(mine) > MOST_TOKENS:
            table.caption = f"and {len(mine) - MOST_TOKENS} more tokens; --json or --out give them all"
        console.print(table)
    if others := [name for name in trajectory.manifest["readings"] if name != "probability"]:
        console.print(f"Drawn is the probability; {', '.join(others)}: see --json or --out.", highlight=False)
    _show_lens(console, trajectory.manifest["model"], trajectory.manifest["lens"])
    _show_resolution(console, trajectory.manifest["lens"]["auto"])


def _show_lens(console: Console, model: Mapping[str, Any], lens: Mapping[str, Any]) -> None:
    """What was read with, where that is not HyperLens alone."""
    if describe_lens(lens) != f"context {lens['context']}":
        console.print(make_safe(f"Lens: {describe_lens(lens)}.", 400))
    for line in find_foreign(model["name"], model, lens["name"], lens):
        console.print(make_safe(line, 400))


def show_neighbours(console: Console, trajectory: Trajectory) -> None:
    """Other people's numbers: their mean over the texts at each focal depth, whose each is, and what was not read."""
    pooled = pool_neighbours(trajectory)
    texts = len(trajectory.samples)
    table = Table(title=f"Neighbours' numbers, mean of {texts} text{'s' * (texts > 1)}", title_justify="left")
    for column in ("number", "unit", "source"):
        table.add_column(column)
    for depth in trajectory.focal_depths:
        table.add_column(f"m = {depth}", justify="right")
    for name, number in NUMBERS.items():
        if name in pooled:
            values = pooled[name].values
            means = [column[~np.isnan(column)] for column in values.T]
            cells = [_number(float(known.mean()) if len(known) else None) for known in means]
            table.add_row(name.replace("_", " "), number.unit, number.source, *cells)
    console.print(table)
    for name, reading in pooled.attrs["missing"].items():
        console.print(f"Left out: {name.replace('_', ' ')}, which needs the reading {reading}.", highlight=False)


def _show_resolution(console: Console, auto: Mapping[str, Any] | None) -> None:
    """How an automatic choice of the focal depth came about."""
    if auto is None:
        return
    sweep = ", ".join(
        f"m = {depth}: {'-' if row['resolution'] is None else format(row['resolution'], '.2f')}"
        for depth, row in auto["candidates"].items()
    )
    console.print(
        f"Focal depth {auto['chosen']} has the highest resolution (effective steps of the trajectory, "
        f"{auto['positions']} positions: {sweep}).",
        highlight=False,
    )


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
            _show_resolution(console, chosen["auto"])
    depths = {
        (name, lens): pick_headline(one) for name, model in document["models"].items() for lens, one in model["lenses"].items()
    }
    for kind, show in (("contrasts", _show_contrasts), ("trends", _show_trends)):
        if rows := [row for row in document[kind] if row["depth"] in depths[row["model"], row["lens"]]]:
            show(console, rows)
    for choice in document["choices"]:
        line = f"{choice['model']}, {choice['lens']}, {choice['task']}: with labels on one half, m = {choice['chosen']}; "
        plain = is_logit(document["models"][choice["model"]]["lenses"][choice["lens"]])
        line += f"on the other half its rho is {_rho(choice['held_out'])}, "
        line += f"that of {'the logit lens' if plain else 'm = 0'} {_rho(choice['logit'])}"
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
        cells: list[Any] = [make_safe(group["task"]), _whole(group["level"]), str(group["n"])]
        cells += [_number(group["accuracy"]), _number(group["confidence"])]
        cells.append(f"{_number(effort['mean'])} [{_number(effort['low'])}, {_number(effort['high'])}]")
        cells.append(_number(group["correct"]["effort"][key]["mean"]))
        cells += [_number(group[measure][key]["mean"], 1) for measure in ("struggle", "commit")]
        table.add_row(*map(_cell, cells))
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
        cells += [str(row["depth"]), _number(row["easy"]["mean"]), _number(row["hard"]["mean"]), _interval(row["difference"])]
        cells += [_interval(row["auroc"]), f"{_number(row['p'], 4)} ({_number(row['p_holm'], 4)})"]
        cells += [_interval(row["correct"]), _interval(row["matched"]["confidence"])]
        table.add_row(*map(_cell, cells))
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
        table.add_row(*labels, str(trend["depth"]), *map(_rho, columns))
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
        cells += [f"{cell['flops'] / 1e15:.3g}", _duration(cell["seconds"]), _size(cell["disk_bytes"])]
        table.add_row(*map(_cell, cells))
    console.print(table)
    table = Table(title="What a replica of each model needs, per device", title_justify="left")
    for name in ("model", "parameters", "layers", "dtype", "device", "weights", "memory", "most of it", "fits", "timed on"):
        table.add_column(name, justify="left" if name in ("model", "timed on") else "right")
    for model in plan["models"]:
        if model["refused"]:
            console.print(make_safe(f"{model['model']} cannot be planned: {model['refused']}", 400))
            continue
        fits = "-" if model["fits"] is None else f"{'yes' if model['fits'] else 'no'}, of {_size(model['device_bytes'])}"
        cells = [make_safe(model["model"]), f"{model['parameters']:,}", str(model["layers"]), model["dtype"]]
        cells += [f"{model['devices']} × {model['device']}", _size(model["weights_bytes"]), _size(model["memory_bytes"])]
        cells += [model["largest_memory"], fits, make_safe(model["timed_on"] or "-")]
        table.add_row(*map(_cell, cells))
    console.print(table)
    total = f"{plan['samples']:,} samples, {plan['tokens']:,} tokens, {plan['flops'] / 1e15:.3g} PFLOP, "
    total += f"{_duration(plan['seconds'])} with {plan['workers']} at work, {_size(plan['disk_bytes'])} on disk."
    for line in (total, *(f"Note: {note}." for note in plan["notes"])):
        console.print(make_safe(line, 400))


def show_training(console: Console, row: Mapping[str, Any], steps: int) -> None:
    """One line of a training: how far it is, its loss, the time left, and the accuracies of each domain, level by level."""
    domains: dict[str, list[str]] = {}
    for cell, accuracy in row.items():
        task, slash, level = cell.partition("/")
        if slash and level.isdigit():
            domains.setdefault(task, []).append(f"{accuracy:.2f}")
    left = str(timedelta(seconds=row["seconds_left"]))
    accuracies = "  ".join(f"{task} {' '.join(values)}" for task, values in domains.items())
    console.print(
        make_safe(f"step {row['step']} of {steps}  loss {row['loss']:.3f}  {left} left  {accuracies}", 400), soft_wrap=True
    )


def show_evaluation(console: Console, document: Mapping[str, Any]) -> None:
    """Lenses side by side: how near each is to the model's output at what cost, state by state, and how its effort follows the
    levels of each task."""
    inputs, layers, common = document["inputs"], document["model"]["layers"], document["common_states"]
    about = f"{document['model']['name']}, {inputs['tokens']} tokens of {inputs['texts']} texts"
    table = Table(title=make_safe(f"How near to the output? ({about})", 200), title_justify="left")
    names = ("m", "KL [95 %]", "bias", "next-token\nloss", "KL of\nanswers", "KL, all\nits states", "prediction\ndepth")
    table.add_column("lens")
    for name in (*names, "resolution", "Ω", "passes", "time", "read-outs"):
        table.add_column(name, justify="right")
    table.add_column(f"KL, states 0…{layers}", no_wrap=True)
    highest = max(np.log1p(row["by_state"]["kl"]).max() for row in document["rows"])
    for row in document["rows"]:
        near, cost = row["common"], row["cost"]
        cells: list[Any] = [make_safe(_name_lens(row)), str(row["focal_depth"]), _interval(near["kl"])]
        cells += [_number(near[name]) for name in ("bias", "next_token_loss")]
        cells += [_number(value["value"]) for value in (row["answer_kl"], row["inner"]["kl"], row["prediction_depth"])]
        cells += [_number(row["resolution"]["value"]), _number(row["effort"]["value"]), _number(cost["passes"])]
        cells += [_number(cost["measured"]), str(cost["readouts"]), draw_line(np.log1p(row["by_state"]["kl"]) / highest)]
        table.add_row(*map(_cell, cells))
    console.print(table)
    _show_separation(console, document["rows"])
    loss = _number(document["output"]["next_token_loss"])
    note = f"KL, bias and next-token loss in nats, over states 0…{common - 1}, which every row can change; the model's own "
    note += f"loss is {loss}. Passes and time are by those of one plain pass. Drawn: ln(1 + KL)."
    console.print(make_safe(note, 500))
    for source in document.get("sources", ()):
        console.print(make_safe(_describe_source(source), 500))


def _describe_source(source: Mapping[str, Any]) -> str:
    """How much of a source was read, what its intervals draw, and which lenses had been trained on it."""
    counted = f"{source['read']} of {source['texts']} {source['unit']}s of {source['name']}"
    seen = "".join(f"; {name} was trained on it" for name in source["trained_on_it"])
    return f"Read: {counted}, each drawn as a whole for the intervals{seen}."


def _name_lens(row: Mapping[str, Any]) -> str:
    """A lens by its name, and what else decides what it reads."""
    lens = row["lens"]
    context = f", {lens['context']}" if row["focal_depth"] else ""
    between = f", between {', '.join(map(str, lens['between']))}" if lens["between"] else ""
    transfer = f", lens of {lens['origin']['model']}" if lens.get("transfer") else ""
    return f"{row['name']}{context}{between}{transfer}"


def _show_separation(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """How the effort of each lens follows the levels of each task, where there are levels."""
    tasks = [part["task"] for part in rows[0]["separation"]]
    table = Table(title="Does its effort follow the level? Spearman's rho [95 %]", title_justify="left")
    for name in (
        "task",
        "lens",
        "m",
        "all its states",
        "common states",
        "at matched\nconfidence",
        "AUROC, hardest\nv. easiest",
    ):
        table.add_column(name, justify="left" if name in ("task", "lens") else "right")
    for number, task in enumerate(tasks):
        table.add_section()
        for row in rows:
            part = row["separation"][number]
            columns = [_interval(part[name]) for name in ("rho", "common", "matched", "auroc")]
            table.add_row(make_safe(task), make_safe(_name_lens(row)), str(row["focal_depth"]), *columns)
    if tasks:
        console.print(table)


def show_lens_training(console: Console, row: Mapping[str, Any], steps: int) -> None:
    """One line of the training of a lens: how far it is, and the mean KL over the states in training and in validation."""
    validation = sum(row["validation"]) / len(row["validation"])
    line = f"step {row['step']} of {steps}  KL {_number(row['loss'], 4)} in training, {_number(validation, 4)} in validation"
    left = "" if row["seconds_left"] is None else f"  {timedelta(seconds=row['seconds_left'])} left"
    console.print(make_safe(line + left, 400), soft_wrap=True, highlight=False)


def show_tuning(console: Console, result: Mapping[str, Any]) -> None:
    """What the translators do for each state on the validation part, and where they are kept."""
    console.print("KL from the model's output in nats, mean over the tokens of the validation part")
    table = Table()
    for name in ("state", "logit lens", "tuned lens", "share left"):
        table.add_column(name, justify="right")
    for state, (logit, tuned) in enumerate(zip(result["logit"], result["tuned"], strict=True)):
        share = _number(tuned / logit) if logit else "-"
        table.add_row(str(state), _number(logit, 4), _number(tuned, 4), share)
    console.print(table)
    console.print(make_safe(f"Lens: {result['lens']}", 400))


def show_anomalies(console: Console, document: Mapping[str, Any], top: int) -> None:
    """How well each score tells groups of samples from normal ones, and the oddest samples of all."""
    normal, methods = document["normal"], document["settings"]["methods"]
    title = f"Odd beside {', '.join(normal['tasks'])}? AUROC [95 %]; fitted on {normal['fitted']} samples"
    table = Table(title=make_safe(f"{title}, compared with {normal['held_out']} others", 200), title_justify="left")
    simple = [name for name in ("mahalanobis", "confidence", "length") if name not in methods]
    for name in ("samples", "n", *methods, *simple):
        table.add_column(name, justify="left" if name == "samples" else "right")
    rows = [(group["group"], str(group["n"]), group["auroc"]) for group in document["groups"]]
    if labels := document.get("labels"):
        rows.append(("odd by their labels", f"{labels['odd']} of {labels['odd'] + labels['others']}", labels["auroc"]))
    for name, count, auroc in rows:
        table.add_row(make_safe(name), count, *(_interval(auroc[score]) for score in (*methods, *simple)))
    console.print(table)
    note = "Beside them: mahalanobis, the distance from the normal mean; missing confidence alone; unusual length alone."
    console.print(note, highlight=False)
    if labels and labels["unmatched"]:
        console.print(f"Labels that are of no sample that was scored: {labels['unmatched']}.", highlight=False)
    _show_odd_samples(console, document["samples"], methods[0], top)


def _show_odd_samples(console: Console, samples: Sequence[Mapping[str, Any]], method: str, top: int) -> None:
    """The samples that score highest, and how many could not be scored."""
    known = [row for row in samples if not np.isnan(row["scores"][method])]
    table = Table(title=make_safe(f"The oddest by {method}"), title_justify="left")
    for name in ("score", "samples", "id", "text"):
        table.add_column(name, justify="right" if name == "score" else "left")
    for row in sorted(known, key=lambda row: -row["scores"][method])[:top]:
        labels = map(make_safe, (row["group"], row["id"]))
        table.add_row(_number(row["scores"][method], 3), *labels, make_safe(row["text"], 100))
    if table.row_count:
        console.print(table)
    if lost := len(samples) - len(known):
        console.print(f"{lost} samples have a reading that is not finite and were not scored.", highlight=False)


def _cell(value: Any) -> Text:
    return value if isinstance(value, Text) else Text(str(value))


def _duration(seconds: float | int | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def _size(count: float | int | None) -> str:
    """Bytes as people say them."""
    if count is None:
        return "-"
    power = min(4, max(0, (len(str(int(count))) - 1) // 3))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _number(value: float | np.floating | None, digits: int = 2) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.{digits}f}"


def _interval(value: Mapping[str, Any]) -> str:
    return f"{_number(value['value'])} [{_number(value['low'])}, {_number(value['high'])}]"


def _rho(value: Mapping[str, Any]) -> str:
    return f"{_number(value['rho'])} [{_number(value['low'])}, {_number(value['high'])}]"


def _whole(value: int | float | np.floating | None) -> str:
    return "-" if value is None or np.isnan(value) else str(int(value))
