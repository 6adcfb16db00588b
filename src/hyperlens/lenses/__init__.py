"""Lenses: ways to read a residual state before the model is done with it."""

from hyperlens.lenses.hyper import HyperLens
from hyperlens.lenses.lens import Lens
from hyperlens.lenses.logit import LogitLens
from hyperlens.lenses.opening import open_lens
from hyperlens.lenses.original import export_lens
from hyperlens.lenses.tuned import Origin, Translators, TunedLens, load_lens, save_lens

__all__ = [
    "HyperLens",
    "Lens",
    "LogitLens",
    "Origin",
    "Translators",
    "TunedLens",
    "export_lens",
    "load_lens",
    "open_lens",
    "save_lens",
]
