"""What a model folder can ask of this machine, found out before it is given: its chat template, which is a program,
and the model that its config describes, which is built before it is compared with the weights.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkeep.errors import CheckpointError
from alignkeep.models.headers import TensorEntry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Chosen: a template of some kilobytes takes milliseconds and writes little more than it was given.
_SECONDS, _WAIT, _MEMORY, _LONGEST = 2, 60.0, 1 << 30, 1_000_000
_LINE = "A line of words, as somebody may write it to a model, and as a model answers. "
_TURNS = [
    {"role": role, "content": _LINE * 10}
    for role in ("system", "user", "assistant", "user", "assistant", "user", "assistant", "user")
]
_CHATS = (_TURNS[1:2], _TURNS[:2], _TURNS[1:], _TURNS)
_MOST_NUMBERS_PER_STORED = 2  # tied weights are counted once; chosen: no model comes near it
_FINE, _LONG, _HEAVY, _SLOW, _FAILED = 0, 3, 4, 5, 6  # what the child leaves with
_FAULTS = {
    _LONG: f"writes more than {_LONGEST} characters",
    _HEAVY: f"takes more than {_MEMORY >> 30} GiB of memory",
    _SLOW: f"takes more than {_SECONDS} seconds",
    _FAILED: "ends the process it runs in",
}

_tried: set[str] = set()


def check_template(tokenizer: PreTrainedTokenizerBase, source: Path) -> None:
    """Let the chat template write four chats in a child process of bounded time and memory; once for every template.

    Raises CheckpointError for a template that takes longer, needs more or writes more than chats ever do. What it
    raises itself is looked at when it is used: some refuse a system message.
    """
    template = str(tokenizer.chat_template)
    if template in _tried:
        return

    def write() -> int:
        for chat in _CHATS:
            try:
                text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            except MemoryError:
                return _HEAVY
            except Exception:  # noqa: BLE001 a refusal, which is said where the turns are known
                continue
            if len(str(text)) > _LONGEST:
                return _LONG
        return _FINE

    ended = _in_a_child(write)
    if ended != _FINE:
        raise CheckpointError(
            f"{source}: chat_template", seen=f"a program that {_FAULTS[ended]} for a chat of some turns",
            expected="one that writes a chat", remedy="do not use it: take the template of the model's makers",
        )  # fmt: skip
    _tried.add(template)


def _in_a_child(work: Callable[[], int]) -> int:
    """What `work` returns, done in a fork of this process; `_SLOW` where it takes too long.

    A fork, since the libraries are there already: it costs some 20 milliseconds. It runs nothing but `work`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, which the child does not use
        child = os.fork()
    if child == 0:
        _limit()
        ended = _FAILED
        try:
            ended = work()
        except MemoryError:
            ended = _HEAVY
        finally:
            os._exit(ended)
    return _wait(child)


def _limit() -> None:
    """Bound the time of the processor and what may be taken beside what is there; nothing is said, nor dumped."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    with contextlib.suppress(OSError, ValueError):  # no /proc on macOS, which knows no such limit either
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _wait(child: int) -> int:
    deadline = time.monotonic() + _WAIT
    done, status = os.waitpid(child, os.WNOHANG)
    while not done:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return _SLOW
        time.sleep(0.005)
        done, status = os.waitpid(child, os.WNOHANG)
    code = os.waitstatus_to_exitcode(status)
    if code in (-signal.SIGKILL, -signal.SIGXCPU):  # the limit of processor time
        return _SLOW
    return code if code in (_FINE, *_FAULTS) else _FAILED


def check_size(folder: Path, entries: Mapping[str, TensorEntry], *, trust_remote_code: bool, kind: Any = None) -> Any:
    """The model that `config.json` describes, without numbers (on torch's meta device), once it was compared with the
    weights by size. `kind` is its automatic class; None: AutoModelForCausalLM.

    Raises CheckpointError where it has far more numbers than are stored, or more layers than tensors.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    text = config.get_text_config()
    longest = max([len(entries), *(length for entry in entries.values() for length in entry.shape)])
    for key in ("num_hidden_layers", "num_local_experts", "num_experts", "n_routed_experts"):
        count, stored = getattr(text, key, None), len(entries) if key == "num_hidden_layers" else longest
        if isinstance(count, int) and count > stored:
            raise _too_large(folder, f"{key}: {count}", f"at most {stored}, for {len(entries)} tensors are stored")
    with torch.device("meta"):
        model = (kind or AutoModelForCausalLM).from_config(config, trust_remote_code=trust_remote_code)
    described = sum(parameter.numel() for parameter in model.parameters())
    most = sum(_most_numbers(entry) for entry in entries.values())
    if described > most:
        raise _too_large(folder, f"a model of {described} numbers", f"at most {most}, for what is stored")
    return model


def _most_numbers(entry: TensorEntry) -> int:
    """How many numbers of a model a tensor can hold: whole numbers are of quantised weights, and at best a bit each."""
    if entry.dtype[0] in "IUB" and entry.dtype != "BF16":
        return 8 * entry.size
    return _MOST_NUMBERS_PER_STORED * math.prod(entry.shape)


def _too_large(folder: Path, seen: str, expected: str) -> CheckpointError:
    remedy = "put the config back that belongs to these weights"
    return CheckpointError(str(folder / "config.json"), seen=seen, expected=expected, remedy=remedy)
