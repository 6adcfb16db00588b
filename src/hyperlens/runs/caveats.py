"""What weakens a run's results, found from their numbers and said in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

UNKNOWN = 0.01
"""A larger share of tokens unknown to a vocabulary is said."""
Row = Mapping[str, Any]

FEW_SAMPLES = 30
LENGTHS_DIFFER = 1.1
"""Ratio of mean numbers of tokens from which lengths count as unequal."""
SHARES_DIFFER = 0.1
"""Difference of mean accuracy or confidence from which it counts as unequal."""
SATURATED, UNSURE = 0.99, 0.1
FEW_STATES = 4
MOST_NAMED = 5


def pick_headline(lens: Row) -> tuple[int, ...]:
    """The focal depths that tables show: the one chosen by resolution with m = 0 beside it, or all that were asked for."""
    return tuple(lens["focal_depths"] if lens["auto"] is None else lens["auto"]["beside"])


def pick_main(lens: Row) -> int:
    """The one focal depth that stands for a model where there is room for one: that chosen by resolution, or the deepest."""
    return max(lens["focal_depths"]) if lens["auto"] is None else lens["auto"]["chosen"]


def is_logit(lens: Row) -> bool:
    """Whether focal depth 0 of a lens is the logit lens: it has no translators, and no layers in between."""
    return lens.get("name") != "tuned" and not lens.get("between")


def describe_lens(lens: Row) -> str:
    """What a lens is, by what a run or a trajectory keeps of it.

    >>> describe_lens({"name": "tuned", "origin": {"model": "reference"}, "context": "jump", "between": [3, 7]})
    'tuned lens of reference, context jump, by way of layers 3, 7'
    """
    if lens.get("name") == "logit":
        return "logit lens"
    parts = [f"tuned lens of {lens['origin']['model']}"] if lens.get("name") == "tuned" else []
    between = [f"by way of {_name_layers(lens['between'])}"] if lens.get("between") else []
    return ", ".join([*parts, f"context {lens['context']}", *between])


def describe_lenses(results: Row) -> list[str]:
    """One sentence for each thing that sets a lens apart from HyperLens and the logit lens, and for their efforts together."""
    found = [
        sentence
        for name, model in results["models"].items()
        for lens, document in model["lenses"].items()
        for sentence in find_foreign(name, model, lens, document)
    ]
    kinds = {describe_lens(lens) for model in results["models"].values() for lens in model["lenses"].values()}
    if len(kinds) > 1:
        found.append("Each lens has its own Ω: compare what contrasts and trends say through different lenses, never Ω itself.")
    return found


def find_foreign(name: str, model: Row, called: str, lens: Row) -> Iterator[str]:
    """One sentence for each thing of a lens that a reader of a model's results should know."""
    origin = lens.get("origin")
    if origin and origin["fingerprint"] is None:
        tells = "transfer was asked for, so that nothing tells" if lens["transfer"] else "nothing tells"
        if not lens["transfer"] and origin.get("unembedding"):
            tells = "only a hash of the unembedding tells"
        yield f"The translators of {called} name {origin['model']} as their model; {tells} that they fit {name}."
    elif origin and lens["transfer"] and origin["fingerprint"] != model["fingerprint"]:
        yield (
            f"{name} is read with the lens of another model: the translators of {called} were trained for {origin['model']}, "
            "so that what it shows is about both."
        )
    others = [depth for depth in lens["focal_depths"] if origin and depth != origin["focal_depth"]]
    if origin and others:
        yield (
            f"The translators of {called} were trained at m = {origin['focal_depth']}; at m = {_join(others)} {name} reads "
            "what they give through layers that they were not trained for."
        )
    if lens.get("between"):
        yield (
            f"Through the lens {called}, states of {name} pass {_name_layers(lens['between'])} on their way to the deepest "
            "ones, where these come after them."
        )


def _name_layers(numbers: Sequence[int]) -> str:
    return f"layer{'s' * (len(numbers) > 1)} {_join(numbers)}"


