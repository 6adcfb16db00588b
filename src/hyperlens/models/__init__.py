"""Load a model and its tokenizer, prove the splice, and say which model it is."""

from hyperlens.models.fingerprint import fingerprint_model
from hyperlens.models.loading import BLIND, REFERENCE, REFERENCE_FOLDER, check_device
from hyperlens.models.model import Model, check_model, disable_adapters, load_model

__all__ = [
    "BLIND",
    "REFERENCE",
    "REFERENCE_FOLDER",
    "Model",
    "check_device",
    "check_model",
    "disable_adapters",
    "fingerprint_model",
    "load_model",
]
