"""From the name of a model to its network and tokenizer: folders, files, hub ids and adapters."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tempfile
import warnings
import weakref
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from hyperlens.errors import (
    LOAD_ADVICE,
    HyperLensWarning,
    InputError,
    MemoryLimitError,
    ModelError,
    first_sentence,
    is_memory_error,
)
from hyperlens.models.precision import DTYPES, QUANTISED, choose_precision, finish_quantised, require_extra
from hyperlens.models.quiet import quiet

REFERENCE, BLIND = "reference", "reference-blind"
"""The names of the model that comes with the package, and of an adapter that made it blindly confident."""

SHIPPED = {name: Path(__file__).parent.parent / "data" / name for name in (REFERENCE, BLIND)}
"""Their folders, unless there is one of that name where we are."""

REFERENCE_FOLDER = SHIPPED[REFERENCE]
_ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Place:
    """Where a model is: what it is called, and the folder or hub id and the options with which transformers finds it."""

    name: str
    where: str
    options: dict[str, Any]

    @property
    def folder(self) -> Path | None:
        """The folder, where it is one on this machine."""
        return Path(self.where) if Path(self.where).is_dir() else None


def load_network(
    source: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin | None,
    dtype: str,
    device: str | None,
    device_map: str | dict[str, Any] | None,
    revision: str | None,
    trust_remote_code: bool,
) -> tuple[str, PreTrainedModel, PreTrainedTokenizerBase | ProcessorMixin]:
    """The name, network and tokenizer (or processor, of a model that takes images) of a source.

    Raises InputError for choices that cannot be had, else ModelError.
    """
    place = _locate(source, revision, trust_remote_code)
    _check_choices(dtype, device_map, device)
    _check_remote_code(place)
    adapter = _read_adapter(place)
    base = place if adapter is None else _locate_base(place, adapter)
    config = _load_config(base)
    choices = choose_precision(dtype, base.name, config, "gguf_file" in base.options)
    network = _load_spread(base, config, choices, {"": "disk"} if device_map == "disk" else device_map or device)
    finish_quantised(network, dtype, base.name)
    if adapter is not None:
        _add_adapter(network, place)
    files = _with_tokenizer(place, base)
    tokenizer = tokenizer or (_load_processor(files) if takes_images(config) else None)
    return place.name, network, tokenizer or _load_tokenizer(files)


def name_base(source: str | os.PathLike[str], revision: str | None = None) -> str:
    """The folder or hub id of the model that an adapter was made for. Raises ModelError where the source is no adapter."""
    place = _locate(source, revision, False)
    adapter = _read_adapter(place)
    if adapter is None:
        raise ModelError(f"{place.name} is a model of its own, not an adapter; say what it is to be compared with")
    return _locate_base(place, adapter).where


def outline_source(
    source: str | os.PathLike[str], revision: str | None = None, trust_remote_code: bool = False
) -> dict[str, Any]:
    """What a model's configuration says, before its weights are read: its kind, layers and width; None of what it does not
    say. Of an adapter, what that of its base says. Raises ModelError."""
    place = _locate(source, revision, trust_remote_code)
    _check_remote_code(place)
    adapter = _read_adapter(place)
    config = _load_config(place if adapter is None else _locate_base(place, adapter)).get_text_config(decoder=True)
    names = {"kind": "model_type", "layers": "num_hidden_layers", "width": "hidden_size"}
    return {"adapter": adapter is not None} | {name: getattr(config, field, None) for name, field in names.items()}


def _locate(source: str | os.PathLike[str], revision: str | None, trust_remote_code: bool) -> Place:
    """Where a source is, and whether there is a model at all."""
    name = os.fspath(source)
    options = {"revision": revision, "code_revision": revision, "trust_remote_code": trust_remote_code}
    if name in SHIPPED and not Path(name).is_dir():
        return Place(name, str(SHIPPED[name]), options)
    if not name.strip():
        raise ModelError(f"the model's name is empty; give a folder, a name on the hub, or {REFERENCE}")
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and not path.is_dir():
        if not path.is_file():
            raise ModelError(f"there is no file {name}; give a GGUF file that is there, or the folder of a model")
        require_extra("gguf", name)
        return Place(name, str(path.parent), {**options, "gguf_file": path.name})
    if path.is_file():
        raise ModelError(f"{name} is a file; expected the folder of a model, or its name on the hub")
    if path.is_dir():
        _check_folder(path)
        return Place(name, str(path), options)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ModelError(f"there is no folder {name}; give the folder of a model, its name on the hub, or {REFERENCE}")
    return Place(name, name, options)


def _check_folder(folder: Path) -> None:
    """A local model needs its configuration, and weights as safetensors."""
    if (found := next(folder.glob("*.gguf"), None)) and not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} has its weights as GGUF; give the file itself, such as {found}")
    adapter = (folder / "adapter_config.json").exists()
    if not adapter and not (folder / "config.json").exists():
        raise ModelError(f"{folder} has no config.json; expected a folder that save_pretrained wrote")
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder} has its weights only as pickle ({pickles[0]}), which can run code when it is read; "
            "convert it to safetensors with save_pretrained"
        )
    beside = "adapter_config.json" if adapter else "config.json"
    raise ModelError(f"{folder} has no weights; expected *.safetensors beside its {beside}")


def _check_choices(dtype: str, device_map: Any, device: str | None) -> None:
    if dtype not in (known := [*DTYPES, *QUANTISED]):
        raise InputError(f'"{dtype}" is not a dtype; choose from {", ".join(known)}')
    if device is not None and device_map is not None:
        raise InputError("device and device_map were both given; give one of them")
    if device is not None:
        check_device(device)


def _check_remote_code(place: Place) -> None:
    pinned = re.fullmatch(r"[0-9a-f]{40}", place.options["revision"] or "")
    if place.options["trust_remote_code"] and place.folder is None and not pinned:
        raise InputError("remote code needs a pinned revision; give the full commit of the code that you have read")


def check_device(device: str) -> None:
    """Raises InputError where nothing can be put on `device`."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f'device "{device}" is not to be had here; choose another, such as cpu') from None


