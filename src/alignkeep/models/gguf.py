"""A GGUF file as a model: its numbers dequantised once into an ordinary folder, which every verb then reads.

transformers' own reader does the work: it knows which architectures and quantisations can be read, and makes tokenizer
and chat template from the file's metadata. The folder lies in a cache, under the fingerprint of the file, so that the
second command finds it; what is written from it (merges, tunes) is an ordinary Hugging Face folder.

    $ALIGNKEEP_CACHE, or ~/.cache/alignkeep:   gguf/NAME-FINGERPRINT/{config.json, model.safetensors, ...}

Quantised tensors become bfloat16, whose rounding is far below that of four or eight bits; a file that holds float16,
bfloat16 or float32 alone keeps its own.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from alignkeep.errors import CheckpointError

GGUF = ".gguf"
_DONE = "converted.json"  # the last file written: a folder without it is not whole
_ENDS = 1 << 20
_PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file by its name."""
    return path.suffix.lower() == GGUF and path.is_file()


def gguf_folder(file: Path) -> Path:
    """The folder of a GGUF file's model, made where it is not there yet.

    Raises CheckpointError where the file is cut short, is no GGUF, is of an architecture that transformers cannot read,
    or the package `gguf` is not installed.
    """
    folder = _cache() / "gguf" / f"{file.stem}-{_fingerprint(file)[:16]}"
    if (folder / _DONE).is_file():
        return folder
    kind = _check(file)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        logging.getLogger("alignkeep").warning("%s: dequantised once to %s, in %s", file, kind, folder)
        _convert(file, made, kind)
        (made / _DONE).write_text(f'{{"file": "{file.name}", "dtype": "{kind}"}}\n', encoding="utf-8")
        if folder.exists():  # another command was faster, or was killed
            shutil.rmtree(folder)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _cache() -> Path:
    named = os.environ.get("ALIGNKEEP_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignkeep"


def _fingerprint(file: Path) -> str:
    """SHA-256 of size, time of change, and both ends of the file, where header and last tensor lie."""
    about = file.stat()
    digest = hashlib.sha256(f"{about.st_size} {about.st_mtime_ns} 1".encode())
    with file.open("rb") as stream:
        digest.update(stream.read(_ENDS))
        stream.seek(max(about.st_size - _ENDS, 0))
        digest.update(stream.read(_ENDS))
    return digest.hexdigest()


def _check(file: Path) -> str:
    """The dtype that the numbers get. Raises CheckpointError for what is no whole GGUF file."""
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise _unreadable(file, "a file that does not begin as GGUF files do")
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise CheckpointError(
            str(file),
            seen="a GGUF file, and no package to read it with",
            expected="the package gguf",
            remedy="pip install 'alignkeep[gguf]'",
        ) from error
    try:
        tensors = GGUFReader(file).tensors
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, OSError, MemoryError) as error:
        raise _unreadable(file, f"a file that is cut short or damaged ({type(error).__name__})") from error
    size = file.stat().st_size
    for tensor in tensors:
        if tensor.data_offset + tensor.n_bytes > size:
            raise _unreadable(file, f"a file that ends within the tensor {tensor.name}")
    kinds = {tensor.tensor_type.name for tensor in tensors if len(tensor.shape) > 1}
    return _PLAIN[kinds.pop()] if len(kinds) == 1 and kinds <= _PLAIN.keys() else "bfloat16"


def _convert(file: Path, folder: Path, kind: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    named: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **named)
        model: Any = AutoModelForCausalLM.from_pretrained(str(file.parent), dtype=torch.float32, **named)
    except MemoryError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        raise CheckpointError(
            str(file),
            seen=f"a GGUF file that transformers cannot read ({said:.120})",
            expected="an architecture and a quantisation that its GGUF reader knows",
            remedy="give the original Hugging Face folder of this model",
        ) from error
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise _unreadable(file, f"a tokenizer of {len(tokenizer)} tokens over {rows} embeddings")
    settings = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype"):
        settings.pop(key, None)
    model.config = type(model.config)(**settings)
    model.hf_quantizer = None  # the numbers are plain by now, and may be saved
    model.to(getattr(torch, kind)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _unreadable(file: Path, seen: str) -> CheckpointError:
    return CheckpointError(
        str(file), seen=seen, expected="a whole GGUF file", remedy="copy or download it again, or give another model"
    )
