"""What a study is: one TOML file, or the same in Python; every field says what it means."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from hyperlens.errors import InputError
from hyperlens.tasks import GRADED, TaskSpec
from hyperlens.trajectory import check_readings

STRICT: dict[str, Any] = {"extra": "forbid"}
KINDS, CONTEXTS, CHOICES = ("hyper", "logit", "tuned"), ("jump", "cached"), ("auto", "sweep")
"""What lenses know too, which need torch."""
TRAINED = "trained"
"""The focal depth that a tuned lens was trained for, which only its folder knows."""
ADDED = ("kind", "path", "between", "transfer", "top_k")
"""Fields of a lens that came later: described only where they say something, so that older runs go on."""
TOO_LONG = ("skip", "truncate")
TABLES = ("models", "tasks", "lenses", "contrasts")


def _name_source(source: str) -> str:
    """The last part of a path; a hub id as it is."""
    return source.rstrip("/").rpartition("/")[2] if source[:1] in "/.~" else source


@dataclass(frozen=True)
class ModelSpec:
    """One `[[models]]` table: a model and how it is loaded, as for `load_model`."""

    __pydantic_config__: ClassVar[Any] = STRICT

    source: str = "reference"
    """A folder (an adapter's too), a .gguf file, a hub id, or `reference`, the model that comes with us."""
    name: str = ""
    """How results call it; the source by default, of a path its last part."""
    dtype: str = "auto"
    """`auto` (as saved), `float32`, `bfloat16`, `float16`, `int8`, `nf4` or `torchao-int8`."""
    device: str = ""
    """Such as `cpu`, `cuda` or `mps`; where torch puts it by default."""
    device_map: str = ""
    """How to spread a model that is larger than one device: `auto`, or `disk`."""
    tensor_parallel: int = 1
    """Over how many devices of one replica its matrices are cut; never together with `device_map`."""
    gpus: float = 0.0
    """GPUs that one replica takes, of what `--workers` share out; a fraction lets replicas share one."""
    revision: str = ""
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Run the hub's code; needs `revision` to be a full commit."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or _name_source(self.source))
        if not self.name:
            raise InputError('a model has no source; give a folder, a hub id or "reference"')
        if self.tensor_parallel < 1 or self.gpus < 0:
            raise InputError(f'model "{self.name}" has fewer than no devices; give tensor_parallel from 1 and gpus from 0 up')
        if self.tensor_parallel > 1 and self.device_map:
            raise InputError(f'model "{self.name}" has both device_map and tensor_parallel; give one of them')


@dataclass(frozen=True)
class LensSpec:
    """One `[[lenses]]` table: how states are read."""

    __pydantic_config__: ClassVar[Any] = STRICT

    name: str = ""
    """How results call it; by default the context of `hyper`, else the kind."""
    focal_depths: tuple[int, ...] | str = ""
    """Numbers of deepest layers that states are routed through; `auto` chooses one by resolution and puts the logit lens (0)
    beside it, `sweep` reads all that it chooses from. Chosen once per model. By default `auto`; of a tuned lens `trained`, the
    one that it was trained for."""
    context: str = "jump"
    """What a routed state attends to: in `jump` the states of all positions at its own depth, in `cached` the keys and values
    that the model itself computed for earlier positions."""
    readings: tuple[str, ...] = ("probability",)
    """What is kept of each state; effort always comes from `probability`."""
    kind: str = "hyper"
    """`hyper`; `logit`, which reads each state at once; or `tuned`, which first puts it through a trained translator."""
    path: str = ""
    """The folder of a tuned lens, of ours or of the original package. `{model}` in it stands for the name of each model, so
    that one table serves several."""
    between: tuple[int, ...] = ()
    """Layers, by number from 1, that a state passes on its way to the deepest ones; only in `jump`."""
    transfer: bool = False
    """Whether a tuned lens may read another model than the one that it was trained for; results say so."""
    top_k: int = 0
    """How many of the most probable tokens are kept of every state, for the viewer to show; each takes the room of two
    readings."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or (self.context if self.kind == "hyper" else self.kind))
        if self.focal_depths == "":
            usual = {"logit": (0,), "tuned": TRAINED}
            object.__setattr__(self, "focal_depths", usual.get(self.kind, "auto"))
        if self.context not in CONTEXTS:
            raise InputError(f'"{self.context}" is not a context; choose from {", ".join(CONTEXTS)}')
        check_readings(self.readings)
        if self.top_k < 0:
            raise InputError(f'top_k of lens "{self.name}" is {self.top_k}; give 0 for none, or a number of tokens')
        self._check_kind()
        self._check_depths()

    def _check_kind(self) -> None:
        """That the fields are those of the lens's kind. Raises InputError."""
        if self.kind not in KINDS:
            raise InputError(f'lens "{self.name}" is of kind "{self.kind}"; choose from {", ".join(KINDS)}')
        if self.kind == "tuned" and not self.path:
            raise InputError(f'lens "{self.name}" is a tuned lens without a path; give the folder that it was saved in')
        for name, given in (("a path", self.path), ("transfer", self.transfer)):
            if given and self.kind != "tuned":
                raise InputError(
                    f'lens "{self.name}" has {name}, which only a tuned lens has, and is of kind {self.kind}; leave it away, '
                    "or name a tuned lens by its folder"
                )
        if self.kind == "logit" and (self.focal_depths, self.context, self.between) != ((0,), "jump", ()):
            raise InputError(
                f'lens "{self.name}" is the logit lens, which passes no layer; leave its focal depths, context and layers in '
                "between away, or take the lens hyper"
            )
        if self.between and self.context != "jump":
            raise InputError(
                f'lens "{self.name}" has layers in between, which all positions pass together; give it the context jump'
            )
        if self.between and min(self.between) < 1:
            raise InputError(f"the layers in between are {list(self.between)}; give their numbers from 1 up")

    def _check_depths(self) -> None:
        """That the focal depths are ones. Raises InputError."""
        if isinstance(self.focal_depths, str):
            choices = (*CHOICES, TRAINED) if self.kind == "tuned" else CHOICES
            if self.focal_depths not in choices:
                raise InputError(f'"{self.focal_depths}" is no focal depth; give numbers, {" or ".join(choices)}')
        elif not self.focal_depths:
            raise InputError("there are no focal depths; give whole numbers from 0 up")
        elif (least := min(self.focal_depths)) < 0:
            raise InputError(f"focal depth {least} is not a whole number from 0 up; give one between 0 and the layers")

    @property
    def chosen(self) -> bool:
        """Whether the focal depths are chosen by looking at the model's trajectories."""
        return self.focal_depths in CHOICES


@dataclass(frozen=True)
class ContrastSpec:
    """One `[[contrasts]]` table: an easy and a hard side whose effort is compared."""

    __pydantic_config__: ClassVar[Any] = STRICT

    easy: str
    """The task on the easy side, by its name in this study."""
    hard: str
    """The task on the hard side."""
    name: str = ""
    """How results call it, such as `mathematics`."""
    easy_levels: tuple[int, ...] = ()
    """Only these levels of the easy task; all where empty."""
    hard_levels: tuple[int, ...] = ()
    """Only these levels of the hard task; all where empty."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or f"{self.easy} / {self.hard}")
        if self.easy == self.hard and (
            not self.easy_levels or set(self.easy_levels) & set(self.hard_levels or self.easy_levels)
        ):
            raise InputError(
                f'contrast "{self.name}" compares {self.easy} with itself; give another task, or easy_levels and hard_levels'
            )


@dataclass(frozen=True)
class Study:
    """A study: every model reads every task through every lens. Equal studies give equal results, to the last digit.

    Raises InputError where names are not unique, or a contrast names a task that is not there.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    name: str = "study"
    """What the study is called; its folder is `runs/NAME` by default."""
    models: tuple[ModelSpec, ...] = (ModelSpec(),)
    """The models, each loaded once."""
    tasks: tuple[TaskSpec, ...] = tuple(TaskSpec(name) for name in GRADED)
    """The tasks; the four graded domains by default."""
    lenses: tuple[LensSpec, ...] = (LensSpec(),)
    """The lenses; HyperLens at a focal depth chosen by resolution, beside the logit lens, by default."""
    contrasts: tuple[ContrastSpec, ...] = ()
    """Which task is the easy and which the hard one. Graded tasks need none: their trend over levels is always reported."""
    limit: int = 50
    """Most samples of each task (of each level, where it has levels)."""
    seed: int = 0
    """What samples, examples, resamples and halves are drawn from."""
    data: str = ""
    """A folder with local copies of data sets, one folder each; the environment variable HYPERLENS_DATA by default."""
    too_long: str = "skip"
    """A sample longer than the model's context: `skip` leaves it out, `truncate` takes its first tokens away; both counted."""
    batch_tokens: int = 4096
    """Most tokens of one batch."""
    memory_mb: int = 256
    """Memory above the model's own forward pass."""
    shard_samples: int = 0
    """Samples of one shard, which is read and saved as a whole; 0 chooses by the number of samples."""
    root: str = ""
    """The folder that relative paths start from: that of the TOML file. No part of what makes two studies equal."""

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or set(self.name) & set("/\\"):
            raise InputError(f'the study is called "{self.name}"; give a name that a folder can have')
        if self.seed < 0:
            raise InputError(f"the seed is {self.seed}; give a number from 0 up")
        for name in ("limit", "batch_tokens", "memory_mb"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give a number from 1 up")
        if self.too_long not in TOO_LONG:
            raise InputError(f'too_long is "{self.too_long}"; choose from {", ".join(TOO_LONG)}')
        if self.shard_samples < 0:
            raise InputError(f"shard_samples is {self.shard_samples}; give a number of samples, or 0 to let it be chosen")
        for kind in TABLES:
            _check_names(kind, [one.name for one in getattr(self, kind)])
        names = [task.name for task in self.tasks]
        for contrast in self.contrasts:
            for side in (contrast.easy, contrast.hard):
                if side not in names:
                    raise InputError(f'contrast "{contrast.name}" names the task "{side}", which {_suggest(side, names)}')

    def describe(self) -> dict[str, Any]:
        """What makes two studies equal, as JSON has it."""
        document = {name: value for name, value in asdict(self).items() if name != "root"}
        usual = {one.name: one.default for one in fields(LensSpec) if one.name in ADDED}
        for lens in document["lenses"]:
            for name in [name for name, value in usual.items() if lens[name] == value]:
                del lens[name]
        return json.loads(json.dumps(document))

    def locate(self, path: str) -> str:
        """A path of the study, as seen from where it is run."""
        return path if not path or os.path.isabs(path) else str(Path(self.root) / Path(path).expanduser())

    def locate_lens(self, lens: LensSpec, model: ModelSpec) -> str:
        """The folder of a tuned lens for a model of the study: beside the study where there is one, else as it is."""
        return self.locate_model(lens.path.replace("{model}", model.name))

    def locate_model(self, source: str) -> str:
        """The source of a model: a path where there is one beside the study, else as it is."""
        if not self.root or source == ModelSpec.source:
            return source
        try:
            near = Path(self.root) / source
            return str(near) if near.exists() else source
        except OSError:  # no path at all
            return source


def read_study(file: str | os.PathLike[str]) -> Study:
    """The study of a TOML file. Raises InputError: a misspelt field comes with the one that was probably meant."""
    path = Path(file)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give the TOML file of a study") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not TOML ({error}); see docs/studies.md for how a study is written") from None
    return parse_study(document, str(path.absolute().parent), str(path))


def parse_study(document: Mapping[str, Any], root: str = "", name: str = "the study") -> Study:
    """The study that a document of TOML or JSON describes, relative paths read from `root`. Raises InputError."""
    from pydantic import TypeAdapter, ValidationError

    try:
        text = json.dumps({**document, "root": root})
    except TypeError:
        raise InputError(f"{name} holds a date or time, which no field of a study is; put it in quotes") from None
    try:
        return TypeAdapter(Study).validate_json(text, strict=True)
    except ValidationError as error:
        raise InputError(f"{name}: {_explain(error.errors()[0])}") from None


def compare_studies(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Each field that differs between two described studies, as `tasks[1].limit is 50 there and 100 here`."""
    return [
        f"{place} is {json.dumps(before)} there and {json.dumps(after)} here" for place, before, after in _compare(old, new, "")
    ]


def _compare(old: Any, new: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Where two documents differ, and how; tables of other names are not compared field by field."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            yield from _compare(old.get(name), new.get(name), f"{place}.{name}".lstrip("."))
    elif place in TABLES and isinstance(old, list) and isinstance(new, list):
        there, here = ([one.get("name") for one in side] for side in (old, new))
        if there != here:
            yield place, there, here
        else:
            for name, before, after in zip(here, old, new, strict=True):
                yield from _compare(before, after, f"{place}[{name}]")
    elif old != new:
        yield place, old, new


def _explain(problem: Mapping[str, Any]) -> str:
    """A problem that pydantic found, as one sentence."""
    place = [part for part in problem["loc"] if isinstance(part, int) or part.isidentifier()]
    written = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = [one.name for one in fields(_find_class(place[:-1])) if one.name != "root"]
        return f"the field {written} {_suggest(str(place[-1]), known)}"
    if problem["type"] == "missing":
        return f"the field {written} is missing; give it"
    if place and place[-1] in TABLES and isinstance(problem["input"], dict):
        return f"{written} is one table; write it as [[{written}]], of which there may be several"
    given = json.dumps(problem["input"], default=str)
    return f"{written or 'the document'} is {given}, which cannot be used ({problem['msg'].rstrip('.')})"


def _find_class(place: Sequence[Any]) -> Any:
    """The dataclass whose fields a place in the document has."""
    kinds = {"models": ModelSpec, "lenses": LensSpec, "tasks": TaskSpec, "contrasts": ContrastSpec}
    return next((kinds[part] for part in place if part in kinds), Study)


def _suggest(wrong: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(wrong, known, 1)
    listed = ", ".join(known)
    return f'is not there; did you mean "{near[0]}"? There are {listed}' if near else f"is not there; choose from {listed}"


def _check_names(kind: str, names: Sequence[str]) -> None:
    if not names and kind != "contrasts":
        raise InputError(f"the study has no {kind}; give at least one")
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise InputError(f'two of the {kind} are called "{twice}"; give one of them another name')
