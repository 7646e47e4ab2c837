"""Asks a server very many things at once, good and bad, and breaks some off; reports what came of it as JSON.

Ends with 1 where a good request failed, a bad one was not refused, a place in the batch was not given back,
or the server's memory grew more than it may.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx

import running
from running import Running

GROWTH_BYTES = 96 << 20
"""How much the server's memory may grow after the warm-up: three models' caches of keys and values (32 MiB
each in a server that is started here)."""

WORDS = ["city", "water", "land", "people", "house", "river", "long", "small", "many", "come", "find", "know"]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "ok": {"type": "boolean"}},
    "required": ["name", "ok"],
    "additionalProperties": False,
}
FUNCTION = {"type": "function", "function": {"name": "look_up", "parameters": SCHEMA}}


class Violation(Exception):
    """The server did not do what it should."""


class Connection:
    """A kept-open HTTP/1.1 connection: only what this server sends, and fast."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(self.host, self.port)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.transport.abort()
            self.reader = self.writer = None

    async def send(self, method: str, path: str, body: bytes, cut: int | None = None) -> None:
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
        if method == "POST":
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self.writer.write((head.encode() + b"\r\n" + body)[:cut])
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.split(":", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), {name.lower(): value.strip() for name, value in pairs}

    async def pieces(self, headers: dict[str, str]):
        """The body as it comes."""
        if headers.get("transfer-encoding") != "chunked":
            yield await self.reader.readexactly(int(headers.get("content-length", 0)))
            return
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)


@dataclass
class Request:
    """What is sent, and what must come back."""

    name: str
    method: str
    path: str
    body: bytes = b""
    status: int = 200
    stream_end: str | None = None
    """Text of a stream's last part."""
    pieces: int | None = None
    """Pieces of the body to read before the connection is broken off."""
    cut: int | None = None
    """Bytes of the request to send before the connection is broken off."""


@dataclass
class Tally:
    """What came of the requests."""

    counts: Counter = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


