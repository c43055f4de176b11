"""A model in memory with its tokenizer, after everything that could be silently wrong with it was looked at.

transformers fills missing tensors with random numbers and PEFT drops tensors it has no place for, both with a warning
at most. Here each is an error that names the file and the tensor.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from alignkeep.errors import AlignkeepError, CheckpointError, MachineError, RecipeError, ShapeError
from alignkeep.models.config import LoadConfig
from alignkeep.models.fingerprint import fingerprint_model
from alignkeep.models.finite import check_finite, check_stored_finite
from alignkeep.models.folders import base_of, localise, resolve, tensor_entries
from alignkeep.models.headers import load_json
from alignkeep.models.thinking import set_arguments
from alignkeep.models.untrusted import check_size, check_template
from alignkeep.types import Checkpoint

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

__all__ = ["LoadedModel", "check_loadable", "fingerprint_model", "load_model", "load_tokenizer", "resolve"]


@dataclass
class LoadedModel:
    """A model in evaluation mode, on its device, with the tokenizer it is used with."""

    model: Any  # PreTrainedModel or PeftModel: what both can do has no common type
    tokenizer: PreTrainedTokenizerBase
    checkpoint: Checkpoint
    adapter_on: bool = field(init=False)
    engine: Any = field(default=None, init=False, repr=False)  # vLLM's, once it was asked for

    def __post_init__(self) -> None:
        self.adapter_on = self.checkpoint.is_adapter

    @contextmanager
    def as_base(self) -> Iterator[LoadedModel]:
        """The base within the block: the adapter is switched off, and on again after. CheckpointError without one."""
        if not self.checkpoint.is_adapter:
            raise CheckpointError(
                self.checkpoint.reference,
                seen="a full model",
                expected="an adapter, whose base can be shown by switching it off",
                remedy="load the base as a model of its own",
            )
        was_on, self.adapter_on = self.adapter_on, False
        try:
            with self.model.disable_adapter():
                yield self
        finally:
            self.adapter_on = was_on


def load_model(reference: str, config: LoadConfig | None = None, *, base: str | None = None) -> LoadedModel:
    """The model, checked: every tensor there, in its shape, finite, and every adapter tensor in use. `base` is that of
    an adapter which names none.

    Raises CheckpointError (file and tensor named), ShapeError (more tokens than embeddings), MachineError (memory or
    hub), RecipeError (no such device).
    """
    config = config or LoadConfig()
    device = choose_device(config.device)
    checkpoint = localise(resolve(reference, config.revision, base=base), with_code=config.trust_remote_code)
    folder = base_folder = cast(Path, checkpoint.folder)
    if checkpoint.is_adapter:
        base_folder = cast(Path, localise(resolve(*base_of(folder, base)), with_code=config.trust_remote_code).folder)
    tokenizer = _tokenizer(folder, base_folder, config)
    model = _load_full(base_folder, config, device)
    _check_vocabulary(folder, tokenizer, model)
    if checkpoint.is_adapter:
        from alignkeep.models.adapters import attach_adapter

        with _machine_errors(folder):
            model = attach_adapter(model, folder)
    model.eval()
    return LoadedModel(model, tokenizer, checkpoint)


def check_loadable(reference: str, config: LoadConfig | None = None) -> None:
    """Look at what `load_model` looks at, with no model in memory: files, tokenizer, chat template, every tensor that
    the config asks for, its shape and its numbers (a tensor at a time).

    Raises as `load_model` does; for a second model, before the first one has worked for an hour.
    """
    from transformers import AutoConfig, GenerationConfig

    config = config or LoadConfig()
    checkpoint = localise(resolve(reference, config.revision), with_code=config.trust_remote_code)
    folder = base_folder = cast(Path, checkpoint.folder)
    if checkpoint.is_adapter:
        base_folder = cast(Path, localise(resolve(*base_of(folder)), with_code=config.trust_remote_code).folder)
    tokenizer = _tokenizer(folder, base_folder, config)
    _refuse_own_code(base_folder, config)
    check_packing(base_folder, config)
    with _machine_errors(base_folder):
        if (base_folder / "generation_config.json").is_file():
            GenerationConfig.from_pretrained(base_folder, local_files_only=True)
        entries = tensor_entries(base_folder, adapter=False)
        settings = AutoConfig.from_pretrained(
            base_folder, trust_remote_code=config.trust_remote_code, local_files_only=True
        )
        kind = model_class(settings)
        model = check_size(base_folder, entries, trust_remote_code=config.trust_remote_code, kind=kind)
        if "quantization_config" not in load_json(base_folder / "config.json"):  # packed: what it unpacks to is unknown
            _check_all_there(kind, base_folder, trust_remote_code=config.trust_remote_code)
    _check_vocabulary(base_folder, tokenizer, model)
    check_stored_finite(entries)
    if checkpoint.is_adapter:
        check_stored_finite(tensor_entries(folder, adapter=True))


def load_tokenizer(
    reference: str, config: LoadConfig | None = None, *, base: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer that `load_model` would give: the adapter's own where it has one, else the base's."""
    config = config or LoadConfig()
    checkpoint = localise(resolve(reference, config.revision, base=base))
    folder = base_folder = cast(Path, checkpoint.folder)
    if checkpoint.is_adapter:
        base_folder = cast(Path, localise(resolve(*base_of(folder, base))).folder)
    return _tokenizer(folder, base_folder, config)


