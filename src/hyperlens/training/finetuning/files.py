"""Files of examples: rows with a prompt and a target, or with the messages of a chat."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hyperlens.errors import InputError
from hyperlens.tasks import Sample, TaskSpec
from hyperlens.tasks.own import put_rows
from hyperlens.tasks.rows import read_rows


def read_examples(file: Path, chat: bool = False) -> list[Sample]:
    """The samples of a .jsonl, .json, .csv or .parquet file, or of a folder's `train` file.

    A row has the columns of own data, as a study reads them: `prompt` (or `text`) and `target` (or `completion`), and
    optionally `options`, `gold` and `level`; with `chat` it goes through the model's chat template. Or it has `messages`, a
    chat whose last turn is what is to be learned. Raises InputError where a row has neither, and for what a sample cannot hold.
    """
    rows = read_rows(file, "train", any_split=True)
    if not rows:
        raise InputError(f"{file} holds no examples; give one per line or row, with a prompt and a target")
    make, name = put_rows(TaskSpec(file.stem), file if file.is_dir() else file.parent), file.stem
    samples, refused = [], []
    for number, row in enumerate(rows, 1):
        one = make(row)
        if isinstance(one, str):
            refused.append((row.place, one))
        else:
            samples.append(replace(one, task=name, id=f"{name}/{one.id or number}", chat=chat or one.chat))
    if refused:
        raise InputError(
            f"{len(refused)} of {len(rows)} rows cannot be learned (the first, {refused[0][0]}, is {refused[0][1]}); mend "
            "them, or leave them out"
        )
    return samples
