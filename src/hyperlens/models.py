"""Load a model and its tokenizer, prove the splice, and say which model it is."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from hyperlens.certificate import Certificate, certify
from hyperlens.errors import LOAD_ADVICE, InputError, MemoryLimitError, ModelError, is_memory_error
from hyperlens.splice import Splice

REFERENCE = "reference"
"""The name of the model that comes with the package."""

REFERENCE_FOLDER = Path(__file__).parent / "data" / "reference"
SAMPLED_VALUES = 256
_DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Model:
    """A model that is ready to be read: its network and tokenizer as they are, the splice into it, and the proof of it.

    `name` is what it was loaded by, `fingerprint` what it is: equal for equal weights and configuration, on any device.
    """

    network: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase | None = field(repr=False)
    name: str
    splice: Splice = field(repr=False)
    certificate: Certificate = field(repr=False)
    fingerprint: str

    @property
    def layers(self) -> int:
        """Number of decoder layers L."""
        return self.splice.depth


def load_model(
    source: str | os.PathLike[str] | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: str = "auto",
    device: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Load from a folder, a hub id, the name "reference" (the model that comes with us), or take a model already loaded.

    Weights are read from safetensors only. Remote code runs only where `trust_remote_code` is asked for with a pinned
    `revision` (a full commit). `dtype` is "auto" (as saved), "float32", "bfloat16" or "float16"; a model already loaded keeps
    its own dtype and device, and may come without a tokenizer (then token ids are traced, not texts). Raises ModelError
    where it cannot be loaded, CertificateError where its lens would not be the model's own output.
    """
    model = _load(source, tokenizer, dtype, device, device_map, revision, trust_remote_code)
    model.certificate.require("jump")
    return model


def check_model(source: str | os.PathLike[str] | PreTrainedModel, **options: Any) -> Certificate:
    """The certificate of a model, passed or not; `options` as for `load_model`. Raises ModelError where it does not load."""
    choices = {name: parameter.default for name, parameter in inspect.signature(load_model).parameters.items()}
    return _load(**{**choices, "source": source, **options}).certificate