def choose_device(name: str) -> torch.device:
    """The device asked for; "auto" is cuda, else mps, else cpu. RecipeError if this machine has it not."""
    import torch

    there = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    if torch.cuda.is_available():
        there = ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count())), *there]
    if name == "auto":
        return torch.device(there[0])
    if name not in there:
        raise RecipeError("device", seen=name, expected=" | ".join(["auto", *there]), remedy="choose one of these")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype | str:
    """The dtype asked for; "auto" is float32 on the CPU and the checkpoint's own elsewhere (see LoadConfig)."""
    import torch

    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    return cast(torch.dtype, getattr(torch, name))


def _tokenizer(folder: Path, base_folder: Path, config: LoadConfig) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    own = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    source = folder if own else base_folder
    with _machine_errors(source):
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=config.trust_remote_code, local_files_only=True
        )
    if not tokenizer.chat_template:
        raise CheckpointError(
            str(source / "tokenizer_config.json"),
            seen="no chat template",
            expected="a chat_template, as chat models have",
            remedy="take the chat (instruct) version of the model, or add chat_template.jinja",
        )
    set_arguments(tokenizer, config.template, source)
    check_template(tokenizer, source)
    return cast("PreTrainedTokenizerBase", tokenizer)


def model_class(settings: Any) -> Any:
    """The Auto class that builds the model of a config: of causal language models, else of images and text, else of
    other media, whichever of transformers' mappings has it first. Raises CheckpointError where none has, and for
    encoders with a decoder."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

    kind = settings.model_type
    if getattr(settings, "is_encoder_decoder", False):
        raise _no_chat_model(f"model_type {kind}", "an encoder with a decoder")
    of_its_own = getattr(settings, "auto_map", None) or {}
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
        if type(settings) in auto._model_mapping or auto.__name__ in of_its_own:
            return auto
    raise _no_chat_model(f"model_type {kind}", f"{type(settings).__name__}, which transformers maps to no such model")


def _load_full(folder: Path, config: LoadConfig, device: torch.device) -> Any:
    from transformers import AutoConfig

    _refuse_own_code(folder, config)
    entries = tensor_entries(folder, adapter=False)
    check_packing(folder, config)
    packing = _packing(config.quantization, device)
    with _machine_errors(folder):
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code, local_files_only=True)
        kind = model_class(settings)
        check_size(folder, entries, trust_remote_code=config.trust_remote_code, kind=kind)
        loaded: Any = kind.from_pretrained(
            folder,
            dtype=choose_dtype(config.dtype, device),
            device_map=config.device_map or (None if device.type == "cpu" and not packing else {"": device}),
            quantization_config=packing,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
            # Left to itself transformers raises without naming the tensor; the mismatches are raised below.
            ignore_mismatched_sizes=True,
        )
        model, info = loaded
        _unpacked_as_stored(model)
        _check_loaded(folder, info, model)
        check_finite(model.state_dict(), {name: entry.file for name, entry in entries.items()}, folder)
    model.eval()
    _check_reads_on(folder, model)
    return model


def check_loads(folder: Path, *, trust_remote_code: bool = False) -> None:
    """The folder has every tensor of the class that its config names, which may be more than the language model that is
    tuned. No number is read. Raises CheckpointError naming the first that is missing."""
    import transformers
    from transformers import AutoConfig

    with _machine_errors(folder):
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        named = (getattr(settings, "architectures", None) or [""])[0]
        own: Any = getattr(transformers, named, None) or model_class(settings)
        _check_all_there(own, folder, trust_remote_code=trust_remote_code)


def _check_all_there(kind: Any, folder: Path, *, trust_remote_code: bool) -> None:
    """The folder holds the tensors of this class, in their shapes, and no more of their kinds. No number is read."""
    model, info = kind.from_pretrained(
        folder, device_map="meta", use_safetensors=True, local_files_only=True, output_loading_info=True,
        ignore_mismatched_sizes=True, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    _check_loaded(folder, info, model)


def check_packing(folder: Path, config: LoadConfig) -> None:
    """Whether these weights can be packed here, as `load.quantization` asks.

    Raises CheckpointError for weights that are packed already, RecipeError where bitsandbytes is not installed.
    """
    if config.quantization is None:
        return
    from importlib.util import find_spec

    if "quantization_config" in load_json(folder / "config.json"):
        raise CheckpointError(
            f"{folder / 'config.json'}: quantization_config",
            seen="weights that are quantised already",
            expected=f"plain ones, to be quantised to {config.quantization}",
            remedy="leave load.quantization out",
        )
    if find_spec("bitsandbytes") is None:
        raise RecipeError(
            "load.quantization",
            seen=f"{config.quantization}, and no package to quantise with",
            expected="the package bitsandbytes",
            remedy="pip install 'alignkeep[quant]'",
        )


def _packing(name: str | None, device: torch.device) -> Any:
    """transformers' settings for packing weights while they are loaded; None where nothing is packed."""
    if name is None:
        return None
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=name,
        bnb_4bit_compute_dtype=torch.float32 if device.type == "cpu" else torch.bfloat16,
        bnb_4bit_use_double_quant=True,  # the scales too (QLoRA, Dettmers et al. 2023): 0.37 bits a number less
    )


