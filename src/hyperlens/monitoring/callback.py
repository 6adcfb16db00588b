"""The warning light: a callback of transformers' Trainer, and so of TRL's, that measures a frozen probe set now and then."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hyperlens.diagnosis import PATTERNS, say_interval
from hyperlens.errors import HyperLensError, HyperLensWarning, InputError, first_sentence, is_memory_error
from hyperlens.monitoring.keeping import BASE, find_base, read_best, save_base, save_best
from hyperlens.monitoring.probe import Probe, check_samples, check_whole, kept_randomness, measure_probe, prepare_probe
from hyperlens.monitoring.reading import (
    BLIND,
    COMPARED,
    Reading,
    compare_values,
    identify_probe,
    is_settled,
    list_logs,
    list_values,
)
from hyperlens.monitoring.spending import Spending
from hyperlens.tasks import Sample
from hyperlens.trajectory import Trajectory


class EffortCallback(TrainerCallback):
    """Measures accuracy, confidence and effort Ω of a probe set every `every` steps and after the last one, and warns of blind
    confidence.

    The probe set is measured before the first step: this is the base that changes are to, unless a `base` is given. That is a
    trajectory of the probe set, its folder, or the file `effort_base.json` that every training leaves in its output folder,
    where a resumed one finds it. Values go to the trainer's trackers once it is known: `callback.watch(trainer)`. `stop` ends
    the training at a pattern of `hyperlens.diagnosis`, such as "blind confidence", or where a function of the Reading says so.
    A name holds for every pattern that contains it, as "lost accuracy" does for blind confidence. Of the many looks at a
    training one may show a pattern by chance: it is warned of, and stops by its name, only where two readings in a row show it.
    A function decides alone.
    `keep` saves the model of the highest "accuracy", "confidence" or "effort", or of the highest number that a function of the
    Reading gives, in the folder `best` of the output folder. A measurement with which all of them would take more than
    `most_share` of the time since the first step is skipped, warned of once, and counted; that after the last step never is.
    The weights are bit for bit those that the training gives without it. Raises InputError.
    """

    clock: Callable[[], float] = staticmethod(time.perf_counter)
    """Seconds; another one in tests."""

    def __init__(
        self,
        probe: Iterable[str | Sample],
        every: int = 100,
        focal_depth: int = 2,
        most_share: float = 0.05,
        stop: str | Callable[[Reading], bool] | None = None,
        keep: str | Callable[[Reading], float] | None = None,
        base: Trajectory | str | os.PathLike[str] | None = None,
    ) -> None:
        self.samples = check_samples(probe)
        _check_numbers(every, focal_depth, most_share)
        _check_rules(stop, keep, graded=self.samples[0].target is not None)
        self.every, self.focal_depth, self.most_share = every, focal_depth, most_share
        self.stop, self.keep, self.base = stop, keep, base
        self.readings: tuple[Reading, ...] = ()
        self._trainer: Trainer | None = None
        self._probe: Probe
        self._base: Mapping[str, np.ndarray]
        self._spending: Spending
        self._highest: float
        self._looks: int
        self._warned: bool

    def watch(self, trainer: Trainer) -> EffortCallback:
        """Take part in the trainings of `trainer` and log to its trackers; gives the callback itself."""
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        self._trainer = trainer
        return self

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> TrainerControl:
        """Prove the lens and measure the base, or what a resumed training goes on from."""
        self.readings, self._warned = (), False
        if state.is_world_process_zero and self._trainer is None:
            _warn("EffortCallback knows no trainer, so that its values reach no tracker; call callback.watch(trainer)")
        _lead(state, lambda: self._begin(Path(str(args.output_dir)), state, control, given))
        return control

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> TrainerControl:
        """Measure where it is due and not too dear; log, warn, keep the best, and stop as the rules say."""
        if state.global_step % self.every and state.global_step != state.max_steps:
            return control
        if _lead(state, lambda: self._check(Path(str(args.output_dir)), state, control, given)):
            control.should_training_stop = True
        return control

    def _begin(self, folder: Path, state: TrainerState, control: TrainerControl, given: Mapping[str, Any]) -> None:
        """Prove the lens, and measure the probe set before the first step."""
        resumed = state.global_step > 0
        self._looks = _count_looks(state.global_step, state.max_steps, self.every)
        self._highest = self._find_highest(folder, resumed)
        check_whole(given["model"])
        self._probe = prepare_probe(given["model"], given.get("processing_class"), self.samples, self.focal_depth)
        began = self.clock()
        trajectory = measure_probe(self._probe)
        values, identity = list_values(trajectory, self.focal_depth), identify_probe(trajectory, self.focal_depth)
        with _said_before():
            self._base = self._find_base(folder, resumed, values, identity)
        save_base(folder, self._base, identity)
        reading, now = self._read(state.global_step, values), self.clock()
        self._spending = Spending(began=now, last=now - began)
        if not resumed:
            self._log(list_logs(reading) | {"effort/seconds": now - began}, state, control)

    def _check(self, folder: Path, state: TrainerState, control: TrainerControl, given: Mapping[str, Any]) -> bool:
        """One measurement, if it fits below the cap, and what it cost; gives whether the training is to stop."""
        _finish_queue(self._probe)
        began, row, stop = self.clock(), {}, False
        if state.global_step == state.max_steps or self._spending.allows(began, self.most_share):
            row, stop = self._attempt(folder, state.global_step, given)
            seconds = self.clock() - began
            self._spending = self._spending.add(seconds)
            row["effort/seconds"] = seconds
        else:
            self._skip(state.global_step, began)
        row |= {"effort/share": self._spending.share(self.clock()), "effort/skipped": float(self._spending.skipped)}
        self._log(row, state, control)
        return stop

    def _skip(self, step: int, now: float) -> None:
        """Leave a measurement out, and say so once."""
        if not self._spending.skipped:
            _warn(
                f"the measurement after step {step} is skipped: it takes {self._spending.last:.2g} s, with which all of them "
                f"would have {self._spending.share_with(now):.3g} of the training's time, and most_share is {self.most_share}; "
                f"raise that (--watch-share), or every (--watch-every), now {self.every}"
            )
        self._spending = self._spending.skip()

    def _attempt(self, folder: Path, step: int, given: Mapping[str, Any]) -> tuple[dict[str, float], bool]:
        """What is logged of a measurement, and whether to stop. The training is worth more: what fails for a reason that is
        known, or for want of memory, is a warning."""
        row, stop = {}, False
        try:
            with _said_before():
                values = list_values(measure_probe(self._probe), self.focal_depth)
            reading = self._read(step, values)
            row, stop = list_logs(reading), self._should_stop(reading)
            row |= {"effort/kept": 1.0} if self._keep_best(folder, reading, given) else {}
        except Exception as error:
            if not isinstance(error, HyperLensError) and not is_memory_error(error):
                raise
            row["effort/failed"] = 1.0
            known = isinstance(error, HyperLensError)
            said = error if known else f"memory did not suffice ({first_sentence(error)}); give fewer or shorter probe samples"
            _warn(f"the measurement after step {step} failed: {said}")
        return row | ({"effort/stopped": 1.0} if stop else {}), stop

    def _read(self, step: int, values: Mapping[str, np.ndarray]) -> Reading:
        """The reading of a measurement, kept, and warned of once where it and the last one show blind confidence."""
        reading = compare_values(step, values, self._base, [sample.task for sample in self.samples])
        self.readings += (reading,)
        if is_settled(self.readings, BLIND) and not self._warned:
            self._warned = True
            changes = ", ".join(f"{name} {say_interval(reading.changes[name].difference)}" for name in COMPARED)
            _warn(
                f"{BLIND} after step {step}, as in the reading before: on the {reading.samples} probe samples the model is "
                f"surer with less effort and right less often than the base ({changes}); this is reading "
                f"{len(self.readings)} of {self._looks}, and intervals are not adjusted for their number"
            )
        return reading

    def _find_base(
        self, folder: Path, resumed: bool, values: Mapping[str, np.ndarray], identity: Mapping[str, Any]
    ) -> Mapping[str, np.ndarray]:
        """The values of the base: the one given, that with which a resumed training began, or what was measured just now."""
        if self.base is None and not resumed:
            return values
        if self.base is None and not (folder / BASE).exists():
            raise InputError(
                f"{folder} has no {BASE} of the training that is resumed, so that its base is not known; give the base to "
                "EffortCallback, or begin anew"
            )
        return find_base(folder / BASE if self.base is None else self.base, identity)

    def _find_highest(self, folder: Path, resumed: bool) -> float:
        """The score of the best model that a resumed training kept by the same rule, below any other where there is none."""
        known = read_best(folder) if self.keep is not None else None
        return known["score"] if known and resumed and known["rule"] == _name_rule(self.keep) else -math.inf

    def _keep_best(self, folder: Path, reading: Reading, given: Mapping[str, Any]) -> bool:
        """Save the model if it is the best by the user's rule; gives whether it was."""
        if self.keep is None:
            return False
        found: Any = getattr(reading, self.keep) if isinstance(self.keep, str) else self.keep(reading)
        try:
            score = float(found)
        except (TypeError, ValueError):
            raise InputError(f"the rule to keep by gave {found!r}; let the function give a number") from None
        if not score > self._highest:
            return False
        about = {"step": reading.step, "rule": _name_rule(self.keep), "score": score, "verdict": reading.verdict}
        save_best(folder, given["model"], given["processing_class"], about | {"values": list_logs(reading)})
        self._highest = score
        return True

    def _should_stop(self, reading: Reading) -> bool:
        if self.stop is None:
            return False
        return is_settled(self.readings, self.stop) if isinstance(self.stop, str) else bool(self.stop(reading))

    def _log(self, row: dict[str, float], state: TrainerState, control: TrainerControl) -> None:
        """Send a row to the trainer's trackers; without a trainer, to its history alone."""
        if self._trainer is None:
            state.log_history.append({**row, "epoch": state.epoch, "step": state.global_step})
            return
        wanted = control.should_log
        # Not the method of a subclass: TRL's would put its running means into this row, and they would miss in its own.
        Trainer.log(self._trainer, row)
        control.should_log = wanted  # which every log takes back, so that the trainer's own of this step would not come