def find_caveats(results: Row, floors: Mapping[str, float] | None = None) -> list[str]:
    """One sentence for each thing that weakens what a run's `results` say, the gravest first; none where there is none.

    `floors` is the accuracy that guessing reaches in a task, by its name: 0 where it is not given.
    """
    finders = (
        describe_losses(results),
        describe_lenses(results),
        _find_unknown(results),
        _find_undefined(results),
        _find_few_samples(results),
        _find_few_states(results),
        _find_guessing(results, floors or {}),
        _find_confidence(results),
        _find_uneven_groups(results),
        _find_uneven_sides(results),
        _find_other_depths(results),
        _find_comparisons(results),
    )
    return [sentence for found in finders for sentence in found]


def _find_unknown(results: Row) -> list[str]:
    """Models that read a task in a vocabulary which has no words for it."""
    cells: dict[tuple[str, str], float] = {}
    for group in results["groups"]:
        place = (group["model"], group["task"])
        cells[place] = max(cells.get(place, 0.0), group["unknown"] or 0.0)
    strange = {place: share for place, share in cells.items() if share > UNKNOWN}
    named = [f"in {task} {100 * share:.0f} % of the tokens that {model} reads" for (model, task), share in strange.items()]
    about = "so that effort there is much about the sign that stands for them"
    return [f"Unknown to the vocabulary are {'; '.join(named)}, {about}."] if named else []


def describe_losses(results: Row) -> list[str]:
    """One sentence each for models refused, rows and samples left out, texts cut, and batches made smaller."""
    skipped, first = results["skipped"], results["skipped"]["first"]
    lines = [f"{name} was left out: {reason}." for name, reason in results["refused"].items()]
    if skipped["rows"]:
        lines.append(f"{skipped['rows']} rows gave no sample; the first, {first[0]['row']}: {first[0]['reason']}.")
    if skipped["samples"]:
        one = next((loss for loss in first if "sample" in loss), None)
        example = f"; the first, {one['id']}, by {one['model']}: {one['reason']}" if one else ""
        lines.append(f"{skipped['samples']} samples could not be read{example}.")
    if results["cut"]:
        lines.append(f"{results['cut']} texts were longer than their model's context and lost their first tokens.")
    if results["smaller_batches"]:
        lines.append(f"Memory did not suffice for the batches of {results['smaller_batches']} shards, which were made smaller.")
    for one in results["unread"]:
        lines.append(f"Of {one['task']}, {one['model']} could read no sample at all, so that it is not in the tables.")
    if len(results["versions"]) > 1:
        versions = "; ".join(results["versions"])
        lines.append(f"Shards were measured with different versions, so that last digits may differ: {versions}.")
    return lines


def _find_undefined(results: Row) -> Iterator[str]:
    """Samples without an effort, at each depth that tables show."""
    counts: dict[tuple[str, int], int] = {}
    for group in results["groups"]:
        for depth in _headline(results, group):
            place = (group["lens"], depth)
            counts[place] = counts.get(place, 0) + group["undefined"][str(depth)]
    several = len({lens for lens, _ in counts}) > 1
    for (lens, depth), count in sorted(counts.items()):
        if count:
            where = f" (lens {lens})" if several else ""
            yield f"At m = {depth}{where} the effort of {count} samples is undefined; they are left out of its means."


def _find_few_samples(results: Row) -> Iterator[str]:
    few = dict.fromkeys(_name_group(group) for group in results["groups"] if group["n"] < FEW_SAMPLES)
    if few:
        yield f"Fewer than {FEW_SAMPLES} samples, so that intervals are wide: {_list_some(few)}."
    for row in _each_contrast(results):
        if min(row["easy"]["n"], row["hard"]["n"]) < 2:
            yield f"{row['contrast']} ({row['model']}): a side has fewer than two samples with an effort; nothing is compared."