def _read_adapter(place: Place) -> dict[str, Any] | None:
    """The configuration of an adapter that is there without its base; None for a model."""
    if "gguf_file" in place.options:
        return None
    try:
        with quiet():
            file = find_adapter_config_file(place.where, revision=place.options["revision"])
        if file is None:
            return None
        adapter = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(_explain(place, error)) from None
    require_extra("peft", f"{place.name}, an adapter,")
    weights = [] if place.folder is None else [file.name for file in place.folder.glob("*.safetensors")]
    return None if set(weights) - {_ADAPTER_WEIGHTS} else adapter


def _locate_base(place: Place, adapter: dict[str, Any]) -> Place:
    """Where the base of an adapter is."""
    task = adapter.get("task_type") if isinstance(adapter, dict) else None
    if task not in (None, "CAUSAL_LM"):
        raise ModelError(f"{place.name} is an adapter for {task}; HyperLens reads decoder-only models, adapted for CAUSAL_LM")
    base = adapter.get("base_model_name_or_path") if isinstance(adapter, dict) else None
    if not base:
        raise ModelError(
            f"{place.name} is an adapter that names no base model; write base_model_name_or_path in its configuration"
        )
    try:
        found = _locate(base, adapter.get("revision"), place.options["trust_remote_code"])
    except ModelError as error:
        raise ModelError(f"{place.name} is an adapter whose base cannot be had: {error}") from None
    _check_remote_code(found)
    return replace(found, name=f"{found.name} (the base of {place.name})")


def _load_config(place: Place) -> Any:
    name = place.name
    try:
        with quiet():
            config = AutoConfig.from_pretrained(place.where, **place.options)
    except Exception as error:  # transformers' validation has error classes of its own
        raise ModelError(_explain(place, error)) from None
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder ({config.model_type}); HyperLens reads decoder-only models")
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() | MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.keys()
    if config.model_type not in known and not place.options["trust_remote_code"]:
        raise ModelError(
            f"{name} is of type {config.model_type}, no causal language model; HyperLens reads decoder-only models"
        )
    return config