class Mix:
    """Random requests to the models of a server."""

    def __init__(self, models: list[str], seed: int) -> None:
        self.models = models
        self.random = random.Random(seed)

    def text(self) -> str:
        return " ".join(self.random.choices(WORDS, k=self.random.randint(1, 25)))

    def asks(self) -> Iterator[tuple[str, dict, str]]:
        """Path, body and end of stream of everything that can be asked for."""
        chance = self.random
        talk = [{"role": "user", "content": self.text()}]
        for _ in range(chance.randint(0, 2)):
            talk += [{"role": "assistant", "content": self.text()}, {"role": "user", "content": self.text()}]
        short = {"max_tokens": chance.choice([1, 4, 16, 40]), "temperature": chance.choice([0, 0.7, 1])}
        form = {"type": "json_schema", "json_schema": {"name": "form", "schema": SCHEMA}}
        tools = {"tools": [FUNCTION], "max_tokens": 100}
        yield "/v1/chat/completions", {"messages": talk, "n": chance.choice([1, 1, 3]), **short}, "[DONE]"
        yield (
            "/v1/chat/completions",
            {"messages": talk, "logprobs": True, "top_logprobs": 3, **short},
            "[DONE]",
        )
        yield "/v1/chat/completions", {"messages": talk, "response_format": form, "max_tokens": 60}, "[DONE]"
        yield "/v1/chat/completions", {"messages": talk, "tool_choice": "required", **tools}, "[DONE]"
        yield "/v2/chat", {"messages": talk, "stop_sequences": ["e"], **short}, "message-end"
        yield "/v2/chat", {"messages": talk, "documents": [self.text()], **short}, "message-end"
        yield "/v2/chat", {"messages": talk, "tool_choice": "REQUIRED", **tools}, "message-end"
        yield "/v1/chat", {"message": self.text(), "preamble": self.text(), **short}, "stream-end"
        yield "/v1/completions", {"prompt": [self.text(), self.text()], "echo": True, **short}, "[DONE]"
        yield "/v1/generate", {"prompt": self.text(), "num_generations": 2, **short}, "stream-end"

    def good(self) -> Request:
        if self.random.random() < 0.1:
            path = self.random.choice(["/v1/models", f"/v1/models/{self.models[0]}", "/health", "/metrics"])
            return Request("get", "GET", path)
        model = self.random.choice(self.models)
        if self.random.random() < 0.1:
            body = {"model": model, "text": self.text()}
            return Request("tokenize", "POST", "/v1/tokenize", json.dumps(body).encode())
        path, body, end = self.random.choice(list(self.asks()))
        streamed = self.random.random() < 0.5
        body |= {"model": model, "stream": streamed}
        return Request(path, "POST", path, json.dumps(body).encode(), stream_end=end if streamed else None)

    def broken_off(self) -> Request:
        """A request that its client does not wait for."""
        path, body, _ = self.random.choice(list(self.asks()))
        body |= {"model": self.random.choice(self.models), "stream": self.random.random() < 0.8}
        if "response_format" not in body and "tools" not in body:
            body["max_tokens"] = 300
        request = Request("broken off", "POST", path, json.dumps(body).encode())
        if self.random.random() < 0.3:
            request.cut = self.random.randint(0, len(request.body) + 120)
        else:
            request.pieces = self.random.randint(0, 6)
        return request

    def bad(self) -> Request:
        path, body, _ = self.random.choice(list(self.asks()))
        body["model"] = self.random.choice(self.models)
        kind = self.random.randrange(6)
        status, content = 400, b""
        if kind == 0:
            content = json.dumps(body).encode()[: self.random.randint(0, 40)]
        elif kind == 1:
            del body["message" if path == "/v1/chat" else "messages" if "messages" in body else "prompt"]
        elif kind == 2:
            body["max_tokens"] = self.random.choice([-1, 1.5, "x", 10**30])
        elif kind == 3:
            body["temperature"] = self.random.choice([-1, 9, "warm"])
        elif kind == 4:
            body["model"], status = "nothing", 404
        else:
            path, status = "/v1/nothing", 404
        content = content if kind == 0 else json.dumps(body).encode()
        return Request("bad", "POST", path, content, status)

    def next(self) -> Request:
        chance = self.random.random()
        return self.good() if chance < 0.8 else self.broken_off() if chance < 0.9 else self.bad()


async def serve(connection: Connection, request: Request, tally: Tally) -> None:
    """Sends a request and checks what comes."""
    while True:
        await connection.open()
        await connection.send(request.method, request.path, request.body, request.cut)
        if request.cut is not None:
            connection.close()
            tally.counts["broken off"] += 1
            return
        status, headers = await connection.head()
        content, count = b"", 0
        if request.pieces == 0:
            connection.close()
        else:
            async for piece in connection.pieces(headers):
                content, count = content + piece, count + 1
                if request.pieces == count:
                    connection.close()
                    break
        if status == 429:
            tally.counts["retries"] += 1
            await asyncio.sleep(0.1)
            continue
        if status != request.status:
            raise Violation(f"{request.name}: expected {request.status}, got {status}: {content[:300]!r}")
        if request.pieces is None:
            check(request, content, headers)
        tally.counts[
            "broken off" if request.pieces is not None else "bad" if request.name == "bad" else "good"
        ] += 1
        return


def check(request: Request, content: bytes, headers: dict[str, str]) -> None:
    """An answer must be whole, whatever it says."""
    if request.stream_end:
        last = content.decode().rstrip("\n").rpartition("\n")[2]
        if request.stream_end not in last or b'"error"' in content:
            raise Violation(f"{request.name}: the stream ends with {last[-300:]!r}")
    elif headers["content-type"].startswith("application/json"):
        body = json.loads(content)
        if request.status != 200 and not body["message"]:
            raise Violation(f"{request.name}: an error without a message")
        form = b'"response_format"' in request.body and request.status == 200
        if form and sorted(json.loads(body["choices"][0]["message"]["content"])) != ["name", "ok"]:
            raise Violation(f"{request.name}: not of the form asked for: {content[:300]!r}")


