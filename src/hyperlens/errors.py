"""Everything that HyperLens refuses, as one tree.

    HyperLensError            what a caller may catch to catch them all
    ├── InputError            a text, target, option, file or setting that cannot be used
    ├── ModelError            a model that cannot be loaded or read
    │   ├── CertificateError  a model whose lens does not give the model's own output
    │   └── ChangedModelError a model that is not the one with which a run began
    ├── ArtefactError         a folder that cannot be read or written
    └── MemoryLimitError      the machine's memory did not suffice

    HyperLensWarning          what a reader of a result should know (never an error in disguise)

Each message is one sentence: what is, what was expected, what to do.
"""

from __future__ import annotations

import re


class HyperLensError(Exception):
    """Base of all errors that a user can cause."""


class InputError(HyperLensError):
    """A text, target, option, file or setting that cannot be used."""


class ModelError(HyperLensError):
    """A model that cannot be loaded or read."""


class CertificateError(ModelError):
    """A model whose lens does not give the model's own output."""


class ChangedModelError(ModelError):
    """A model, or a lens, that is not the one with which a run began."""


class ArtefactError(HyperLensError):
    """A folder of results that cannot be read or written."""


class MemoryLimitError(HyperLensError):
    """The machine's memory did not suffice."""


class HyperLensWarning(UserWarning):
    """What a reader of a result should know."""


NO_LENS = 'there is no lens "{}"; choose hyper, logit, or the folder of a tuned lens'
NO_EXTRA = "{} needs {}; install it with: pip install 'hyperlens[{}]'"
LOAD_ADVICE = "memory did not suffice for the model; load it with --dtype bfloat16, or spread it with --device-map auto"


def is_memory_error(error: BaseException) -> bool:
    """Whether `error` says that memory did not suffice, in whose words ever."""
    return isinstance(error, MemoryError) or bool(re.search("out of memory|not enough memory|allocate memory", str(error)))


def first_sentence(error: BaseException) -> str:
    """What another's error says, as a part of a sentence of ours."""
    return re.split(r"[.!?]?\s*\n|[.!?]\s+(?=[A-Z])", str(error).strip() or type(error).__name__)[0].rstrip(".:")