def _find_few_states(results: Row) -> Iterator[str]:
    for name, model in results["models"].items():
        depths = {depth for lens in model["lenses"].values() for depth in pick_headline(lens)}
        few = sorted(depth for depth in depths if model["layers"] - depth < FEW_STATES)
        if few:
            yield (
                f"{name} has {model['layers']} layers, so at m = {_join(few)} fewer than {FEW_STATES} states are left to read; "
                "effort is coarse there."
            )


def _find_guessing(results: Row, floors: Mapping[str, float]) -> Iterator[str]:
    """Tasks in which a model answers no better than by guessing."""
    found: dict[str, list[str]] = {}
    for (model, _, task), rows in _by_cell(results).items():
        known = [row for row in rows if row["accuracy"] is not None]
        if not known:
            continue
        reached = [row["accuracy"] if (low := row["accuracy_interval"]["low"]) is None else low for row in known]
        if all(share <= floors.get(task, 0.0) for share in reached):
            found.setdefault(task, []).append(model)
    alike: dict[tuple[str, ...], list[str]] = {}
    for task, models in found.items():
        guess = f" (guessing gives {floors[task]:.2f})" if floors.get(task) else ""
        alike.setdefault(tuple(dict.fromkeys(models)), []).append(f"{task}{guess}")
    for models, tasks in alike.items():
        verb = "is" if len(models) == 1 else "are"
        yield (
            f"{_list_some(tasks, most=8)}: {_list_some(models)} {verb} not right more often than by guessing, "
            "so that effort there is that of answers which are mostly wrong."
        )


def _find_confidence(results: Row) -> Iterator[str]:
    """Models whose final confidence is as good as 1 everywhere, or hardly there."""
    by_model: dict[str, list[Row]] = {}
    for group in results["groups"]:
        if group["confidence"] is not None:
            by_model.setdefault(group["model"], []).append(group)
    for model, rows in by_model.items():
        if all(row["confidence"] > SATURATED for row in rows):
            yield (
                f"{model}: final confidence is above {SATURATED} in every group: they are matched in it, and it says nothing "
                "of difficulty."
            )
        elif low := [row for row in rows if row["confidence"] < UNSURE]:
            names = dict.fromkeys(_name_group(row) for row in low)
            yield (
                f"{model}: final confidence is below {UNSURE} on average in {_list_some(names)}; effort there is the share "
                "still missing of very little."
            )


def _find_uneven_groups(results: Row) -> Iterator[str]:
    """Tasks whose levels differ in length or accuracy; said once, by the model in which they differ most."""
    tokens: dict[str, tuple[float, float]] = {}
    accuracies: dict[str, tuple[float, float]] = {}
    for (_, _, task), rows in _by_cell(results).items():
        _keep_widest(tokens, task, [row["tokens"] for row in rows], lambda low, high: high / low if low else 1.0)
        _keep_widest(accuracies, task, [row["accuracy"] for row in rows], lambda low, high: high - low)
    for task, (low, high) in tokens.items():
        if high > LENGTHS_DIFFER * low:
            yield (
                f"{task}: texts have {low:.0f} to {high:.0f} tokens on average, depending on the level; see the trends with "
                "length taken out."
            )
    for task, (low, high) in accuracies.items():
        if high - low > SHARES_DIFFER:
            yield (
                f"{task}: accuracy goes from {high:.2f} down to {low:.2f}, so that right and wrong answers mix differently at "
                "each level; see the columns of correct answers alone."
            )


def _find_uneven_sides(results: Row) -> Iterator[str]:
    """Contrasts whose sides differ in something else than difficulty; said once, by the model in which they differ most."""
    unequal: dict[str, tuple[str, dict[str, tuple[float, float, str]]]] = {}
    for row in _each_contrast(results):
        sides = f"{row['easy_task']} and {row['hard_task']}"
        _, found = unequal.setdefault(row["contrast"], (sides, {}))
        for what in ("tokens", "read", "accuracy", "confidence"):
            easy, hard = row["easy"][what], row["hard"][what]
            if easy is None or hard is None or not _differ(what, easy, hard):
                continue
            if what not in found or abs(hard - easy) > abs(found[what][1] - found[what][0]):
                found[what] = (easy, hard, row["model"])
    names = {"tokens": "tokens of text", "read": "answer tokens", "accuracy": "accuracy", "confidence": "final confidence"}
    for contrast, (_, found) in unequal.items():
        if found:
            said = "; ".join(
                f"{names[what]} {_figure(what, easy)} against {_figure(what, hard)} ({model})"
                for what, (easy, hard, model) in found.items()
            )
            yield f"{contrast}: easy and hard also differ in {said}; see the difference among samples that are alike."


