"""A detached signature of a folder that leaves the house: Ed25519 over `record.json`, which lists every other file.

The record has the SHA-256 of all files but the weights, and that of the manifest, which has every tensor's; so one
signature covers the folder. Keys are PEM files as `openssl genpkey -algorithm ed25519` makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignkeep.checkpoint.files import write_bytes
from alignkeep.checkpoint.listing import RECORD_NAME, SIGNATURE_NAME
from alignkeep.errors import CheckpointError, RecipeError


def private_key(path: Path) -> Callable[[Path], Path]:
    """What signs a folder with this key and returns the signature's file. Raises RecipeError for a file that holds no
    such key, and without the library."""
    from_pem = _serialization().load_pem_private_key
    key = _key(path, "--sign-key", "an Ed25519 private key without a password (PEM)", from_pem, "sign", None)
    return lambda folder: write_bytes(folder / SIGNATURE_NAME, key.sign((folder / RECORD_NAME).read_bytes()))


def check_signature(folder: Path, key: Path) -> None:
    """The folder's signature is one by this public key. Raises CheckpointError where there is none, or another's."""
    public = _key(
        key, "--verify-key", "an Ed25519 public key (PEM)", _serialization().load_pem_public_key, "verify"
    )  # fmt: skip
    from cryptography.exceptions import InvalidSignature  # pyright: ignore[reportMissingImports]

    signature = folder / SIGNATURE_NAME
    try:
        public.verify(signature.read_bytes(), (folder / RECORD_NAME).read_bytes())
    except (OSError, InvalidSignature) as error:
        is_there = signature.is_file()
        raise CheckpointError(
            str(signature),
            seen="a signature of another folder or by another key" if is_there else "no signature",
            expected=f"one by the owner of {key}",
            remedy="do not trust the folder" if is_there else "have it signed: alignkeep verify DIR --sign-key KEY",
        ) from error


def _serialization() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise RecipeError(
            "--sign-key or --verify-key",
            seen="no package cryptography",
            expected="it installed",
            remedy="pip install 'alignkeep[sign]'",
        ) from error
    return serialization


def _key(path: Path, option: str, expected: str, load: Any, needs: str, *password: None) -> Any:
    try:
        found = load(path.read_bytes(), *password)
    except (OSError, ValueError, TypeError) as error:
        raise _no_key(path, option, type(error).__name__, expected) from error
    if type(found).__name__ not in ("Ed25519PrivateKey", "Ed25519PublicKey") or not hasattr(found, needs):
        raise _no_key(path, option, type(found).__name__, expected)
    return found


def _no_key(path: Path, option: str, seen: str, expected: str) -> RecipeError:
    return RecipeError(
        f"{option} {path}",
        seen=seen,
        expected=expected,
        remedy="make a pair: openssl genpkey -algorithm ed25519 -out KEY; openssl pkey -in KEY -pubout -out PUBLIC",
    )