def _check_numbers(every: int, focal_depth: int, most_share: float) -> None:
    for name, value, least in (("every", every, 1), ("focal_depth", focal_depth, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{name} is {value}; give a whole number from {least} up")
    if not 0 < most_share <= 1:
        raise InputError(f"most_share is {most_share}; give a share of the time above 0, such as 0.05, or 1 for no cap")


def _check_rules(stop: object, keep: object, graded: bool) -> None:
    """Raises InputError for rules that are not known, or that need to know which answers are right where no sample says."""
    patterns = [pattern.name for pattern in PATTERNS]
    for name, rule, known in (("stop", stop, patterns), ("keep", keep, COMPARED)):
        if rule is not None and not callable(rule) and rule not in known:
            raise InputError(f'"{rule}" is not a rule to {name} by; choose from {", ".join(known)}, or give a function')
    for rule in (stop, keep):
        if not graded and (rule == "accuracy" or rule in [one.name for one in PATTERNS if len(one.accuracy) == 1]):
            raise InputError(f'"{rule}" needs to know which answers are right; give the probe samples targets')


def _name_rule(rule: object) -> str:
    return rule if isinstance(rule, str) else getattr(rule, "__qualname__", type(rule).__name__)


def _count_looks(start: int, end: int, every: int) -> int:
    """How many readings a training from one step to another has at most, that before its first step included."""
    return 1 + end // every - start // every + (end % every > 0)


def _finish_queue(probe: Probe) -> None:
    """Wait for what the training still has to compute, which would count as ours."""
    device = probe.model.splice.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _lead(state: TrainerState, act: Callable[[], bool | None]) -> bool:
    """Whether the main process, which alone acts, decided to stop, in all processes of a training; all end where it fails."""
    decided = None if state.is_world_process_zero else False
    try:
        if state.is_world_process_zero:
            with kept_randomness():
                decided = bool(act())
    finally:
        decided = _agree(decided)  # whatever failed: the other processes wait for it
    if decided is None:
        raise HyperLensError("the main process of the training failed while it measured the probe set; see its own message")
    return decided


def _agree(decided: bool | None) -> bool | None:
    """What the main process decided, in all processes of a training; None where it failed."""
    if not (dist.is_available() and dist.is_initialized()):
        return decided
    told = [decided]
    dist.broadcast_object_list(told, src=0)
    return told[0]


@contextmanager
def _said_before() -> Iterator[None]:
    """Nothing is said of the focal depth, which the first measurement of a training has said."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "at focal depth", HyperLensWarning)
        yield


def _warn(message: str) -> None:
    warnings.warn(message, HyperLensWarning, stacklevel=3)
