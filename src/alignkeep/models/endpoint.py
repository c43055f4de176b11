"""A chat model behind an OpenAI-compatible endpoint: OpenAI, vLLM, llama.cpp, Ollama, `transformers serve`.

Requests are tried again where waiting may help (429, 408, 5xx, no connection, no reply in time, a reply that is no chat
completion). Where it cannot, one chat is left without a reply if the request itself is refused (400, 413, 422: a
content filter, a text too long), and any other status stops the run. The key in OPENAI_API_KEY goes to the endpoints
that the command names, or those of them that OPENAI_API_KEY_HOSTS names, and nowhere else: no redirection is followed,
and no error repeats it.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.client import HTTPException, HTTPMessage, HTTPResponse
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import IO, Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from alignkeep.errors import MachineError, RecipeError
from alignkeep.types import Message

KEY_VARIABLE = "OPENAI_API_KEY"
HOSTS_VARIABLE = "OPENAI_API_KEY_HOSTS"
_LONGEST_WAIT = 60.0  # seconds, chosen: a server that asks for more is asked again and counts as failing
HOPELESS = 32  # chosen: so many requests in a row, each tried to the end, do not fail by chance
_PASSING = frozenset({408, 429})
_THOUGHTS = ("reasoning_content", "reasoning")  # vLLM, llama.cpp, SGLang; newer vLLM, Ollama
_OF_REQUEST = frozenset({400, 413, 422})  # what another request may not meet


def is_endpoint(reference: str) -> bool:
    """Whether a model is named by a URL."""
    return reference.startswith(("http://", "https://"))


def url_and_name(reference: str, where: str) -> tuple[str, str]:
    """The two parts of `https://host/v1#name`. Raises RecipeError, at `where`, for anything else."""
    url, _, name = reference.partition("#")
    _check_url(url)
    if not name:
        raise RecipeError(
            where, seen=f"{url}, a URL without a model", expected="https://host/v1#name",
            remedy="add # and the name that the endpoint knows the model by",
        )  # fmt: skip
    return url, name


@dataclass(frozen=True, slots=True)
class Reply:
    """A chat completion: its words (None: it has none), why it ended, and the thought before it where it is given
    apart; how many tokens were read and written (None where that is not said), under which name the model answered, and
    the seconds of the request."""

    text: str | None
    finish: str | None = None
    thought: str = ""
    tokens_read: int | None = None
    tokens_written: int | None = None
    name: str | None = None
    seconds: float = 0.0

    @property
    def truncated(self) -> bool:
        return self.finish == "length"


class Outcome(NamedTuple):
    """What became of a request: a reply, the fault of its last try, or its refusal."""

    reply: Reply | None
    fault: str | None = None
    refusal: RecipeError | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An `Ask` over HTTP: POST `url`/chat/completions, greedy, at most `concurrency` requests at once.

    `timeout` is in seconds and for one try; before its n-th repetition a request waits 2^(n-1) seconds, or what
    Retry-After asks (in seconds) if that is longer, at most a minute. Once it `has_answered`, a call of fewer chats
    than `hopeless` does not raise where all of them fail: a few that are left of many may be the ones that cannot be
    answered. `body` goes into every request; None takes a field out. Raises RecipeError for a URL that is none.
    """

    url: str
    model: str
    max_tokens: int = 512
    timeout: float = 60.0
    retries: int = 4
    concurrency: int = 8
    hopeless: int = 1
    spares_faults: bool = True
    body: Mapping[str, object] = field(default_factory=dict[str, object])
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)
    has_answered: Event = field(default_factory=Event, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_url(self.url)
        for name, below in (("max_tokens", 0), ("timeout", 0), ("concurrency", 0), ("retries", -1)):
            if not getattr(self, name) > below:
                seen = str(getattr(self, name))
                raise RecipeError(f"endpoint {name}", seen=seen, expected=f"more than {below}", remedy="raise it")

    def __call__(self, chats: Sequence[tuple[Message, ...]]) -> list[str | None]:
        """Replies in the order of the chats.

        None for a request that failed to the end or was refused, and for a reply without text or cut off at
        `max_tokens`. Raises MachineError where all requests fail, or so many in a row that waiting is no use;
        RecipeError where the endpoint refuses all of them, or whoever asks.
        """
        replies: list[str | None] = []
        refusals: list[RecipeError] = []
        last: str | None = None
        lost, failed, few = 0, 0, self.hopeless if self.has_answered.is_set() else 1
        with self._asked(chats) as futures:
            for future in futures:
                reply, fault, refusal = future.result()
                failed = 0 if fault is None else failed + 1
                lost, last = (lost + 1, fault) if fault is not None else (lost, last)
                if fault is None and refusal is None:
                    self.has_answered.set()
                if refusal is not None:
                    refusals.append(refusal)
                    if len(refusals) >= max(len(chats), few):
                        raise refusal
                if failed >= min(max(len(chats), few), HOPELESS):
                    raise self.failure(f"{failed} requests in a row", fault)
                replies.append(None if reply is None or reply.truncated else reply.text)
        if lost and not self.spares_faults:
            raise self.failure(f"{lost} of {len(chats)} requests", last)
        return replies

    def failure(self, what: str, fault: str | None) -> MachineError:
        """The error of an endpoint that does not answer."""
        return MachineError(
            "endpoint",
            seen=f"{what} to {self.url} failed, the last one with: {fault}",
            expected="replies",
            remedy="see that the endpoint is up, then give the same command again: state is kept",
        )

    def arrivals(self, chats: Sequence[tuple[Message, ...]]) -> Generator[list[tuple[int, Outcome]], None, None]:
        """The places of the chats and what became of their requests, as they come: all that is there at a time. Once it
        is closed no request is begun any more. Raises RecipeError where the endpoint refuses whoever asks."""
        with self._asked(chats) as futures:
            arrived: SimpleQueue[Future[Outcome]] = SimpleQueue()
            for future in futures:
                future.add_done_callback(arrived.put)
            left = len(futures)
            while left:
                batch = [arrived.get()]
                while not arrived.empty():
                    batch.append(arrived.get())
                left -= len(batch)
                failed = [future for future in batch if future.exception() is not None]
                came = [(futures[future], future.result()) for future in batch if future not in failed]
                if came:
                    yield came  # what was paid for is kept before the error
                if failed:
                    failed[0].result()

    @contextmanager
    def _asked(self, chats: Sequence[tuple[Message, ...]]) -> Iterator[dict[Future[Outcome], int]]:
        """The outcomes to come and the places of their chats, in the order of the chats. Behind the block no request is
        begun any more.

        Its threads are daemons and no ThreadPoolExecutor's, for Python waits for those before it exits: Ctrl-C would
        hang until the slowest reply.
        """
        line = _Line(self, build_opener(_NoRedirection), _key(self.url), Event())
        futures: dict[Future[Outcome], int] = {Future(): place for place in range(len(chats))}
        waiting: SimpleQueue[tuple[Future[Outcome], tuple[Message, ...]]] = SimpleQueue()
        for job in zip(futures, chats, strict=True):
            waiting.put(job)

        def work() -> None:
            while True:
                try:
                    future, chat = waiting.get_nowait()
                except Empty:
                    return
                try:
                    future.set_result(line.outcome(chat))
                except BaseException as error:  # noqa: BLE001  it is raised where the result is awaited
                    future.set_exception(error)

        for _ in range(min(self.concurrency, len(chats))):
            Thread(target=work, name="endpoint", daemon=True).start()
        try:
            yield futures
        finally:
            line.is_closed.set()


class _PassingError(Exception):
    """A try that failed and may succeed later; `wait` is how many seconds the server asks for."""

    def __init__(self, seen: str, wait: float = 0.0) -> None:
        self.wait = wait
        super().__init__(seen)


class _RefusedError(Exception):
    """A request that the endpoint will not take, which says nothing about the next one."""

    def __init__(self, why: RecipeError) -> None:
        self.why = why
        super().__init__(str(why))


class _Line(NamedTuple):
    """The way to an endpoint during one call."""

    endpoint: Endpoint
    opener: OpenerDirector
    key: str
    is_closed: Event

    def outcome(self, chat: tuple[Message, ...]) -> Outcome:
        """The request, tried until it succeeds or the tries are used up. Raises RecipeError where it is refused."""
        endpoint = self.endpoint
        messages = [{"role": message.role, "content": message.content} for message in chat]
        body = {"model": endpoint.model, "temperature": 0, "max_tokens": endpoint.max_tokens, **endpoint.body}
        asked = {key: value for key, value in body.items() if value is not None} | {"messages": messages}
        data = json.dumps(asked).encode("ascii")
        fault, wait = "", 0.0
        for tries in range(endpoint.retries + 1):
            if tries:
                endpoint.sleep(min(max(2 ** (tries - 1), wait), _LONGEST_WAIT))
            if self.is_closed.is_set():
                break
            began = time.monotonic()
            try:
                reply = _reply(self._post(data))
                return Outcome(replace(reply, seconds=time.monotonic() - began))
            except _PassingError as error:
                fault, wait = str(error), error.wait
            except _RefusedError as error:
                return Outcome(None, None, error.why)
        return Outcome(None, _shown(fault, self.key))

    def _post(self, data: bytes) -> bytes:
        timeout = self.endpoint.timeout
        headers = {"Content-Type": "application/json", "User-Agent": "alignkeep"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = Request(f"{self.endpoint.url.rstrip('/')}/chat/completions", data, headers, method="POST")
        deadline = time.monotonic() + timeout
        try:
            with self.opener.open(request, timeout=timeout) as response:
                return _read(response, deadline)
        except HTTPError as error:
            with error:
                raise self._refusal(error) from error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)  # urllib wraps most, but not all, of what the socket raises
            if isinstance(reason, TimeoutError):
                raise _PassingError(f"no reply within {timeout:g} s") from error
            raise _PassingError(f"{type(reason).__name__}: {reason}") from error

    def _refusal(self, error: HTTPError) -> _PassingError | _RefusedError | RecipeError:
        status, told = error.code, f"HTTP {error.code} {error.reason}: {_body(error)}"
        if status in _PASSING or status >= 500:
            return _PassingError(told, _seconds(error.headers.get("Retry-After", "")))
        if status in (401, 403):
            remedy = f"set {KEY_VARIABLE} to a key that this endpoint takes for this model"
        elif status == 404:
            remedy = f"check the URL (without /chat/completions) and the model's name ({self.endpoint.model})"
        elif status < 400:
            remedy = "give the URL it points to; the key is not carried there"
        else:
            remedy = "read what the endpoint says; the model may want other settings, or have less room for the texts"
        why = RecipeError(
            f"endpoint {self.endpoint.url}", seen=_shown(told, self.key), expected="a chat completion", remedy=remedy
        )
        return _RefusedError(why) if status in _OF_REQUEST else why


class _NoRedirection(HTTPRedirectHandler):
    """urllib would carry the key to wherever it is sent."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


def _key(url: str) -> str:
    """The key; none where OPENAI_API_KEY_HOSTS names the hosts (HOST or HOST:PORT, with commas) that may have it and
    this is none of them."""
    hosts = {host.strip().lower() for host in os.environ.get(HOSTS_VARIABLE, "").split(",")} - {""}
    parts = urlsplit(url)
    if hosts and not hosts & {parts.netloc.lower(), parts.hostname}:
        return ""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise RecipeError(
            KEY_VARIABLE,
            seen="white space or letters that a header cannot hold (not shown)",
            expected="a key, or nothing where the endpoint wants none",
            remedy="set it again, copied whole",
        )
    return key


def _check_url(url: str) -> None:
    """RecipeError unless it is a plain http or https URL. One that may hold a secret is not repeated."""
    expected = "http://HOST[:PORT]/PATH or https://..., without user, password, query and fragment"
    if "@" in url or "?" in url:
        raise RecipeError(
            "endpoint URL",
            seen="a URL with credentials or a query (not shown)",
            expected=expected,
            remedy=f"put a key into the environment variable {KEY_VARIABLE}, and the plain URL here",
        )
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine or "#" in url or not re.fullmatch(r"[!-~]+", url):
        raise RecipeError("endpoint URL", seen=repr(url), expected=expected, remedy="e.g. http://localhost:8000/v1")


def _read(response: HTTPResponse, deadline: float) -> bytes:
    """The whole body. The socket's own timeout would let a server trickle for ever."""
    parts: list[bytes] = []
    while part := response.read1(65536):
        parts.append(part)
        if time.monotonic() > deadline:
            raise TimeoutError
    return b"".join(parts)


def _body(error: HTTPError) -> str:
    try:
        return error.read(2000).decode("utf-8", "replace")
    except (OSError, HTTPException):
        return "(no more was said)"  # the status is what matters, and it is known


def _reply(data: bytes) -> Reply:
    """A chat completion, read. What else a server says of it is taken where it has the usual form."""
    try:
        whole = json.loads(data)
        choice = whole["choices"][0]
        words, finish, message = choice["message"].get("content"), choice.get("finish_reason"), choice["message"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _PassingError(f"no chat completion, but {data[:2000].decode('utf-8', 'replace')}") from error
    if words is not None and not isinstance(words, str):
        raise _PassingError(f"a chat completion whose content is a {type(words).__name__}")
    thought = next((text for key in _THOUGHTS if isinstance(text := message.get(key), str)), "")
    usage = whole.get("usage")
    counts: Mapping[str, Any] = usage if isinstance(usage, dict) else {}
    name = whole.get("model")
    return Reply(
        None if words is None else _whole_letters(words),
        finish if isinstance(finish, str) else None,
        _whole_letters(thought),
        _count(counts.get("prompt_tokens")),
        _count(counts.get("completion_tokens")),
        _whole_letters(name)[:200] if isinstance(name, str) else None,
    )


def _whole_letters(text: str) -> str:
    """JSON can spell halves of characters."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _seconds(text: str) -> float:
    return float(text) if re.fullmatch(r"\d{1,9}(\.\d+)?", text.strip(), re.ASCII) else 0.0


def _shown(text: str, key: str) -> str:
    """At most 300 printable characters, without the key."""
    text = text.replace(key, "(key)") if key else text
    return "".join(letter if letter.isprintable() else " " for letter in text)[:300]