def fingerprint_model(network: PreTrainedModel) -> str:
    """SHA-256 over names, shapes, dtypes and a fixed sample of values of all weights (adapters too) and the configuration.

    Equal on every device and from every file layout. Reads `SAMPLED_VALUES` values of each tensor, evenly spread.
    """
    digest = hashlib.sha256()
    for name, tensor in _named_tensors(network):
        flat = tensor.detach().reshape(-1)
        count = min(SAMPLED_VALUES, flat.numel())
        places = torch.linspace(0, max(flat.numel() - 1, 0), count, dtype=torch.float64).long().to(flat.device)
        values = flat[places].cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(values.view(torch.uint8).numpy().tobytes() if count else b"")
    digest.update(json.dumps(_stable_config(network), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _load(
    source: str | os.PathLike[str] | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    dtype: str,
    device: str | None,
    device_map: str | dict[str, Any] | None,
    revision: str | None,
    trust_remote_code: bool,
) -> Model:
    """What `load_model` gives, whether or not the certificate was passed."""
    if isinstance(source, PreTrainedModel):
        return _prepare(source, tokenizer, source.config.name_or_path or type(source).__name__)
    name, place = _locate(source)
    _check_choices(dtype, device_map, device, revision, trust_remote_code, place)
    options = {"revision": revision, "code_revision": revision, "trust_remote_code": trust_remote_code}
    config = _load_config(name, place, options)
    network = _load_network(name, place, config, {"dtype": _DTYPES[dtype], "device_map": device_map or device}, options)
    return _prepare(network, tokenizer or _load_tokenizer(name, place, options), name)


def _prepare(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, name: str) -> Model:
    """Splice, prove and name a loaded network."""
    if getattr(network.config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder ({type(network).__name__}); HyperLens reads decoder-only models")
    splice = Splice(network)
    return Model(network, tokenizer, name, splice, certify(splice), fingerprint_model(network))


def _locate(source: str | os.PathLike[str]) -> tuple[str, str]:
    """The name of a source, and the folder or hub id to load from."""
    name = os.fspath(source)
    if name == REFERENCE and not Path(name).is_dir():
        return name, str(REFERENCE_FOLDER)
    if not name.strip():
        raise ModelError(f"the model's name is empty; give a folder, a name on the hub, or {REFERENCE}")
    folder = Path(name).expanduser()
    if folder.is_file():
        raise ModelError(f"{name} is a file; expected the folder of a model, or its name on the hub")
    if folder.is_dir():
        _check_folder(folder)
        return name, str(folder)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ModelError(f"there is no folder {name}; give the folder of a model, its name on the hub, or {REFERENCE}")
    return name, name


def _check_folder(folder: Path) -> None:
    """A local model needs its configuration, and weights as safetensors."""
    if not (folder / "config.json").exists():
        raise ModelError(f"{folder} has no config.json; expected a folder that save_pretrained wrote")
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder} has its weights only as pickle ({pickles[0]}), which can run code when it is read; "
            "convert it to safetensors with save_pretrained"
        )
    if not any(folder.glob("*.gguf")):
        raise ModelError(f"{folder} has no weights; expected *.safetensors beside its config.json")


def _check_choices(
    dtype: str, device_map: Any, device: str | None, revision: str | None, trust_remote_code: bool, place: str
) -> None:
    if dtype not in _DTYPES:
        raise InputError(f'"{dtype}" is not a dtype; choose from {", ".join(_DTYPES)}')
    if device is not None and device_map is not None:
        raise InputError("device and device_map were both given; give one of them")
    if device is not None:
        check_device(device)
    if trust_remote_code and not Path(place).is_dir() and not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise InputError("remote code needs a pinned revision; give the full commit of the code that you have read")


def check_device(device: str) -> None:
    """Raises InputError where nothing can be put on `device`."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f'device "{device}" is not to be had here; choose another, such as cpu') from None


def _load_config(name: str, place: str, options: dict[str, Any]) -> Any:
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(place, **options)
    except Exception as error:  # transformers' validation has error classes of its own
        raise ModelError(_explain(name, place, error)) from None
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder ({config.model_type}); HyperLens reads decoder-only models")
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not options["trust_remote_code"]:
        raise ModelError(
            f"{name} is of type {config.model_type}, no causal language model; HyperLens reads decoder-only models"
        )
    return config


def _load_network(name: str, place: str, config: Any, choices: dict[str, Any], options: dict[str, Any]) -> PreTrainedModel:
    try:
        with _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                place,
                config=config,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **choices,
                **options,
            )
    except SafetensorError as error:
        raise ModelError(f"the safetensors of {name} are damaged ({error}); copy or download them again") from None
    except Exception as error:  # a damaged configuration makes the model's own code raise anything
        if is_memory_error(error):
            raise MemoryLimitError(LOAD_ADVICE) from None
        raise ModelError(_explain(name, place, error)) from None
    network, info = loaded
    wrong = sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info["mismatched_keys"])
    if wrong:
        raise ModelError(
            f"{name} lacks {len(wrong)} of its weights (first: {wrong[0]}), which would be random; "
            "expected a complete checkpoint for causal language modelling"
        )
    return network.eval()


def _load_tokenizer(name: str, place: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(place, **options)
    except Exception as error:  # tokenizers raise bare Exception on files that they cannot parse
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(": ")
        raise ModelError(f"{name} has no tokenizer that can be read ({reason}); put its files beside the model") from None
    if not len(tokenizer):
        raise ModelError(f"{name} has no tokenizer; put tokenizer.json and tokenizer_config.json beside the model")
    return tokenizer


def _explain(name: str, place: str, error: Exception) -> str:
    """One sentence for what transformers raised."""
    reason = re.split(r"[.!?]?\s*\n|[.!?]\s+(?=[A-Z])", str(error).strip() or type(error).__name__)[0].rstrip(".")
    if Path(place).is_dir():
        return f"{name} cannot be loaded ({reason}); expected a complete folder that save_pretrained wrote"
    if "safetensors" in reason:
        return f"{name} offers no safetensors on the hub ({reason}); convert it with save_pretrained and give the folder"
    return f"there is no folder {name}, and the hub could not give it ({reason}); give a folder, or go online"


@dataclass
class _quiet:
    """Keep what transformers reports while loading off the screen; its errors still come."""

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

    def __exit__(self, *error: object) -> None:
        self.caught.__exit__(None, None, None)
        transformers_logging.set_verbosity(self.level)
        hub_logging.set_verbosity(self.hub_level)
        if self.bars:
            transformers_logging.enable_progress_bar()


def _named_tensors(network: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers by name, those that accelerate keeps elsewhere included."""
    state = network.state_dict()
    for name in sorted(state):
        tensor = state[name]
        if tensor.device.type == "meta":
            owner = network.get_submodule(name.rpartition(".")[0])
            weights = getattr(getattr(owner, "_hf_hook", None), "weights_map", None)
            if weights is not None:
                tensor = weights[name.rpartition(".")[2]]
        if isinstance(tensor, Tensor) and tensor.device.type != "meta":
            yield name, tensor


def _stable_config(network: PreTrainedModel) -> dict[str, Any]:
    """The configuration, less what depends on where and with what it was loaded."""
    passing = {"_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
    passing |= {"architectures"}  # written when the model is first saved
    config = network.config.to_dict()
    return {key: value for key, value in config.items() if key not in passing and not key.startswith("_attn")}
