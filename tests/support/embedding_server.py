"""A real HTTP server that answers `POST /v1/embeddings`, and fails when a test says so.

Its vectors come from a hash of the text, so a test can tell which text a vector belongs to.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import numpy.typing as npt

DIMENSION = 8
KEY = "sk-a-key-that-nobody-may-see"
MODEL = "hash-8"


def vector_of(text: str, *, dimension: int = DIMENSION) -> npt.NDArray[np.float32]:
    """Return the vector of `text`, float32 of unit length; other texts have others."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(dimension)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


class Fault(StrEnum):
    """What the server does wrong with one request."""

    NONE = "none"
    RATE_LIMIT = "429 with Retry-After in seconds"
    RATE_LIMIT_DATE = "429 with Retry-After as a date"
    ERROR = "500"
    OVERLOADED = "503"
    SLOW = "slow"
    SHORT = "one vector too few"
    NO_INDEX = "no index"
    TWICE = "an index twice"
    WRONG_DIMENSION = "a vector with another dimension"
    NAN = "a vector with NaN"
    NULL = "a vector with null"
    HUGE = "a vector with a number above float32"
    SHUFFLED = "another order, with the right indexes"
    TRUNCATED = "an answer that is cut off"
    RESET = "connection reset"
    NOT_JSON = "something else than JSON"
    WRONG_KEY = "401"
    NO_MODEL = "404"
    REDIRECT = "302"
    ENDLESS = "an answer that is much too long"


@dataclass
class EmbeddingServer:
    """The state of the server; `url` is the base for an `EmbedderSpec`.

    A slow answer takes `slow_s`, or until `release` is set.
    """

    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    always: Fault = Fault.NONE
    refuses: Callable[[str], bool] = lambda text: False
    dimension: int = DIMENSION
    retry_after_s: float = 0.05
    slow_s: float = 60.0
    requests: list[list[str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reset(self) -> None:
        """Behave, and forget what was asked."""
        self.release.set()
        self.release = threading.Event()
        self.faults, self.always, self.refuses = [], Fault.NONE, lambda text: False
        self.requests, self.headers, self.bodies = [], [], []
        self.dimension, self.retry_after_s, self.slow_s = DIMENSION, 0.05, 60.0
        self.arrived.clear()

    def noted(self, body: dict[str, Any], headers: dict[str, str]) -> Fault:
        """Note a request; return what to do wrong with it."""
        with self._lock:
            self.requests.append(list(body["input"]))
            self.bodies.append(body)
            self.headers.append(headers)
            self.arrived.set()
            return self.faults.pop(0) if self.faults else self.always


@contextmanager
def serve_embeddings() -> Iterator[EmbeddingServer]:
    """Serve on a free port of loopback until the block ends."""
    state = EmbeddingServer()

    class Handler(_Handler):
        server_state = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        state.release.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_state: EmbeddingServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_POST(self) -> None:
        state = self.server_state
        length = int(self.headers["Content-Length"])
        body = json.loads(self.rfile.read(length))
        fault = state.noted(body, dict(self.headers.items()))
        refused = [number for number, text in enumerate(body["input"]) if state.refuses(text)]
        if self.path != "/v1/embeddings":
            self._answer(404, {"error": {"message": f"no {self.path}"}})
        elif fault in _STATUSES:
            self._fail(fault)
        elif refused:
            said = "This model's maximum context length is 512 tokens"
            self._answer(400, {"error": {"message": said, "type": "invalid_request_error"}})
        else:
            self._embed(body["input"], fault)

    def _fail(self, fault: Fault) -> None:
        state = self.server_state
        headers = {}
        if fault is Fault.RATE_LIMIT:
            headers["Retry-After"] = f"{state.retry_after_s}"
        elif fault is Fault.RATE_LIMIT_DATE:
            headers["Retry-After"] = formatdate(time.time() + state.retry_after_s, usegmt=True)
        elif fault is Fault.REDIRECT:
            headers["Location"] = f"{state.url}/elsewhere"
        # Like OpenAI, the server repeats the key in its complaint.
        said = f"{fault.value} ({self.headers.get('Authorization', '')})"
        self._answer(_STATUSES[fault], {"error": {"message": said}}, headers)

    def _embed(self, texts: Sequence[str], fault: Fault) -> None:
        state = self.server_state
        if fault is Fault.RESET:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            self.close_connection = True
            return
        if fault is Fault.SLOW:
            state.release.wait(state.slow_s)
        items: list[dict[str, Any]] = [
            {
                "object": "embedding",
                "index": number,
                "embedding": vector_of(text, dimension=state.dimension).tolist(),
            }
            for number, text in enumerate(texts)
        ]
        _spoil(items, fault)
        content = json.dumps({"object": "list", "data": items, "model": MODEL}).encode()
        if fault is Fault.TRUNCATED:
            content = content[: len(content) // 2]
        elif fault is Fault.NOT_JSON:
            content = b"<html>gateway</html>"
        elif fault is Fault.ENDLESS:
            content += b" " * (4 << 20)
        self._send(200, content, {})

    def _answer(self, status: int, document: object, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(document).encode(), headers or {})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has given up, as tests want it to


_STATUSES = {
    Fault.RATE_LIMIT: 429,
    Fault.RATE_LIMIT_DATE: 429,
    Fault.ERROR: 500,
    Fault.OVERLOADED: 503,
    Fault.WRONG_KEY: 401,
    Fault.NO_MODEL: 404,
    Fault.REDIRECT: 302,
}


def _spoil(items: list[dict[str, Any]], fault: Fault) -> None:
    match fault:
        case Fault.SHORT:
            # As a server does that leaves a text out and counts what is left.
            del items[0]
            for number, item in enumerate(items):
                item["index"] = number
        case Fault.NO_INDEX:
            for item in items:
                del item["index"]
        case Fault.TWICE:
            items[-1]["index"] = 0
        case Fault.WRONG_DIMENSION:
            items[-1]["embedding"] = items[-1]["embedding"][:-1]
        case Fault.NAN:
            items[-1]["embedding"][3] = float("nan")
        case Fault.NULL:
            items[-1]["embedding"][3] = None
        case Fault.HUGE:
            items[-1]["embedding"][3] = 1e39
        case Fault.SHUFFLED:
            items.reverse()
