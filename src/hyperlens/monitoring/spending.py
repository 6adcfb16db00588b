"""What the measurements of a training cost: their share of its time, and whether another one fits below a cap."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Spending:
    """The cost so far, in seconds of one clock: when the training `began`, what all measurements since then took, what the
    `last` one took, and how many were `skipped`."""

    began: float
    spent: float = 0.0
    last: float = 0.0
    skipped: int = 0

    def share(self, now: float) -> float:
        """Share of the time since the training began that measuring took, in [0, 1]; 0 before any time has passed."""
        passed = now - self.began
        return self.spent / passed if passed > 0 else 0.0

    def allows(self, now: float, most: float) -> bool:
        """Whether the share would be at most `most` after one more measurement that takes as long as the last one."""
        return self.share_with(now) <= most

    def share_with(self, now: float) -> float:
        """The share that all would have after one more measurement that takes as long as the last one, in [0, 1]."""
        return self.add(self.last).share(now + self.last)

    def add(self, seconds: float) -> Spending:
        """The same after one more measurement."""
        return replace(self, spent=self.spent + seconds, last=seconds)

    def skip(self) -> Spending:
        """The same after a measurement that was left out."""
        return replace(self, skipped=self.skipped + 1)