def takes_images(config: Any) -> bool:
    """Whether a model is to be loaded with its tower for images: where it was saved so, or has no other form."""
    saved = set(getattr(config, "architectures", None) or ())
    own = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
    return own is not None and (own in saved or config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _load_spread(place: Place, config: Any, choices: dict[str, Any], device_map: Any) -> PreTrainedModel:
    """Load, with a folder for weights that have to be written before they can lie on disk; it lives as long as the network."""
    if device_map is None:
        return _load_weights(place, config, choices)
    folder = tempfile.mkdtemp(prefix="hyperlens-offload-")
    try:
        network = _load_weights(place, config, {**choices, "device_map": device_map, "offload_folder": folder})
    except BaseException:
        shutil.rmtree(folder)
        raise
    remove = weakref.finalize(network, shutil.rmtree, folder, ignore_errors=True)
    if not os.listdir(folder):
        remove()
    return network


def _load_weights(place: Place, config: Any, choices: dict[str, Any]) -> PreTrainedModel:
    name, architect = place.name, AutoModelForImageTextToText if takes_images(config) else AutoModelForCausalLM
    try:
        with quiet(), _no_bar() if "gguf_file" in place.options else nullcontext():
            loaded: Any = architect.from_pretrained(
                place.where,
                config=config,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **choices,
                **place.options,
            )
    except SafetensorError as error:
        raise ModelError(f"the safetensors of {name} are damaged ({error}); copy or download them again") from None
    except Exception as error:  # a damaged configuration makes the model's own code raise anything
        if is_memory_error(error):
            raise MemoryLimitError(LOAD_ADVICE) from None
        raise ModelError(_explain(place, error)) from None
    network, info = loaded
    wrong = sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info["mismatched_keys"])
    if wrong:
        raise ModelError(
            f"{name} lacks {len(wrong)} of its weights (first: {wrong[0]}), which would be random; "
            "expected a complete checkpoint for causal language modelling"
        )
    return network.eval()


def _no_bar() -> AbstractContextManager[Any]:
    """transformers' bar over the tensors of a GGUF file minds no setting."""
    return redirect_stderr(io.StringIO())


def _add_adapter(network: PreTrainedModel, place: Place) -> None:
    """Put the adapter of a place on its base. Raises ModelError where it was made for another."""
    peft: Any = require_extra("peft", place.name)
    options: dict[str, Any] = {"revision": place.options["revision"]}
    spread = getattr(network, "hf_device_map", {})
    if "disk" in spread.values():
        raise ModelError(
            f"the base of {place.name} lies on disk, where PEFT would overwrite it; give a --device-map without disk"
        )
    if set(spread) == {""}:
        options["device_map"] = spread
    try:
        with quiet():
            cached_file(place.where, _ADAPTER_WEIGHTS, revision=options["revision"])  # else PEFT would look for a pickle
            adapted = peft.PeftModel.from_pretrained(network, place.where, **options)
            result = adapted.load_adapter(place.where, "default", **options)  # once more, since this one says what fits
    except SafetensorError as error:
        raise ModelError(f"the safetensors of {place.name} are damaged ({error}); copy or download them again") from None
    except Exception as error:  # each kind of adapter has its own way to say that it does not fit
        reason = first_sentence(error)
        raise ModelError(f"the adapter {place.name} does not fit its base ({reason}); give the base it was made for") from None
    if wrong := sorted({*result.missing_keys, *result.unexpected_keys}):
        raise ModelError(
            f"the adapter {place.name} does not fit its base: {len(wrong)} weights have no counterpart (first: {wrong[0]}); "
            "give the base it was made for"
        )
    network.eval()


def _with_tokenizer(place: Place, base: Place) -> Place:
    """An adapter may come with a tokenizer of its own."""
    own = place.folder is not None and (place.folder / "tokenizer_config.json").exists()
    return place if own else base


def _load_processor(place: Place) -> ProcessorMixin | None:
    """The processor of a model that takes images; None where it cannot be had, with a warning, since texts need none."""
    try:
        with quiet():
            processor = AutoProcessor.from_pretrained(place.where, **place.options)
    except Exception as error:  # each processor has its own way to miss a file or a package
        message = f"{place.name} can be given no images, since its processor cannot be loaded ({first_sentence(error)})"
        warnings.warn(message, HyperLensWarning, stacklevel=2)
        return None
    return processor if isinstance(processor, ProcessorMixin) else None


def _load_tokenizer(place: Place) -> PreTrainedTokenizerBase:
    name = place.name
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(place.where, **place.options)
    except Exception as error:  # tokenizers raise bare Exception on files that they cannot parse
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(": ")
        raise ModelError(f"{name} has no tokenizer that can be read ({reason}); put its files beside the model") from None
    if not len(tokenizer):
        raise ModelError(f"{name} has no tokenizer; put tokenizer.json and tokenizer_config.json beside the model")
    return tokenizer


def _explain(place: Place, error: Exception) -> str:
    """One sentence for what transformers raised."""
    reason = first_sentence(error)
    if "gguf_file" in place.options:
        return f"{place.name} cannot be loaded ({reason}); expected a complete GGUF file of a causal language model"
    if place.folder is not None:
        return f"{place.name} cannot be loaded ({reason}); expected a complete folder that save_pretrained wrote"
    if "safetensors" in reason:
        return f"{place.name} offers no safetensors on the hub ({reason}); convert it with save_pretrained and give the folder"
    return f"there is no folder {place.name}, and the hub could not give it ({reason}); give a folder, or go online"
