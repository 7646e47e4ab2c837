"""What the person who runs the server relies on: keys, limits, a full queue, a polite end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess

import httpx
import openai
import pytest

import running
from running import PATIENCE, Running

HELLO = [{"role": "user", "content": "Hello, how are you today?"}]


@pytest.fixture
def own(binary, homes):
    """Starts servers that end with the test."""
    servers: list[Running] = []

    def start(*arguments: str, home=None) -> Running:
        home = home or homes()
        servers.append(running.start(binary, home, home / "log", *arguments))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def test_the_first_key_closes_the_server_and_a_revoked_one_is_worth_nothing(binary, homes, own):
    home = homes()
    server = own(home=home)
    assert server.get("/v1/models").status_code == 200
    secret = running.create_key(binary, home, "lab")
    running.create_key(binary, home, "other")
    headers = {"authorization": f"Bearer {secret}"}
    assert server.get("/v1/models").status_code == 401
    assert server.get("/v1/models", headers=headers).status_code == 200
    # With keys, the server may be called by any name.
    assert server.get("/v1/models", headers={**headers, "host": "models.example"}).status_code == 200
    running.keys(binary, home, "revoke", "lab")
    assert server.get("/v1/models", headers=headers).status_code == 401


def test_the_last_key_leaves_nobody_in_by_going(binary, homes, own):
    home = homes()
    secret = running.create_key(binary, home, "lab")
    database = b"".join(path.read_bytes() for path in home.glob("strata.db*"))
    assert secret.encode() not in database
    server = own(home=home)
    assert secret not in server.log.read_text()
    assert server.get("/v1/models").status_code == 401


def test_tokens_are_limited(keyed, model):
    headers = {"authorization": f"Bearer {keyed.keys['sparing']}"}
    body = {"model": model, "messages": HELLO, "max_tokens": 8}
    answers = [keyed.post("/v2/chat", body, headers=headers) for _ in range(4)]
    assert answers[0].status_code == 200 and answers[-1].status_code == 429
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 3600
    assert "tokens" in answers[-1].json()["message"]


def test_a_full_queue_turns_clients_away_and_those_who_come_back_are_served(own, model):
    server = own("--batch", "1", "--queue", "2")
    options = {"model": model, "messages": HELLO, "max_tokens": 60, "logit_bias": {"300": 100}}

    async def ask(retries: int) -> list:
        async with openai.AsyncOpenAI(
            base_url=server.url + "/v1", api_key="any", max_retries=retries, timeout=PATIENCE
        ) as client:
            asks = (client.chat.completions.create(**options) for _ in range(24))
            return await asyncio.gather(*asks, return_exceptions=True)

    answers = asyncio.run(ask(0))
    refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
    assert refused and all(int(answer.response.headers["retry-after"]) >= 1 for answer in refused)
    assert len(refused) < len(answers)
    assert all(answer in refused or answer.choices for answer in answers)
    assert all(answer.choices for answer in asyncio.run(ask(20)))
    assert server.busy() == 0


def test_an_answer_that_takes_too_long_ends_in_time(own, base):
    server = own("--timeout", "1", "--batch", "1")
    body = {
        "model": base,
        "prompt": "Once",
        "max_tokens": 400,
        "temperature": 5,
        "p": 0.99,
        "num_generations": 5,
    }
    first = server.post("/v1/generate", body).json()
    assert first["generations"]
    # Whether a machine is slow enough for it or not: nobody waits for longer.
    reasons = {generation["finish_reason"] for generation in first["generations"]}
    assert reasons <= {"COMPLETE", "MAX_TOKENS", "TIMEOUT"}


def test_who_gets_nothing_in_time_is_told_so_and_not_answered_with_nothing(own, model):
    server = own("--timeout", "1", "--batch", "1", "--queue", "1000")
    body = {"model": model, "messages": HELLO, "max_tokens": 300, "logit_bias": {"300": 100}}
    paths = ["/v1/chat/completions", "/v2/chat", "/v1/chat"]
    bodies = [body, {"model": model, "messages": HELLO}, {"model": model, "message": "Hello"}]

    async def ask() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=400)
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE, limits=limits) as client:
            asks = [client.post(path, json=each) for path, each in zip(paths, bodies) for _ in range(120)]
            stream = client.post(paths[0], json={**body, "stream": True})
            return await asyncio.gather(*asks, stream)

    *answers, streamed = asyncio.run(ask())
    late = [answer for answer in answers if answer.status_code == 503]
    assert all(answer.status_code in (200, 503) for answer in answers)
    # A machine that answers 360 in a second has nobody to tell.
    if late:
        assert all("within the time" in answer.json()["message"] for answer in late)
        assert server.metric("strata_requests_total", outcome="timeout") >= len(late)
        assert 'outcome="timeout"' in server.log.read_text()
    whole = [answer.json() for answer in answers[:120] if answer.status_code == 200]
    assert all(answer["usage"]["completion_tokens"] > 0 for answer in whole)
    # Asked last of all: an error, or an answer with words.
    assert "within the time" in streamed.text or '"content":' in streamed.text
    begun = server.metric("strata_first_token_seconds_count")
    assert begun <= len(answers) + 1 - len(late)


def test_a_line_in_the_log_tells_whose_answer_it_is_and_why_a_request_failed(own, model):
    server = own()
    streamed = server.post("/v1/chat/completions", {"model": model, "messages": HELLO, "stream": True})
    wrong = server.post("/v1/chat/completions", {"model": "nobody", "messages": HELLO})
    assert streamed.status_code == 200 and wrong.status_code == 404
    server.wait_idle()
    lines = server.log.read_text().splitlines()
    identity = streamed.headers["x-request-id"]
    assert any(identity in line and "answer" in line and "outcome=" in line for line in lines)
    assert any("model_not_found" in line and "status=404" in line for line in lines)


@pytest.mark.parametrize("flag", ["--batch", "--queue", "--loaded", "--max-tokens", "--timeout", "--body"])
def test_a_server_that_could_answer_nobody_does_not_start(binary, tmp_path, flag):
    done = subprocess.run(
        [binary, "serve", "--port", "0", flag, "0"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "STRATA_HOME": str(tmp_path)},
    )
    assert done.returncode == 2 and f"{flag[2:]}: expected at least 1, found 0" in done.stderr


def test_most_tokens_are_what_the_operator_says(own, model):
    server = own("--max-tokens", "3")
    for asked in ({}, {"max_tokens": 50}):
        body = {"model": model, "messages": HELLO, "logit_bias": {"300": 100}, **asked}
        assert server.post("/v1/chat/completions", body).json()["usage"]["completion_tokens"] == 3


def test_only_the_models_that_are_to_be_served_are(own, model, models):
    server = own("--model", model)
    assert [found["id"] for found in server.get("/v1/models").json()["data"]] == [model]
    for other in set(models) - {model}:
        assert server.post("/v2/chat", {"model": other, "messages": HELLO}).status_code == 404


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_running_answer_is_finished_before_the_server_ends(own, model, number):
    server = own()
    body = {"model": model, "messages": HELLO, "max_tokens": 300, "logit_bias": {"300": 100}, "stream": True}
    with httpx.stream("POST", server.url + "/v1/chat/completions", json=body, timeout=PATIENCE) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.process.send_signal(number)
        events = [line for line in lines if line.startswith("data: ")]
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[-2][6:])["choices"][0]["finish_reason"] == "length"
    assert server.process.wait(PATIENCE) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url + "/health")


def test_the_log_is_lines_of_json_without_what_was_said(own, model):
    server = own("--log", "json")
    secret = "a sentence nobody should read"
    assert server.post(
        "/v2/chat", {"model": model, "messages": [{"role": "user", "content": secret}]}
    ).is_success
    server.stop()
    lines = [line for line in server.log.read_text().splitlines() if line.startswith("{")]
    assert any(json.loads(line)["fields"].get("message") == "answer" for line in lines)
    assert secret not in server.log.read_text()


def test_a_log_in_a_file_has_no_colours(server):
    if server.log is None:
        pytest.skip("the log of a server that is given is not known")
    assert "\x1b" not in server.log.read_text()
