"""The endpoint against a real HTTP server of this process: what is sent, what is tried again, what stops the run."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alignkeep.align.config import RewardSettings
from alignkeep.align.reward import load_reward
from alignkeep.errors import MachineError, RecipeError
from alignkeep.models.config import LoadConfig
from alignkeep.models.endpoint import Endpoint
from alignkeep.types import Message
from scripted_server import SILENCE, Asked, Said, Serve, completion

SECRET = "sk-not-to-be-shown"
STUCK = 30.0  # seconds after which a test that waits for another thread gives up


def chats_of(*words: str) -> list[tuple[Message, ...]]:
    return [(Message("user", word),) for word in words]


def test_the_whole_chat_is_sent_and_its_words_come_back(serve: Serve) -> None:
    server = serve(lambda asked: completion(f"{asked.words} ✓ \ud83d"))
    chat = (Message("system", "Be \ud800 brief"), Message("user", "Is 2 > 1? ✓"))
    assert Endpoint(server.url + "/", "judge-7b", max_tokens=33)([chat]) == ["Is 2 > 1? ✓ ✓ ?"]  # half a letter is "?"
    (asked,) = server.asked
    assert (asked.path, asked.headers["Content-Type"]) == ("/v1/chat/completions", "application/json")
    turns = [{"role": "system", "content": "Be \ud800 brief"}, {"role": "user", "content": "Is 2 > 1? ✓"}]
    assert asked.body == {"model": "judge-7b", "temperature": 0, "max_tokens": 33, "messages": turns}
    assert Endpoint(server.url, "judge-7b")([]) == []
    assert len(server.asked) == 1


FAULTS: dict[str, Said | tuple[bytes, ...]] = {
    "a busy server": Said(503, b"busy"),
    "a broken server": Said(500),
    "a slow proxy": Said(408),
    "a limit": Said(429, b"slow down"),
    "a closed connection": SILENCE,
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n\r\n",),
    "no JSON": Said(200, b"<html>starting</html>"),
    "half of the JSON": Said(200, b'{"choices": [{"mess'),
    "half of the body": Said(200, b"{", (("Content-Length", "1000"),)),
    "no choices": Said(200, b'{"error": {"message": "overloaded"}}'),
    "an empty list": Said(200, b'{"choices": []}'),
    "a content that is no text": completion(["words"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_may_pass_is_tried_again(fault: str, serve: Serve) -> None:
    server = serve(lambda asked: FAULTS[fault] if asked.nth <= 3 else completion("fine"))
    pauses: list[float] = []
    assert Endpoint(server.url, "judge", retries=3, sleep=pauses.append)(chats_of("one")) == ["fine"]
    assert pauses == [1.0, 2.0, 4.0]  # by hand: 2^0, 2^1, 2^2


@pytest.mark.parametrize(
    ("asks", "pause"), [("7", 7.0), ("0.5", 1.0), ("3600", 60.0), ("soon", 1.0), ("-3", 1.0), ("nan", 1.0)]
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_asks_for_a_pause_gets_it_up_to_a_minute(
    asks: str, pause: float, status: int, serve: Serve
) -> None:
    busy = Said(status, b"", (("Retry-After", asks),))
    server = serve(lambda asked: busy if asked.nth == 1 else completion("fine"))
    pauses: list[float] = []
    assert Endpoint(server.url, "judge", sleep=pauses.append)(chats_of("one")) == ["fine"]
    assert pauses == [pause]


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(409, "read what the endpoint says"), (401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "check the URL")],
)
def test_a_refused_request_stops_the_run_at_once(status: int, remedy: str, serve: Serve) -> None:
    server = serve(lambda _: Said(status, b'{"error":\n{"message": "no such\x1b model"}}'))
    pauses: list[float] = []
    with pytest.raises(RecipeError, match=remedy) as caught:
        Endpoint(server.url, "judge", concurrency=1, sleep=pauses.append)(chats_of("one", "two"))
    assert server.url in str(caught.value)
    assert '{"error": {"message": "no such model"}}' in str(caught.value)
    assert [asked.nth for asked in server.asked if asked.words == "one"] == [1]
    assert pauses == []


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_is_refused_for_its_text_is_unscored_and_the_others_are_not(status: int, serve: Serve) -> None:
    """A content filter, a text too long: asked once, and no fault of the machine. Refused all of them, it is one."""
    server = serve(lambda asked: Said(status, b"filtered") if asked.words == "two" else completion(asked.words))
    endpoint = Endpoint(server.url, "judge", sleep=lambda _: None)
    assert endpoint(chats_of("one", "two", "three")) == ["one", None, "three"]
    assert sum(asked.words == "two" for asked in server.asked) == 1
    with pytest.raises(RecipeError, match="filtered"):
        endpoint(chats_of("two", "two"))


@pytest.mark.parametrize("status", [400, 500])
def test_a_few_that_cannot_be_answered_are_unscored_where_that_many_are_not_hopeless(status: int, serve: Serve) -> None:
    """What is left to ask when all else is remembered: one pair that fails for ever would end every run."""
    server = serve(lambda asked: completion("yes") if asked.words == "good" else Said(status, b"why not"))
    endpoint = Endpoint(server.url, "judge", retries=0, hopeless=3, sleep=lambda _: None)
    with pytest.raises((RecipeError, MachineError), match="why not"):  # an endpoint that has never answered
        endpoint(chats_of("one", "two"))
    assert endpoint(chats_of("good")) == ["yes"]
    assert endpoint(chats_of("one", "two")) == [None, None]
    with pytest.raises((RecipeError, MachineError)):
        endpoint(chats_of("one", "two", "three"))


@pytest.mark.parametrize(("criterion", "both_orders"), [("helpful", False), ("harmless", True)])
def test_a_recipes_judge_asks_its_endpoint_with_the_settings_of_the_reward(
    criterion: Any, both_orders: bool, serve: Serve, tmp_path: Path
) -> None:
    server = serve(lambda asked: Said(500) if asked.nth <= 1 else completion("so\nVERDICT: A"))  # a second's pause
    settings = RewardSettings(
        spec=f"judge:{server.url}#small", criterion=criterion, both_orders=both_orders, max_tokens=7, retries=1,
        timeout=9.0, body={"temperature": None, "reasoning_effort": "low"},
    )  # fmt: skip
    reward = load_reward(settings, LoadConfig(device="cpu"), tmp_path / "judgements.jsonl")
    reward_of = {"prompts": ["how?"], "completions": ["so"], "reference": ["thus"]}
    found = reward(**reward_of)
    assert found in ([1.0], [-1.0]) if not both_orders else found == [0.0]  # always A: a contradiction is a tie
    assert {asked.body["model"] for asked in server.asked} == {"small"}
    assert {asked.body["max_tokens"] for asked in server.asked} == {7}
    assert {asked.body["reasoning_effort"] for asked in server.asked} == {"low"}
    assert not any("temperature" in asked.body for asked in server.asked)
    assert len({asked.words for asked in server.asked}) == 1 + both_orders
    assert all(("harmful" in asked.words) == (criterion == "harmless") for asked in server.asked)
    count = len(server.asked)
    again = load_reward(settings, LoadConfig(device="cpu"), tmp_path / "judgements.jsonl")
    assert again(**reward_of) == found
    assert len(server.asked) == count


def test_once_the_run_is_stopped_no_request_is_begun(serve: Serve) -> None:
    stopped = threading.Event()

    def respond(asked: Asked) -> Said:
        if asked.words == "one":
            return Said(401)
        assert stopped.wait(STUCK)
        return Said(500)

    server = serve(respond)
    with pytest.raises(RecipeError):
        Endpoint(server.url, "judge", concurrency=1, sleep=lambda _: None)(chats_of("one", "two", "three", "four"))
    stopped.set()
    for thread in threading.enumerate():
        if thread.name == "endpoint":
            thread.join(STUCK)
    assert [(asked.words, asked.nth) for asked in server.asked] in ([("one", 1)], [("one", 1), ("two", 1)])


def test_a_request_that_fails_to_the_end_has_no_reply_and_the_others_have(serve: Serve) -> None:
    server = serve(lambda asked: Said(500) if asked.words == "two" else completion(asked.words))
    pauses: list[float] = []
    endpoint = Endpoint(server.url, "judge", retries=2, sleep=pauses.append)
    assert endpoint(chats_of("one", "two", "three")) == ["one", None, "three"]
    assert sum(asked.words == "two" for asked in server.asked) == 3
    assert pauses == [1.0, 2.0]


def test_a_call_of_which_every_request_fails_is_the_machines_fault(serve: Serve) -> None:
    server = serve(lambda _: Said(502, b"bad gateway"))
    with pytest.raises(MachineError, match=r"endpoint: .*HTTP 502 Bad Gateway: bad gateway.*same command") as caught:
        Endpoint(server.url, "judge", retries=1, sleep=lambda _: None)(chats_of("one", "two", "three"))
    assert caught.value.exit_code == 4
    assert server.url in str(caught.value)
    server.close()
    with pytest.raises(MachineError, match="refused"):
        Endpoint(server.url, "judge", retries=1, sleep=lambda _: None)(chats_of("one"))


def test_an_endpoint_that_went_away_is_given_up(serve: Serve) -> None:
    server = serve(lambda asked: Said(500) if "down" in asked.words else completion("fine"))
    endpoint = Endpoint(server.url, "judge", retries=0)
    down = [f"down {index}" for index in range(64)]
    assert endpoint(chats_of(*down[:31], "up", *down[31:62])) == [*[None] * 31, "fine", *[None] * 31]
    with pytest.raises(MachineError, match="32 requests in a row"):
        endpoint(chats_of("up", *down[:32], "up again"))


def test_a_reply_that_is_cut_off_or_without_words_is_none_and_no_fault(serve: Serve) -> None:
    odd = {"cut": completion("VERDICT: A", "length"), "filtered": completion(None, "content_filter")}
    server = serve(lambda asked: odd[asked.words])
    assert Endpoint(server.url, "judge")(chats_of("cut")) == [None]
    assert Endpoint(server.url, "judge")(chats_of("filtered")) == [None]
    assert len(server.asked) == 2


def test_a_server_that_is_silent_for_too_long_is_asked_again(serve: Serve) -> None:
    over = threading.Event()
    waits: list[bool] = []

    def respond(asked: Asked) -> Said | Iterable[bytes]:
        if asked.nth == 1:
            waits.append(over.wait(STUCK))
            return SILENCE
        over.set()
        return completion("fine")

    endpoint = Endpoint(serve(respond).url, "judge", timeout=2.0, sleep=lambda _: None)
    assert endpoint(chats_of("one")) == ["fine"]
    assert False not in waits  # the first try was given up while the server was still silent


def test_the_time_of_a_request_ends_though_the_server_trickles(serve: Serve) -> None:
    over = threading.Event()

    def respond(asked: Asked) -> Iterator[bytes]:
        yield b"HTTP/1.0 200 OK\r\n\r\n"
        while not over.wait(0.02):
            yield b" "

    with pytest.raises(MachineError, match=r"no reply within 0\.2 s"):
        Endpoint(serve(respond).url, "judge", timeout=0.2, retries=0)(chats_of("one"))
    over.set()


def test_replies_keep_the_order_of_the_chats_though_the_last_is_ready_first(serve: Serve) -> None:
    ready = [threading.Event() for _ in range(7)]
    ready[6].set()

    def respond(asked: Asked) -> Said:
        assert ready[int(asked.words) + 1].wait(STUCK)
        ready[int(asked.words)].set()
        return completion(f"reply {asked.words}")

    replies = Endpoint(serve(respond).url, "judge", concurrency=6)(chats_of(*"012345"))
    assert replies == [f"reply {index}" for index in range(6)]


def test_no_more_requests_are_under_way_than_allowed(serve: Serve) -> None:
    four = threading.Barrier(4)
    met: list[bool] = []

    def respond(asked: Asked) -> Said:
        try:
            four.wait(0.5)
            met.append(True)
        except threading.BrokenBarrierError:
            met.append(False)
        return completion("fine")

    assert Endpoint(serve(respond).url, "judge", concurrency=3)(chats_of(*"abcdefgh")) == ["fine"] * 8
    assert met == [False] * 8


@pytest.mark.parametrize(("status", "kind"), [(401, RecipeError), (500, MachineError), (200, MachineError)])
def test_the_key_is_sent_and_never_shown(
    status: int, kind: type[Exception], serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(lambda asked: Said(status, f"bad key: {asked.headers['Authorization']}".encode()))
    monkeypatch.setenv("OPENAI_API_KEY", f" {SECRET}\n")
    endpoint = Endpoint(server.url, "judge", retries=0)
    with pytest.raises(kind, match=r"Bearer \(key\)") as caught:
        endpoint(chats_of("one"))
    assert server.asked[0].headers["Authorization"] == f"Bearer {SECRET}"
    assert SECRET not in str(caught.value) + repr(endpoint)


def test_without_a_key_none_is_sent_and_one_that_cannot_be_sent_is_refused(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(lambda _: completion("fine"))
    assert Endpoint(server.url, "judge")(chats_of("one")) == ["fine"]
    assert "Authorization" not in server.asked[0].headers
    monkeypatch.setenv("OPENAI_API_KEY", f"{SECRET}\nX-Other: 1")
    with pytest.raises(RecipeError, match="OPENAI_API_KEY: ") as caught:
        Endpoint(server.url, "judge")(chats_of("one"))
    assert SECRET not in str(caught.value)


def test_the_key_is_not_carried_to_where_a_redirection_points(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = serve(lambda _: completion("VERDICT: A"))
    server = serve(lambda _: Said(302, b"", (("Location", f"{elsewhere.url}/chat/completions"),)))
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with pytest.raises(RecipeError, match=r"HTTP 302 .*give the URL it points to"):
        Endpoint(server.url, "judge")(chats_of("one"))
    assert elsewhere.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "", "localhost:8000/v1", "file:///etc/passwd", "ftp://host/v1", "http://", "http:///v1", "http://host:port/v1",
        "http://host:99999", "http://[::1/v1", "http://host/a b", "http://host/v1#x", "ht\ntp://host", "http://hôte/v1",
    ],
)  # fmt: skip
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(RecipeError, match=r"endpoint URL: .*http://localhost:8000/v1"):
        Endpoint(url, "judge")


@pytest.mark.parametrize(
    "url", [f"http://me:{SECRET}@host/v1", f"https://{SECRET}@host", f"ftp://a:{SECRET}@h", f"http://h/v1?key={SECRET}"]
)
def test_a_url_that_may_hold_a_secret_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(RecipeError, match=r"not shown.*OPENAI_API_KEY") as caught:
        Endpoint(url, "judge")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("concurrency", 0), ("timeout", 0.0), ("timeout", math.nan), ("max_tokens", 0), ("retries", -1)],
)
def test_settings_that_would_ask_nothing_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=f"endpoint {setting}: "):
        Endpoint("http://localhost:8000/v1", "judge", **{setting: value})


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to one process")
def test_an_interrupt_does_not_wait_for_replies(serve: Serve) -> None:
    over, reached = threading.Event(), threading.Event()

    def respond(asked: Asked) -> Iterable[bytes]:
        reached.set()
        over.wait(10 * STUCK)
        return SILENCE

    code = (
        # A test run in the background ignores the signal, and so would this one.
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from alignkeep.models.endpoint import Endpoint\nfrom alignkeep.types import Message\n"
        f"Endpoint({serve(respond).url!r}, 'judge', timeout=3600.0)([(Message('user', str(n)),) for n in range(99)])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        assert reached.wait(STUCK)
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in process.communicate(timeout=STUCK)[1]  # else TimeoutExpired: it hangs
    finally:
        process.kill()
        over.set()
