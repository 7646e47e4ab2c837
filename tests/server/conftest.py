"""The server that the tests ask, and the official clients."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cohere
import openai
import pytest

import running
from running import Running


def environment(name: str) -> str | None:
    return os.environ.get(name) or None


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The server at `STRATA_URL`, else one that `STRATA_BIN` starts for the models in `STRATA_HOME`."""
    if url := environment("STRATA_URL"):
        yield Running(url.rstrip("/"))
        return
    binary, home = environment("STRATA_BIN"), environment("STRATA_HOME")
    if not (binary and home):
        pytest.skip("NO SERVER: set STRATA_URL, or STRATA_BIN (the program) and STRATA_HOME (with models)")
    log = tmp_path_factory.mktemp("server") / "log"
    server = running.start(binary, Path(home), log)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def binary() -> str:
    """The program, for tests that start a server of their own."""
    if not (environment("STRATA_BIN") and environment("STRATA_HOME")):
        pytest.skip("NO PROGRAM: set STRATA_BIN (the program) and STRATA_HOME (with models)")
    return os.environ["STRATA_BIN"]


@pytest.fixture(scope="session")
def homes(binary: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes home folders with the models of `STRATA_HOME` and nothing else."""

    def make() -> Path:
        home = tmp_path_factory.mktemp("home")
        (home / "models").symlink_to(Path(os.environ["STRATA_HOME"]).resolve() / "models")
        return home

    return make


@pytest.fixture(scope="session")
def keyed(binary: str, homes: Callable[[], Path]) -> Iterator[Running]:
    """A server that wants keys: `free`, `slow` (2 requests a minute), `brisk` (60), `sparing` (10 tokens)."""
    own = homes()
    keys = {
        "free": running.create_key(binary, own, "free"),
        "slow": running.create_key(binary, own, "slow", "--requests-per-minute", "2"),
        "brisk": running.create_key(binary, own, "brisk", "--requests-per-minute", "60"),
        "sparing": running.create_key(binary, own, "sparing", "--tokens-per-minute", "10"),
    }
    server = running.start(binary, own, own / "log")
    server.keys = keys
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def the_server_lives_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does, the server's process is the same afterwards, and nothing in it panicked."""
    names = [name for name in ("server", "keyed") if name in request.fixturenames]
    servers: list[Running] = [request.getfixturevalue(name) for name in names]
    before = [server.panics() for server in servers]
    yield
    for server, panics in zip(servers, before, strict=True):
        assert server.process is None or server.process.poll() is None, "the server has ended"
        assert server.panics() == panics, f"the server panicked; see {server.log}"


@pytest.fixture(scope="session")
def models(server: Running) -> list[str]:
    return [model["id"] for model in server.get("/v1/models").json()["data"]]


@pytest.fixture(scope="session")
def model(models: list[str]) -> str:
    """A model for conversations."""
    return environment("STRATA_MODEL") or next(
        (name for name in models if name.endswith("-dialogue")), models[0]
    )


@pytest.fixture(scope="session")
def base(models: list[str], model: str) -> str:
    """A model to continue texts."""
    return next((name for name in models if name.endswith("-base")), model)


@pytest.fixture(scope="session")
def token(server: Running, model: str) -> tuple[int, str]:
    """A token of `model` that is a letter: its number and its text."""
    answer = server.post("/v1/tokenize", {"model": model, "text": "x"}).json()
    assert len(answer["tokens"]) == 1
    return answer["tokens"][0], answer["token_strings"][0]


@pytest.fixture(scope="session")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0, timeout=running.PATIENCE)


@pytest.fixture
def async_client(server: Running) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=server.url + "/v1", api_key="any", max_retries=0, timeout=running.PATIENCE
    )


@pytest.fixture(scope="session")
def co(server: Running) -> cohere.ClientV2:
    return cohere.ClientV2(api_key="any", base_url=server.url, timeout=running.PATIENCE)


@pytest.fixture(scope="session")
def co1(server: Running) -> cohere.Client:
    return cohere.Client(api_key="any", base_url=server.url, timeout=running.PATIENCE)
