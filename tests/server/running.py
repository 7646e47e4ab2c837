"""A server under test: one that runs already, or one that is started here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

PATIENCE = 60.0
"""Seconds until a wait is given up: for machines that are busy with something else, too."""


@dataclass
class Running:
    """A server that answers."""

    url: str
    process: subprocess.Popen | None = None
    log: Path | None = None
    keys: dict[str, str] = field(default_factory=dict)
    """Secrets by name, where the server has keys."""

    @property
    def port(self) -> int:
        return httpx.URL(self.url).port or 80

    def post(self, path: str, body: object, **options) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=PATIENCE, **options)

    def get(self, path: str, **options) -> httpx.Response:
        return httpx.get(self.url + path, timeout=PATIENCE, **options)

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric over all series that have these labels."""
        return metric(self.get("/metrics").text, name, **labels)

    def wait_idle(self) -> None:
        """Waits until no answer is being written and none waits to be."""
        until = time.monotonic() + PATIENCE
        while (busy := self.busy()) and time.monotonic() < until:
            time.sleep(0.05)
        assert not busy, f"{busy} answers are still being written after {PATIENCE:.0f} s"

    def busy(self) -> float:
        text = self.get("/metrics").text
        return metric(text, "strata_batch_sequences") + metric(text, "strata_queue_requests")

    def panics(self) -> int:
        """How often the server's log tells of a panic."""
        return self.log.read_text(errors="replace").count("panicked") if self.log else 0

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(PATIENCE)


def metric(text: str, name: str, **labels: str) -> float:
    """Sum of a metric in Prometheus' text over all series that have these labels."""
    total = 0.0
    for line in text.splitlines():
        found = re.fullmatch(rf"{name}(?:{{(.*)}})? (\S+)", line)
        if found and all(f'{label}="{value}"' in (found[1] or "") for label, value in labels.items()):
            total += float(found[2])
    return total


def memory_bytes(pid: int) -> int:
    """Bytes of a process that are in memory."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found, f"process {pid} has no memory"
    return int(found[1]) * 1024


def start(binary: str, home: Path, log: Path, *arguments: str, patience: float | None = PATIENCE) -> Running:
    """Starts a server of the models in `home` on a free port, and waits until it is ready, or, with no patience, until it listens."""
    environment = {**os.environ, "STRATA_HOME": str(home)}
    with log.open("wb") as file:
        command = [binary, "serve", "--port", "0", *arguments]
        process = subprocess.Popen(
            command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment
        )
    until = time.monotonic() + (patience or PATIENCE)
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        if found := re.search(r"http://[0-9.]+:\d+", log.read_text(errors="replace")):
            server = Running(found[0], process, log)
            if patience is None or ready(server.url):
                return server
        time.sleep(0.05)
    process.kill()
    raise RuntimeError(f"the server did not become ready; its log:\n{log.read_text(errors='replace')}")


def ready(url: str) -> bool:
    try:
        return httpx.get(url + "/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def create_key(binary: str, home: Path, name: str, *arguments: str) -> str:
    """Makes a key and returns its secret."""
    return keys(binary, home, "create", name, *arguments)["key"]


def keys(binary: str, home: Path, *arguments: str) -> dict:
    """What `strata keys` says, as JSON."""
    command = [binary, "keys", *arguments, "--json"]
    environment = {**os.environ, "STRATA_HOME": str(home)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout)


# What a model that barely learnt anything answers with some words.
QUESTIONS = (
    "Tell me about the town.",
    "Summarise in one sentence: Kebi lives in Tunwick and sells lamps at the market.",
    "Repeat these words: river, window, garden",
)


def long_answer(ask) -> tuple[list, str]:
    """The first messages that `ask` answers with enough text to be stopped within, and the answer."""
    answers = []
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        answers.append(ask(messages))
        if len(answers[-1]) >= 8:
            return messages, answers[-1]
    raise AssertionError(f"no answer is long enough to be stopped: {answers}")