def _unpacked_as_stored(model: Any) -> None:
    """Where a processor has bfloat16 arithmetic, bitsandbytes stores packed layers anew in another layout at the first
    answer, and then computes with their inputs rounded; over that no adapter learns, and layers whose width is no
    multiple of its blocks fail. Left off, the layers are what they are on any other processor."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _check_reads_on(folder: Path, model: Any) -> None:
    """A trial of three tokens: the model takes text alone, and what it says of a token does not depend on later ones
    (an encoder's head, loaded as a language model, would look ahead)."""
    import torch

    rows = model.get_input_embeddings().weight.shape[0]
    tokens = torch.tensor([[1, 2, 1], [1, 2, 3]], device=model.get_input_embeddings().weight.device) % rows
    try:
        with torch.no_grad():
            logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits.float()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ImportError) as error:
        raise _no_chat_model(str(folder), f"a model that fails on text alone ({_shown(error)})") from error
    one, other = logits[:, :2]
    slack = 1e-3 if model.dtype == torch.float32 else 5e-2
    if (one - other).abs().max() > slack * logits.std():
        raise _no_chat_model(str(folder), f"{type(model).__name__}, whose output depends on the tokens that follow")


def _no_chat_model(where: str, seen: str) -> CheckpointError:
    return CheckpointError(
        where,
        seen=seen,
        expected="a language model that continues text, alone or within a model of images and text",
        remedy="take a chat model",
    )


def _refuse_own_code(folder: Path, config: LoadConfig) -> None:
    """A folder that brings its own classes is refused without the flag, unless transformers has the model itself."""
    from transformers import CONFIG_MAPPING

    settings = load_json(folder / "config.json")
    if config.trust_remote_code or "auto_map" not in settings or settings.get("model_type") in CONFIG_MAPPING:
        return
    raise CheckpointError(
        f"{folder / 'config.json'}: auto_map",
        seen="a model that runs Python code of its own",
        expected="a model type that transformers knows",
        remedy="read that code, then pass --trust-remote-code if you trust it",
    )


def _check_loaded(folder: Path, info: Mapping[str, Any], model: Any) -> None:
    for name, on_disk, wanted in sorted(info["mismatched_keys"], key=str):
        raise CheckpointError(
            f"{folder}: tensor {name}",
            seen=f"shape {tuple(on_disk)}",
            expected=f"{tuple(wanted)}, says config.json",
            remedy="put the config back that belongs to these weights",
        )
    for name in sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{folder}: tensor {name}",
            seen="no such tensor in any file",
            expected="it, says config.json",
            remedy="copy or download the model again; transformers would fill it with random numbers",
        )
    # Some models rightly leave tensors aside (a vision tower). A further layer of a kind the model has is not that:
    # config.json asks for fewer layers or experts than the weights have.
    kinds = {_kind(name) for name in model.state_dict()}
    for name in sorted(info["unexpected_keys"]):
        if _kind(name) in kinds:
            raise CheckpointError(
                f"{folder}: tensor {name}",
                seen="a tensor that the model would not use",
                expected="a config.json that has a place for it",
                remedy="put the config back that belongs to these weights",
            )


def _kind(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def _check_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerBase, model: Any) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ShapeError(
            str(folder),
            seen=f"a tokenizer of {len(tokenizer)} tokens over {rows} embeddings",
            expected="an embedding for every token",
            remedy="use the tokenizer that belongs to this model, or resize the embeddings",
        )


@contextmanager
def quiet() -> Iterator[None]:
    """The reports, warnings and progress bars of transformers are held back meanwhile."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _machine_errors(folder: Path) -> Iterator[None]:
    """Other libraries' errors in our one form; running out of memory is the machine's fault, the rest the folder's.
    What they warn about is raised here."""
    import torch

    try:
        with quiet():
            yield
    except AlignkeepError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MachineError(
            str(folder),
            seen="out of memory",
            expected="room for the weights",
            remedy="use --dtype bfloat16 or another device",
        ) from error
    except Exception as error:
        raise _broken(folder, error) from error


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:240]}"


def _broken(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        str(folder),
        seen=_shown(error),
        expected="a folder that transformers can load",
        remedy="mend or copy the model again",
    )
