"""What the stand-ins share: a program that serves HTTP, and those who start it and give it orders.

Such a program prints one line of JSON, which says where it is, and ends with its standard input.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def running(
    module: str,
    prefix: Sequence[str | Path] = (),
    bind: str = "127.0.0.1",
    host: str = "127.0.0.1",
) -> Iterator[dict[str, Any]]:
    """What a program tells of itself, which runs as long as the context lasts.

    Args:
        module: the program's name.
        prefix: a command that runs the one after it, in another network for example.
        bind: the address that it serves on.
        host: where its clients reach it.
    """
    command = [sys.executable, "-m", module, "--bind", bind, "--host", host]
    process = subprocess.Popen(
        [*map(str, prefix), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(30)


def ask(url: str, body: Any = None, method: str | None = None) -> Any:
    """The answer to an order, both in JSON. Without a method, a body is posted."""
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, method=method)
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def serve(bind: str, handler: type[BaseHTTPRequestHandler]) -> int:
    """Serve on a free port; returns it."""
    server = ThreadingHTTPServer((bind, 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_port)


def free_port() -> int:
    """A port for a server that wants to be told one."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Handler(BaseHTTPRequestHandler):
    """Reads a body, gives an answer or hangs up; and says nothing on standard error."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
