"""Keep what others report while a model loads off the screen."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging

_TALKERS = ("accelerate", "bitsandbytes", "peft", "torchao", "torch.utils._pytree")


@dataclass
class quiet:
    """No warnings, bars or log lines of transformers and the like inside this context; errors still come."""

    def __enter__(self) -> None:
        self.level = transformers_logging.get_verbosity()
        self.bars = transformers_logging.is_progress_bar_enabled()
        self.caught = warnings.catch_warnings()
        self.caught.__enter__()
        warnings.simplefilter("ignore")
        transformers_logging.set_verbosity_error()
        self.hub_level = hub_logging.get_verbosity()
        hub_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        self.levels = {name: logging.getLogger(name).level for name in _TALKERS}
        for name in _TALKERS:
            logging.getLogger(name).setLevel(logging.ERROR)

    def __exit__(self, *error: object) -> None:
        self.caught.__exit__(None, None, None)
        transformers_logging.set_verbosity(self.level)
        hub_logging.set_verbosity(self.hub_level)
        for name, level in self.levels.items():
            logging.getLogger(name).setLevel(level)
        if self.bars:
            transformers_logging.enable_progress_bar()