async def worker(numbers: Iterator[int], mix: Mix, address: tuple[str, int], tally: Tally) -> None:
    connection = Connection(*address)
    for number in numbers:
        request = mix.next()
        try:
            await asyncio.wait_for(serve(connection, request, tally), running.PATIENCE)
        except Exception as problem:  # Whatever it is, it is the report's and must not end the soak.
            connection.close()
            # A connection that is reset because its own request was broken off is as it should be.
            if isinstance(problem, Violation) or (request.cut is None and request.pieces is None):
                tally.counts["failed"] += 1
                tally.violations.append(
                    f"request {number}, {request.name}: {type(problem).__name__} {problem}"
                )
    connection.close()


def countdown(first: int) -> Iterator[int]:
    yield from range(first - 1, -1, -1)


async def ask_all(
    server: Running, models: list[str], requests: int, connections: int, seed: int, tally: Tally
) -> None:
    parts = urlsplit(server.url)
    numbers = countdown(requests)
    mix = Mix(models, seed)
    address = (parts.hostname, parts.port or 80)
    await asyncio.gather(*(worker(numbers, mix, address, tally) for _ in range(min(connections, requests))))


def soak(server: Running, requests: int, connections: int, seed: int, pid: int | None) -> dict:
    """Runs the whole and returns the report; `violations` in it is empty where all is well."""
    tally = Tally()
    models = [model["id"] for model in server.get("/v1/models").json()["data"]]
    since = time.monotonic()
    memory, busy = [None, None], None
    try:
        # A fifth of the requests is the warm-up, which loads all models and fills the caches.
        for part, count in enumerate((requests // 5, requests - requests // 5)):
            asyncio.run(ask_all(server, models, count, connections, seed + part, tally))
            server.wait_idle()
            memory[part] = running.memory_bytes(pid) if pid else None
        busy = server.busy()
    except (httpx.TransportError, AssertionError, OSError) as problem:
        tally.violations.append(f"afterwards: {problem}")
    seconds = time.monotonic() - since
    # The warm-up of a short soak does not reach everything that is loaded once.
    if None not in memory and requests >= 5000 and memory[1] - memory[0] > GROWTH_BYTES:
        tally.violations.append(f"memory grew from {memory[0]} to {memory[1]} bytes")
    counts = {name: tally.counts[name] for name in ("good", "failed", "bad", "broken off", "retries")}
    return {
        "requests": requests,
        "connections": connections,
        "seed": seed,
        **counts,
        "busy at the end": busy,
        "panics": server.panics(),
        "memory bytes after warm-up": memory[0],
        "memory bytes at the end": memory[1],
        "seconds": round(seconds, 1),
        "requests per second": round(requests / seconds, 1),
        "violations": tally.violations[:20],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default=os.environ.get("STRATA_URL"), help="a server that runs [STRATA_URL]")
    parser.add_argument("--pid", type=int, help="its process, to watch its memory")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    options = (arguments.requests, arguments.connections, arguments.seed)
    if arguments.url:
        report = soak(Running(arguments.url.rstrip("/")), *options, arguments.pid)
    else:
        binary, home = os.environ.get("STRATA_BIN"), os.environ.get("STRATA_HOME")
        if not (binary and home):
            parser.error("set STRATA_BIN (the program) and STRATA_HOME (with models), or give --url")
        with tempfile.TemporaryDirectory() as folder:
            server = running.start(binary, Path(home), Path(folder) / "log", "--cache", "32")
            try:
                report = soak(server, *options, server.process.pid)
            finally:
                server.stop()
    print(json.dumps(report, indent=2))
    return (
        1 if report["violations"] or report["failed"] or report["busy at the end"] or report["panics"] else 0
    )


if __name__ == "__main__":
    sys.exit(main())
