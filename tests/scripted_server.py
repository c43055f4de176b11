"""An HTTP server of this process that answers as a test tells it to: an OpenAI-compatible endpoint with every fault."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Asked(NamedTuple):
    """One request as the server saw it; `nth` counts those with the same words, from 1."""

    path: str
    headers: dict[str, str]
    body: dict[str, object]
    words: str
    nth: int


class Said(NamedTuple):
    """A whole HTTP response."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def completion(words: object, finish_reason: str = "stop") -> Said:
    choice = {"message": {"role": "assistant", "content": words}, "finish_reason": finish_reason}
    return Said(body=json.dumps({"choices": [choice]}).encode())


Respond = Callable[[Asked], Said | Iterable[bytes]]
"""Pieces of bytes go out as they are, one after the other, and the connection is closed."""

SILENCE: tuple[bytes, ...] = ()


class Server:
    """Answers with `respond` until it is closed."""

    def __init__(self, respond: Respond) -> None:
        self.asked: list[Asked] = []
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                said = respond(server.note(self))
                if not isinstance(said, Said):
                    for piece in said:
                        self.wfile.write(piece)
                    return
                self.send_response(said.status)
                for name, value in {"Content-Length": str(len(said.body)), **dict(said.headers)}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(said.body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients that hang up are part of the tests

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def note(self, handler: BaseHTTPRequestHandler) -> Asked:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        words = body["messages"][-1]["content"]
        with self.lock:
            nth = 1 + sum(one.words == words for one in self.asked)
            self.asked.append(Asked(handler.path, dict(handler.headers), body, words, nth))
            return self.asked[-1]

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


Serve = Callable[[Respond], Server]