def _find_other_depths(results: Row) -> Iterator[str]:
    depths: dict[str, dict[str, int]] = {}
    for name, model in results["models"].items():
        for lens, document in model["lenses"].items():
            depths.setdefault(lens, {})[name] = pick_main(document)
    for lens, chosen in depths.items():
        if len(set(chosen.values())) > 1:
            said = _list_some([f"{name} m = {depth}" for name, depth in chosen.items()], most=8)
            where = f" (lens {lens})" if len(depths) > 1 else ""
            yield f"Models are read at different focal depths{where}: {said}. Compare their contrasts, never Ω itself."


def _find_comparisons(results: Row) -> Iterator[str]:
    compared = {row["lens"]: row["compared"] for row in results["contrasts"]}
    for lens, count in compared.items():
        if count > 1:
            where = f" through the lens {lens}" if len(compared) > 1 else ""
            yield (
                f"{count} comparisons of easy and hard were made{where}: of so many, {_expect(count)} would have an interval "
                "that excludes 0 by chance alone. Go by p (Holm), which is adjusted for all of them."
            )
    trends = [row for row in results["trends"] if row["depth"] in _headline(results, row)]
    if len(trends) > 1:
        yield (
            f"{len(trends)} trends over levels are shown, {_expect(len(trends))} of which would exclude 0 by chance alone; "
            "their intervals are not adjusted for that."
        )
    if any(row["cells"] > 1 for row in results["signs"]):
        yield "The sign test takes its cells as independent; those of one model, or of one contrast, are not quite."


def _headline(results: Row, row: Row) -> tuple[int, ...]:
    return pick_headline(results["models"][row["model"]]["lenses"][row["lens"]])


def _each_contrast(results: Row) -> Iterator[Row]:
    """One row of each model, lens and contrast: that of the main depth."""
    for row in results["contrasts"]:
        if row["depth"] == pick_main(results["models"][row["model"]]["lenses"][row["lens"]]):
            yield row


def _by_cell(results: Row) -> dict[tuple[str, str, str], list[Row]]:
    cells: dict[tuple[str, str, str], list[Row]] = {}
    for group in results["groups"]:
        cells.setdefault((group["model"], group["lens"], group["task"]), []).append(group)
    return cells


def _keep_widest(found: dict[str, tuple[float, float]], task: str, values: Sequence[float | None], measure: Any) -> None:
    """Keep the range of the values if it is the widest of its task, as measured."""
    known = [value for value in values if value is not None]
    if known and (task not in found or measure(min(known), max(known)) > measure(*found[task])):
        found[task] = (min(known), max(known))


def _differ(what: str, easy: float, hard: float) -> bool:
    if what in ("tokens", "read"):
        return max(easy, hard) > LENGTHS_DIFFER * min(easy, hard)
    return abs(hard - easy) > SHARES_DIFFER


def _figure(what: str, value: float) -> str:
    return f"{value:.1f}" if what in ("tokens", "read") else f"{value:.2f}"


def _expect(count: int) -> str:
    """How many of so many 95 % intervals miss by chance, as a number in words."""
    return f"about {count * 0.05:.0f}" if count >= 30 else "one or two" if count >= 15 else "perhaps one"


def _name_group(group: Row) -> str:
    return group["task"] if group["level"] is None else f"{group['task']} level {group['level']}"


def _list_some(names: Iterable[str], most: int = MOST_NAMED) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def _join(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))
