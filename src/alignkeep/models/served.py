"""A model that somebody serves, as the one that is asked: prompts in, answers out, nothing of it on this machine.

What it says lies in a log as soon as it is there, under the hash of its request: a killed run asks for the rest alone,
and equal requests are made once. Such a model is known by its URL and its name and by nothing else, and can change
under them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from alignkeep.checkpoint.parts import append_rows, recover_rows
from alignkeep.errors import NoEffectError, RecipeError
from alignkeep.models.config import EndpointConfig, GenerationConfig, LoadConfig
from alignkeep.models.endpoint import HOPELESS, Endpoint, Reply, is_endpoint, url_and_name
from alignkeep.models.fingerprint import fingerprint_model
from alignkeep.models.folders import resolve
from alignkeep.models.thinking import THOUGHT_BEGINS, THOUGHT_ENDS
from alignkeep.types import Checkpoint, Message, Prompt

REPLIES = "served.partial.jsonl"
CAN_CHANGE = "known by its URL and name alone: a served model can change under its name"
_NONE = Reply(None)
_SILENT = 8  # chosen: so many requests, each tried to the end, and not one reply: nobody is there


class ServedAnswer(NamedTuple):
    """What a served model said; `no_answer` says why it said nothing that could be judged."""

    text: str
    truncated: bool
    no_answer: str | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """What the answers of a served model took. `tokens_read` and `tokens_written` are None where the endpoint does not
    count them, `seconds` are those of the requests, added up; `names` are what the model answered as."""

    requests: int
    without_answer: int
    tokens_read: int | None
    tokens_written: int | None
    seconds: float
    names: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        return {
            "requests": self.requests,
            "without_answer": self.without_answer,
            "tokens_read": self.tokens_read,
            "tokens_written": self.tokens_written,
            "seconds": round(self.seconds, 3),
            "names": list(self.names),
        }

    def __str__(self) -> str:
        parts = [f"{self.requests} requests"]
        if self.tokens_read is not None and self.tokens_written is not None:
            parts.append(f"{self.tokens_read} tokens read and {self.tokens_written} written")
        parts.append(f"{self.seconds / max(self.requests, 1):.2g} s each")
        if self.without_answer:
            parts.append(f"{self.without_answer} without an answer (unscored)")
        return ", ".join(parts)


class Served:
    """The model behind an endpoint: greedy answers, kept in the file `log`."""

    def __init__(self, endpoint: Endpoint, log: Path) -> None:
        self._endpoint, self._log = endpoint, log
        self._reference = target_name(f"{endpoint.url}#{endpoint.model}")
        self._asked_with = [self._reference, endpoint.max_tokens, dict(endpoint.body)]
        self._rows: dict[str, dict[str, Any]] = {
            row["key"]: row for row in recover_rows(log) if row["model"] == self._reference
        }
        if any(row["no_answer"] is None for row in self._rows.values()):
            self._endpoint.has_answered.set()

    def answer(self, prompts: Sequence[Prompt], on_answers: Callable[[list[tuple[int, ServedAnswer]]], None]) -> None:
        """Prompts' places and answers, as they come; what the log holds comes first.

        A request that the endpoint refuses for its text (a filter, a text too long) is no answer, and not made again.
        Raises RecipeError where the endpoint refuses all of them, or whoever asks; MachineError where some failed to
        the end, after all others were asked, or where so many do in a row that waiting is no use.
        """
        places: dict[str, list[int]] = {}
        chats: dict[str, tuple[Message, ...]] = {}
        for place, prompt in enumerate(prompts):
            key = self._key(prompt)
            places.setdefault(key, []).append(place)
            if key not in self._rows:
                chats[key] = prompt.messages

        def tell(keys: Iterable[str]) -> None:
            rows = [(place, self._rows[key]) for key in keys for place in places[key]]
            if rows:
                on_answers([(at, ServedAnswer(row["answer"], row["truncated"], row["no_answer"])) for at, row in rows])

        tell([key for key in places if key not in chats])
        for keys in self._ask(chats):
            tell(keys)

    def _ask(self, chats: dict[str, tuple[Message, ...]]) -> Iterable[list[str]]:
        """The keys of requests once their answers are in the log."""
        keys, has_answered = list(chats), self._endpoint.has_answered
        refused: dict[str, dict[str, Any]] = {}
        refusals: list[RecipeError] = []
        failed, in_a_row, last = 0, 0, None
        with closing(self._endpoint.arrivals(list(chats.values()))) as arrivals:
            for batch in arrivals:
                rows: dict[str, dict[str, Any]] = {}
                for place, (reply, fault, refusal) in batch:
                    if reply is not None:
                        rows[keys[place]] = self._row(keys[place], _said(reply), reply)
                    elif refusal is not None:
                        refused[keys[place]] = self._row(keys[place], ServedAnswer("", False, refusal.seen), _NONE)
                        refusals.append(refusal)
                    failed, last = (failed + 1, fault) if fault is not None else (failed, last)
                    in_a_row = in_a_row + 1 if fault is not None else 0
                if rows:
                    has_answered.set()
                    yield self._keep(rows)
                if in_a_row >= (HOPELESS if has_answered.is_set() else min(_SILENT, len(keys))):
                    raise self._endpoint.failure(f"{in_a_row} requests in a row", last)
        if refusals and not has_answered.is_set():
            raise refusals[-1]
        if refused:
            yield self._keep(refused)
        if failed:
            raise self._endpoint.failure(f"{failed} of {len(keys)} requests", last)

    @property
    def cost(self) -> Cost:
        rows = self._rows.values()

        def total(name: str) -> int | None:
            counts = [row[name] for row in rows if row["name"] is not None or row[name] is not None]
            return sum(counts) if counts and None not in counts else None

        return Cost(
            len(rows), sum(row["no_answer"] is not None for row in rows), total("read"), total("written"),
            sum(row["seconds"] for row in rows), tuple(sorted({row["name"] for row in rows if row["name"]})),
        )  # fmt: skip

    def _row(self, key: str, said: ServedAnswer, reply: Reply) -> dict[str, Any]:
        return {
            "model": self._reference, "key": key, "answer": said.text, "truncated": said.truncated,
            "no_answer": said.no_answer, "read": reply.tokens_read, "written": reply.tokens_written,
            "name": reply.name, "seconds": reply.seconds,
        }  # fmt: skip

    def _keep(self, rows: Mapping[str, dict[str, Any]]) -> list[str]:
        """Put the rows into the log; their keys."""
        append_rows(self._log, rows.values())
        self._rows.update(rows)
        return list(rows)

    def _key(self, prompt: Prompt) -> str:
        request = [*self._asked_with, [[turn.role, turn.content] for turn in prompt.messages]]
        return sha256(json.dumps(request, sort_keys=True).encode("ascii")).hexdigest()


def _said(reply: Reply) -> ServedAnswer:
    """A reply as an answer: its thought between marks, as a model of this machine has it."""
    text = reply.text or ""
    if reply.finish == "content_filter":
        return ServedAnswer("", False, "withheld by the endpoint's content filter")
    if reply.truncated and not text.strip() and not reply.thought:
        return ServedAnswer("", True, "cut off before its first word")
    if reply.thought:
        is_open = reply.truncated and not text.strip()
        text = THOUGHT_BEGINS[0] + reply.thought + ("" if is_open else THOUGHT_ENDS[0] + text)
    return ServedAnswer(text, reply.truncated)


def served(reference: str, config: EndpointConfig, max_tokens: int, log: Path) -> Served:
    """The model that `https://host/v1#name` means, asked nothing yet; answers have at most `max_tokens`."""
    url, name = url_and_name(reference, "model")
    endpoint = Endpoint(
        url, name, max_tokens=max_tokens, timeout=config.timeout, retries=config.retries,
        concurrency=config.concurrency, body=config.body,
    )  # fmt: skip
    return Served(endpoint, log)


def target_name(reference: str) -> str:
    """A model as it is shown; the same for the same URL and name."""
    if not is_endpoint(reference):
        return reference
    url, name = url_and_name(reference, "model")
    return f"{url.rstrip('/')}#{name}"


def resolve_target(reference: str, revision: str | None = None, *, base: str | None = None) -> Checkpoint:
    """What is asked: a checkpoint as `resolve` finds it, or a served model, which has no folder and is not called yet.
    Raises as `resolve` does, and RecipeError for a URL that is none or names no model."""
    if not is_endpoint(reference):
        return resolve(reference, revision, base=base)
    return Checkpoint(reference=target_name(reference), folder=None, is_adapter=False, base=None)


def fingerprint_target(reference: str, revision: str | None = None, *, base: str | None = None) -> str:
    """As `fingerprint_model`; of a served model its URL and name, which is all that is known of it."""
    if is_endpoint(reference):
        return f"endpoint {target_name(reference)}"
    return fingerprint_model(reference, revision, base=base)


def check_asking(
    models: Sequence[str], load: LoadConfig, generation: GenerationConfig, endpoint: EndpointConfig
) -> None:
    """Raises RecipeError for a setting that a served model among `models` cannot follow, the first being the one whose
    revision `load` names, and NoEffectError for settings of an endpoint where none is asked."""
    urls = [model for model in models if is_endpoint(model)]
    if not urls:
        given = _given(endpoint)
        if given:
            raise NoEffectError(
                f"endpoint.{given[0]}", seen="no model that is served", expected="https://host/v1#name",
                remedy="leave it out",
            )  # fmt: skip
        return
    refused = ["generation.thinking_tokens"] if "thinking_tokens" in _given(generation) else []
    if load.revision is not None and is_endpoint(models[0]):
        refused.append("load.revision")
    if len(urls) == len(models):
        refused += [f"load.{name}" for name in _given(load)]
        refused += [f"generation.{name}" for name in _given(generation) if name != "max_new_tokens"]
    if refused:
        raise RecipeError(
            refused[0],
            seen=f"it, for the served model {target_name(urls[0])}",
            expected="settings that an endpoint can follow: max_new_tokens and those under `endpoint`",
            remedy="leave it out; what a server wants besides goes into endpoint.body",
        )


def _given(config: LoadConfig | GenerationConfig | EndpointConfig) -> list[str]:
    """The settings that are not what they are by default."""
    return [
        name
        for name, field in type(config).model_fields.items()
        if getattr(config, name) != field.get_default(call_default_factory=True)
    ]
