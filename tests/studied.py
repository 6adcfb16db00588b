"""What the tests of studies share: small ones, and what their folders hold."""

from __future__ import annotations

from pathlib import Path

import hyperlens as hl

TASKS = (hl.TaskSpec("logic", levels=(1, 3)), hl.TaskSpec("knowledge:plain", levels=(1, 2), limit=6))
STUDY = hl.Study("two", tasks=TASKS, lenses=(hl.LensSpec(focal_depths=(0, 2)),), limit=12, shard_samples=8)
OWN = hl.Study("own", tasks=(hl.TaskSpec("mine"),), lenses=(hl.LensSpec(focal_depths=(0,)),))


def contents(folder: Path) -> dict[str, bytes]:
    """What a run holds, but for when and by whom it was measured."""
    files = {file for name in ("tasks", "shards") for file in (folder / name).rglob("*.parquet")}
    return {str(file.relative_to(folder)): file.read_bytes() for file in {*files, folder / "results.json"}}


def ask(*pairs: tuple[str, str | None], **more) -> list[hl.Sample]:
    return [hl.Sample(prompt, target, task="mine", id=str(number), **more) for number, (prompt, target) in enumerate(pairs)]
