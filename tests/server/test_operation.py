"""What the person who runs the server relies on: keys, limits, a full queue, a polite end."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

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

    def start(*arguments: str, home=None, **options) -> Running:
        home = home or homes()
        servers.append(running.start(binary, home, home / "log", *arguments, **options))
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
    # A server that was closed is not opened by revoking a key.
    running.keys(binary, home, "revoke", "lab")
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


@pytest.mark.parametrize("streamed", [False, True])
def test_a_prompt_that_is_not_read_in_time_is_not_measured(own, base, streamed):
    server = own("--timeout", "1", "--batch", "1", "--queue", "1000")
    # A quarter of a million tokens, one after the other: no machine has them in a second.
    body = {"model": base, "prompt": ["Once"] * 128, "max_tokens": 300, "logit_bias": {"300": 100}}
    measured = {**body, "echo": True, "logprobs": 1, "stream": streamed}

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
            asks = [client.post("/v1/completions", json=each) for each in [body] * 6 + [measured]]
            return await asyncio.gather(*asks)

    last = asyncio.run(ask())[-1]
    # Without its numbers a prompt would count as certain.
    assert "within the time" in last.text
    assert last.status_code == (200 if streamed else 503)


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

def test_a_new_key_has_nothing_of_one_that_was_revoked(binary, homes, own, model):
    home = homes()
    old = running.create_key(binary, home, "old")
    server = own(home=home)
    body = {"model": model, "messages": [{"role": "user", "content": "one two three four " * 12}], "max_tokens": 1}

    def ask(secret: str) -> httpx.Response:
        return server.post("/v1/chat/completions", body, headers={"authorization": f"Bearer {secret}"})

    cached = [ask(old).json()["usage"]["prompt_tokens_details"]["cached_tokens"] for _ in range(4)]
    assert cached[0] == 0 and cached[-1] > 0
    running.keys(binary, home, "revoke", "old")
    new = running.create_key(binary, home, "old", "--requests-per-minute", "1")
    first = ask(new)
    assert first.status_code == 200, "what the old key used up is not the new one's"
    assert first.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert ask(new).status_code == 429


def test_an_answer_that_is_broken_off_is_paid_for(binary, homes, own, base):
    home = homes()
    secret = running.create_key(binary, home, "hasty", "--tokens-per-minute", "1")
    headers = {"authorization": f"Bearer {secret}"}
    server = own(home=home)
    body = {"model": base, "prompt": "Once", "max_tokens": 400, "stream": True, "n": 2}
    url = server.url + "/v1/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=PATIENCE) as answer:
        assert answer.status_code == 200
        next(answer.iter_lines())
    server.wait_idle()
    assert server.post("/v1/completions", body, headers=headers).status_code == 429
    (line,) = [line for line in server.log.read_text().splitlines() if 'key="hasty" outcome=' in line]
    told = dict(part.split("=") for part in line.split() if "_tokens=" in part)
    assert int(told["prompt_tokens"]) > 0 and int(told["completion_tokens"]) > 0, line


def test_the_texts_of_tokens_count_as_requests_too(keyed, model):
    headers = {"authorization": f"Bearer {keyed.keys['slow']}"}
    bodies = [("/v1/tokenize", {"text": "sea"}), ("/v1/detokenize", {"tokens": [300]})] * 2
    answers = [keyed.post(path, {"model": model, **body}, headers=headers) for path, body in bodies]
    assert answers[-1].status_code == 429 and answers[-1].json()["error"]["code"] == "rate_limit_exceeded"


def test_a_key_beyond_its_limit_has_no_model_loaded_and_none_unloaded(binary, homes, own, models):
    home = homes()
    secret = running.create_key(binary, home, "lab", "--requests-per-minute", "1")
    server = own("--loaded", "1", home=home)
    headers = {"authorization": f"Bearer {secret}"}
    before = server.log.read_text().count("model loaded")
    answers = [
        server.post("/v2/chat", {"model": name, "messages": HELLO, "max_tokens": 1}, headers=headers)
        for name in [*models, *models]
    ]
    assert [answer.status_code for answer in answers[1:]] == [429] * (len(answers) - 1)
    assert server.log.read_text().count("model loaded") <= before + 1
    assert server.metric("strata_requests_total", outcome="refused") == len(answers) - 1


def test_counters_go_on_when_a_model_is_loaded_again(own, models):
    if len(models) < 2:
        pytest.skip("one model is never unloaded for another")
    server = own("--loaded", "1")
    first, second = models[:2]

    def ask(model: str) -> float:
        body = {"model": model, "messages": HELLO, "max_tokens": 3}
        assert server.post("/v2/chat", body).status_code == 200
        server.wait_idle()
        assert server.metric("strata_loaded_models") == 1
        return server.metric("strata_completion_tokens_total", model=first)

    counts = [ask(model) for model in (first, second, first, second, first)]
    assert counts == sorted(counts) and counts[-1] > counts[2] > counts[1] == counts[0] > 0


def broken(home, models) -> str:
    """Makes the first model of a home one whose weights end early; its name."""
    source = (home / "models").resolve()
    (home / "models").unlink()
    shutil.copytree(source, home / "models", symlinks=True)
    weights = home / "models" / models[0] / "model.safetensors"
    os.truncate(weights, 3000)
    return models[0]


def test_a_server_is_ready_when_its_default_model_is(binary, homes, own, models):
    home = homes()
    name = broken(home, models)
    whole = Path(os.environ["STRATA_HOME"]) / "models" / name / "model.safetensors"
    server = own(home=home, patience=None)
    until = time.monotonic() + PATIENCE
    while "the default model cannot be loaded" not in server.log.read_text() and time.monotonic() < until:
        time.sleep(0.05)
    assert server.get("/health").status_code == 200
    assert server.get("/ready").json() == {"status": "not ready"}
    # Others are served, and where models lie is not told.
    if len(models) > 1:
        assert server.post("/v2/chat", {"model": models[-1], "messages": HELLO, "max_tokens": 1}).is_success
    answer = server.post("/v2/chat", {"model": name, "messages": HELLO})
    assert answer.status_code == 503 and str(home) not in answer.text
    (line, *_) = [line for line in server.log.read_text().splitlines() if "a model cannot be loaded" in line]
    assert str(home) in line
    shutil.copyfile(whole, home / "models" / name / "model.safetensors")
    until = time.monotonic() + PATIENCE
    while not running.ready(server.url) and time.monotonic() < until:
        time.sleep(0.1)
    assert running.ready(server.url)


def test_a_model_that_is_named_and_cannot_be_loaded_ends_the_server(binary, homes, models):
    home = homes()
    command = [binary, "serve", "--port", "0", "--model", broken(home, models)]
    environment = {**os.environ, "STRATA_HOME": str(home)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment)
    assert done.returncode == 1 and "cannot be loaded" in done.stderr.splitlines()[-1], done.stderr


def test_a_log_that_cannot_be_written_costs_no_request(binary, homes, model):
    command = [binary, "serve", "--port", "0"]
    environment = {**os.environ, "STRATA_HOME": str(homes())}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        url = re.search(r"http://[0-9.]+:\d+", process.stderr.readline())[0]
        process.stderr.close()
        server = Running(url, process)
        for _ in range(5):
            assert server.get("/health").status_code == 200
            assert server.post("/v2/chat", {"model": model, "messages": HELLO, "max_tokens": 2}).is_success
    finally:
        process.kill()
        process.wait(PATIENCE)


def test_a_second_signal_does_not_wait_for_answers(own, base):
    server = own("--grace", "60")
    half = socket.create_connection(("127.0.0.1", server.port))
    half.sendall(b"POST /v2/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
    assert server.get("/health").status_code == 200
    server.process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        server.process.wait(1)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(10) == 130
    half.close()


@pytest.mark.parametrize("name", ["LOCALHOST", "localhost.", "127.0.0.5:80", "[::1]:8080", "localhost:9"])
def test_every_name_of_the_loopback_is_this_machine(server, name):
    assert server.get("/health", headers={"host": name}).status_code == 200


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded", "x-real-ip", "via", "x-forwarded-proto"])
def test_without_keys_nobody_comes_in_through_a_proxy(server, header):
    answer = server.get("/v1/models", headers={header: "203.0.113.9"})
    assert answer.status_code == 403 and "keys" in answer.json()["message"]


def test_a_request_is_found_in_the_log_by_the_name_and_the_address_that_a_proxy_gave_it(keyed, model):
    headers = {
        "authorization": f"Bearer {keyed.keys['free']}",
        "x-request-id": "proxy-7.a_b",
        "x-forwarded-for": "203.0.113.9",
    }
    answer = keyed.post("/v2/chat", {"model": model, "messages": HELLO, "max_tokens": 1}, headers=headers)
    assert answer.headers["x-request-id"] == "proxy-7.a_b"
    wrong = keyed.get("/v1/models", headers={**headers, "authorization": "Bearer no", "x-request-id": "a b"})
    assert wrong.status_code == 401 and wrong.headers["x-request-id"].startswith("req_")
    keyed.wait_idle()
    lines = [line for line in keyed.log.read_text().splitlines() if " request " in line]
    assert any("proxy-7.a_b" in line and 'forwarded="203.0.113.9"' in line and 'key="free"' in line for line in lines)
    assert any(wrong.headers["x-request-id"] in line and "peer=127.0.0.1" in line for line in lines)


def test_open_connections_are_counted(server):
    with socket.create_connection(("127.0.0.1", server.port)):
        assert server.metric("strata_connections") >= 2


@pytest.mark.parametrize("level", ["verbose", "nonsense=foo=bar"])
def test_a_level_of_the_log_that_there_is_not_is_told(binary, tmp_path, level):
    environment = {**os.environ, "STRATA_HOME": str(tmp_path), "STRATA_LOG": level}
    command = [binary, "serve", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment)
    assert done.returncode == 2 and "STRATA_LOG" in done.stderr


@pytest.mark.parametrize("hard", [False, True])
def test_few_open_files_do_not_stop_the_server(binary, homes, hard):
    environment = {**os.environ, "STRATA_HOME": str(homes())}
    limit = f"ulimit -{'' if hard else 'S'}n 80; exec {shlex.quote(binary)} serve --port 0 --connections 200"
    process = subprocess.Popen(["bash", "-c", limit], stderr=subprocess.PIPE, text=True, env=environment)
    try:
        first = []
        while not (found := re.search(r"http://[0-9.]+:(\d+)", "".join(first))):
            first.append(process.stderr.readline())
            assert first[-1], f"the server ended: {first}"
        idle = [socket.create_connection(("127.0.0.1", int(found[1]))) for _ in range(150)]
        if not hard:
            # As many as are asked for are allowed where the system lets the server do so.
            assert httpx.get(f"{found[0]}/health", timeout=PATIENCE).status_code == 200
        for connection in idle:
            connection.close()
        assert httpx.get(f"{found[0]}/health", timeout=PATIENCE).status_code == 200
        process.terminate()
        log = "".join(first) + process.stderr.read()
        assert process.wait(PATIENCE) == 0
        assert ("limit of open files" in log) == hard
        assert log.count("was not accepted") <= 2, "once in ten seconds"
    finally:
        process.kill()
        process.wait(PATIENCE)
