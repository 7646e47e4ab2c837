"""Requests that no client of good will sends: each is told what is wrong, and the next one is served."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from running import PATIENCE, Running

HELLO = [{"role": "user", "content": "Hello, how are you today?"}]
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
FUNCTION = {"type": "function", "function": {"name": "f", "description": "a function", "parameters": SCHEMA}}


def bodies(model: str) -> dict[str, dict]:
    """A good request with nearly all fields for every path that takes JSON."""
    return {
        "/v1/chat/completions": {
            "model": model,
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                    ],
                },
                {"role": "tool", "tool_call_id": "a", "content": "good"},
            ],
            "max_tokens": 60,
            "temperature": 0.5,
            "top_p": 0.9,
            "n": 1,
            "stop": ["zzz"],
            "seed": 1,
            "logprobs": True,
            "top_logprobs": 1,
            "logit_bias": {"300": 1},
            "frequency_penalty": 0.1,
            "presence_penalty": 0.1,
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
            "stream": False,
        },
        "/v2/chat": {
            "model": model,
            "messages": [*HELLO],
            "documents": ["a", {"id": "b", "data": {"text": "c"}}],
            "tools": [FUNCTION],
            "tool_choice": "NONE",
            "max_tokens": 60,
            "temperature": 0.5,
            "p": 0.9,
            "k": 5,
            "seed": 1,
            "stop_sequences": ["zzz"],
            "response_format": {"type": "json_object", "json_schema": SCHEMA},
            "logprobs": True,
            "frequency_penalty": 0.1,
            "presence_penalty": 0.1,
        },
        "/v1/chat": {
            "model": model,
            "message": "Hello",
            "preamble": "Be brief.",
            "chat_history": [{"role": "USER", "message": "a"}, {"role": "CHATBOT", "message": "b"}],
            "documents": [{"title": "a", "text": "b"}],
            "tools": [{"name": "f", "description": "d", "parameter_definitions": {"a": {"type": "str"}}}],
            "tool_results": [{"call": {"name": "f", "parameters": {"a": "b"}}, "outputs": [{"c": 1}]}],
            "max_tokens": 100,
            "temperature": 0.5,
            "p": 0.9,
            "k": 5,
            "seed": 1,
            "stop_sequences": ["zzz"],
            "prompt_truncation": "AUTO",
        },
        "/v1/completions": {
            "model": model,
            "prompt": ["Hello"],
            "max_tokens": 4,
            "temperature": 0.5,
            "logprobs": 1,
            "n": 2,
            "stop": "zzz",
            "stream_options": {"include_usage": True},
            "logit_bias": {"300": 1},
            "best_of": 2,
        },
        "/v1/generate": {
            "model": model,
            "prompt": "Hello",
            "max_tokens": 4,
            "num_generations": 2,
            "temperature": 0.5,
            "truncate": "NONE",
            "end_sequences": ["zzz"],
            "return_likelihoods": "GENERATION",
        },
        "/v1/tokenize": {"model": model, "text": "Hello"},
        "/v1/detokenize": {"model": model, "tokens": [300, 301]},
    }


PATHS = list(bodies(""))


@pytest.fixture(autouse=True)
def the_next_good_request_is_served(server: Running, model: str) -> Iterator[None]:
    yield
    good(server, model)


def good(server: Running, model: str) -> None:
    answer = server.post("/v1/chat/completions", {"model": model, "messages": HELLO, "max_tokens": 2})
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] in (1, 2)


def check_error(
    answer: httpx.Response, status: int, param: str | None = None, code: str | None = None
) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body["message"] and body["message"] == body["error"]["message"]
    assert body["error"]["type"] and set(body["error"]) == {"message", "type", "param", "code"}
    if param is not None:
        assert (body["error"]["param"] or "").startswith(param), body
    if code is not None:
        assert body["error"]["code"] == code, body


def post_bytes(server: Running, path: str, content: bytes, **headers: str) -> httpx.Response:
    headers = {"content-type": "application/json", **headers}
    return httpx.post(server.url + path, content=content, headers=headers, timeout=PATIENCE)


# ---- bodies that are not JSON

MALFORMED = {
    "nothing": b"",
    "blank": b"  \n ",
    "an open object": b"{",
    "an open list": b'{"messages": [',
    "an open string": b'{"model": "a',
    "a cut word": b'{"stream": tru',
    "no value": b'{"model": }',
    "a comma too many": b'{"model": "a",}',
    "single quotes": b"{'model': 'a'}",
    "NaN": b'{"temperature": NaN}',
    "Infinity": b'{"temperature": Infinity}',
    "-Infinity": b'{"temperature": -Infinity}',
    "too large a number": b'{"temperature": 1e999}',
    "two objects": b'{"model": "a"} {}',
    "a word": b"hello",
    "form data": b"model=a&prompt=b",
    "not UTF-8": b'{"model": "\xff\xfe"}',
    "cut UTF-8": b'{"model": "\xf0\x9f\x8e"}',
    "UTF-16": '{"model": "a"}'.encode("utf-16"),
    "half a surrogate pair": b'{"model": "\\ud83d"}',
    "a bare control character": b'{"model": "a\nb"}',
    "a null byte": b'\x00{"model": "a"}',
    "a list": b"[]",
    "a number": b"5",
    "null": b"null",
    "a string": b'"model"',
    "100,000 open lists": b"[" * 100_000,
    "100,000 open objects": b'{"model":' * 100_000,
    "100,000 open lists in a field": b'{"messages": ' + b"[" * 100_000,
    "100,000 lists in an unknown field": b'{"other": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number of 100,000 digits": b'{"max_tokens": ' + b"9" * 100_000 + b"}",
}


@pytest.mark.parametrize("path", PATHS)
def test_a_body_that_is_no_request_is_refused(server, path):
    for name, content in MALFORMED.items():
        answer = post_bytes(server, path, content)
        assert answer.status_code == 400, name
        check_error(answer, 400)


@pytest.mark.parametrize("path", PATHS)
def test_deep_lists_where_text_is_expected_are_refused(server, model, path):
    for key in bodies(model)[path]:
        deep = b"[" * 50_000 + b"]" * 50_000
        check_error(post_bytes(server, path, b'{"%s": %s}' % (key.encode(), deep)), 400)


@pytest.mark.parametrize("path", PATHS)
def test_a_key_that_comes_twice_is_refused(server, model, path):
    text = json.dumps(bodies(model)[path])
    check_error(post_bytes(server, path, (text[:-1] + ', "model": "other"}').encode()), 400, "model")


@pytest.mark.parametrize("path", PATHS)
def test_unknown_fields_are_passed_over(server, model, path):
    body = bodies(model)[path] | {"unknown": {"a": [1, None, "x"]}, "": 5, "user": "me", "metadata": {}}
    assert server.post(path, body).status_code == 200


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """Where something else can be put: the path of every value in `value`."""
    yield path
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


def with_other(value: dict, path: tuple, other: object) -> dict:
    value = json.loads(json.dumps(value))
    place = value
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = other
    return value


# Where a field is wrong only beside another one, that one may be named.
BESIDE = {"logprobs": "top_logprobs", "n": "best_of", "tool_choice": "response_format"}
WRONG = [
    None,
    True,
    -1,
    1.5,
    10**30,
    "",
    "x",
    "\U0001f600 \u0000",
    [],
    [[]],
    [None],
    {},
    {"": {}},
    "y" * 2000,
]


@pytest.mark.parametrize("path", PATHS)
def test_wrong_types_anywhere_are_answered_or_refused_by_name(server, model, path):
    body = bodies(model)[path]
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        answer = client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        for place in list(places(body))[1:]:
            for other in WRONG:
                answer = client.post(path, json=with_other(body, place, other))
                if answer.status_code == 404 and place == ("model",):
                    check_error(answer, 404, "model", "model_not_found")
                elif answer.status_code != 200:
                    check_error(answer, 400)
                    error = answer.json()["error"]
                    # Documents and tools are part of the prompt.
                    if error["code"] != "context_length_exceeded":
                        names = (str(place[0]), BESIDE.get(place[0], place[0]))
                        assert (error["param"] or "").startswith(names), (place, other, error)


@pytest.mark.parametrize("path", PATHS)
def test_what_must_be_there_is_named(server, model, path):
    required = {"/v1/chat": "message", "/v1/generate": "prompt"}.get(path, "model")
    body = bodies(model)[path]
    del body[required]
    check_error(server.post(path, body), 400, required)


# ---- numbers


@pytest.mark.parametrize("path", [path for path in PATHS if "token" not in path])
def test_a_number_of_tokens_is_capped_or_refused_by_name(server, model, path):
    body = bodies(model)[path]
    for number in (10**6, 2**62):
        assert server.post(path, body | {"max_tokens": number}).status_code == 200
    for wrong in (10**30, -1, 1.5, "5", True, [5]):
        check_error(server.post(path, body | {"max_tokens": wrong}), 400, "max_tokens")


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1e-45},
        {"temperature": 1e-38, "top_p": 1e-38},
        {"temperature": 2, "top_p": 0},
        {"temperature": 2, "top_k": 2**62},
        {"temperature": 2, "top_k": 1},
        {"temperature": -0.0},
        {"temperature": 2, "logit_bias": {str(token): 100 if token % 2 else -100 for token in range(300)}},
        {"frequency_penalty": 2, "presence_penalty": -2, "seed": -(2**63)},
    ],
)
def test_extreme_numbers_give_answers_with_numbers(server, model, options):
    body = {
        "model": model,
        "messages": HELLO,
        "max_tokens": 8,
        "logprobs": True,
        "top_logprobs": 20,
        **options,
    }
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    for token in answer.json()["choices"][0]["logprobs"]["content"]:
        for found in (token, *token["top_logprobs"]):
            # JSON has no NaN: it would have become null.
            assert isinstance(found["logprob"], (int, float)) and -9999 <= found["logprob"] <= 0


# ---- too much


def test_what_cannot_be_had_together_is_refused(server, model):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    body = {"model": model, "messages": HELLO, "tools": [tool], "response_format": {"type": "json_object"}}
    for path in ("/v1/chat/completions", "/v2/chat"):
        check_error(server.post(path, body), 400, "response_format")
    assert server.post("/v1/chat/completions", {**body, "tool_choice": "none"}).status_code == 200


def test_a_stop_that_is_too_long_is_refused(server, model, base):
    long = "x" * 1001
    for path, field, body in (
        ("/v1/chat/completions", "stop[1]", {"messages": HELLO, "stop": ["a", long]}),
        ("/v1/completions", "stop[0]", {"prompt": "a", "stop": long}),
        ("/v2/chat", "stop_sequences[0]", {"messages": HELLO, "stop_sequences": [long]}),
        ("/v1/generate", "end_sequences[0]", {"prompt": "a", "end_sequences": [long]}),
    ):
        check_error(server.post(path, {"model": model, **body}), 400, field)


@pytest.mark.parametrize("key", ["01", "+1", " 1", "1.0", "-1", "x"])
def test_a_token_has_one_number(server, model, key):
    body = {"model": model, "messages": HELLO, "logit_bias": {"1": 1, key: 1}}
    check_error(server.post("/v1/chat/completions", body), 400, f"logit_bias.{key}")


def test_a_prompt_longer_than_the_context_is_refused(server, model):
    long = "word " * 4000
    for path, body, field in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": long}]}, "messages"),
        ("/v2/chat", {"messages": [{"role": "user", "content": long}]}, "messages"),
        ("/v1/chat", {"message": long}, "message"),
        ("/v1/completions", {"prompt": long}, "prompt"),
        ("/v1/completions", {"prompt": ["short", long]}, "prompt"),
        ("/v1/generate", {"prompt": long, "truncate": "NONE"}, "prompt"),
    ):
        for stream in (False, True):
            answer = server.post(path, {"model": model, "stream": stream, **body})
            check_error(answer, 400, field, "context_length_exceeded")


def test_a_prompt_of_the_whole_context_but_one_is_continued(server, base):
    context = server.get(f"/v1/models/{base}").json()["context_length"]
    body = {"model": base, "prompt": [300] * (context - 1), "max_tokens": 10}
    answer = server.post("/v1/completions", body)
    assert answer.status_code == 200
    assert answer.json()["usage"]["prompt_tokens"] == context - 1
    assert answer.json()["usage"]["total_tokens"] == context
    body["prompt"].append(300)
    check_error(server.post("/v1/completions", body), 400, "prompt", "context_length_exceeded")


def test_too_many_messages_or_answers_are_refused(server, model):
    chat = {"model": model, "messages": HELLO * 5000}
    check_error(server.post("/v1/chat/completions", chat), 400, "messages")
    texts = {"model": model, "prompt": ["a"] * 1000}
    check_error(server.post("/v1/completions", texts), 400, "prompt")
    check_error(server.post("/v1/completions", texts | {"prompt": ["a"] * 16, "n": 16}), 400)


def test_a_body_that_is_too_large_is_refused(server, model):
    answer = post_bytes(server, "/v1/chat/completions", b" " * (8 << 20))
    check_error(answer, 400)

    def pieces() -> Iterator[bytes]:
        for _ in range(128):
            yield b" " * (1 << 16)

    headers = {"content-type": "application/json"}
    try:
        answer = httpx.post(server.url + "/v2/chat", content=pieces(), headers=headers, timeout=PATIENCE)
    except httpx.WriteError:
        return  # Answered and closed before all of it was sent, which this client does not read.
    check_error(answer, 400)


# ---- paths, methods, headers


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "\u00ff"]
)
def test_another_content_type_is_refused(server, model, kind):
    body = json.dumps({"model": model, "messages": HELLO}).encode()
    headers = {} if kind is None else {"content-type": kind.encode("latin-1")}
    answer = httpx.post(server.url + "/v1/chat/completions", content=body, headers=headers, timeout=PATIENCE)
    check_error(answer, 415)


def test_a_content_type_may_say_more(server, model):
    body = json.dumps({"model": model, "messages": HELLO, "max_tokens": 1}).encode()
    for kind in ("application/json; charset=utf-8", "Application/JSON", "application/json ;x=y"):
        assert post_bytes(server, "/v2/chat", body, **{"content-type": kind}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/",
        "/v2/nothing",
        "/v1/chat/completions/",
        "//v1/models",
        "/V1/MODELS",
        "/v1/embeddings",
        "/%00",
        "/%ff%fe",
        "/..%2f..%2fetc%2fpasswd",
        "/docs/nothing",
        "/docs/../../etc/passwd",
        "/" + "a" * 8000,
    ],
)
def test_an_unknown_path_is_not_found(server, path):
    for method in ("GET", "POST"):
        status, headers, body = exchange(server, f"{method} {path} HTTP/1.1".encode(), b"Content-Length: 0")
        # The pages of the description can be read only.
        expected = 405 if method == "POST" and path.startswith("/docs/") else 404
        assert status == expected and headers["content-type"] == "application/json", (status, body)
        assert json.loads(body)["message"]


def test_another_method_is_refused_in_json(server):
    for path in [*PATHS, "/v1/check-api-key"]:
        for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS"):
            answer = httpx.request(method, server.url + path, timeout=PATIENCE)
            check_error(answer, 405)
            assert "POST" in answer.headers["allow"]
    check_error(httpx.post(server.url + "/v1/models", timeout=PATIENCE), 405)


def test_a_head_has_no_body(server, model):
    for path, status in (
        ("/v1/models", 200),
        (f"/v1/models/{model}", 200),
        ("/v2/chat", 405),
        ("/nothing", 404),
    ):
        answer = httpx.head(server.url + path, timeout=PATIENCE)
        assert (answer.status_code, answer.content) == (status, b"")


def test_no_other_origin_is_let_in(server):
    # Without these headers, browsers keep pages of other origins from reading answers and from posting JSON.
    headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    for method, path in (("OPTIONS", "/v1/chat/completions"), ("GET", "/v1/models")):
        answer = httpx.request(method, server.url + path, headers=headers, timeout=PATIENCE)
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil@localhost:x",
        "",
    ],
)
def test_without_keys_another_host_is_forbidden(server, host):
    if server.process is None:
        pytest.skip("a server that is given may have keys")
    for path in ("/v1/models", "/health", "/", "/metrics"):
        status, headers, body = exchange(server, f"GET {path} HTTP/1.1".encode(), host=host)
        assert status == 403 and headers["content-type"] == "application/json" and json.loads(body)["message"]


def test_without_keys_this_machine_is_served_by_all_its_names(server):
    for host in ("localhost", "localhost:1", "127.0.0.1", "[::1]", "[::1]:8080"):
        assert exchange(server, b"GET /v1/models HTTP/1.1", host=host)[0] == 200


def test_with_keys_a_request_without_one_is_refused(keyed, model):
    for headers in (
        {},
        {"authorization": "Basic abc"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer x"},
    ):
        for path, body in bodies(model).items():
            answer = httpx.post(keyed.url + path, json=body, headers=headers, timeout=PATIENCE)
            check_error(answer, 401, code="invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
        check_error(httpx.get(keyed.url + "/v1/models", headers=headers, timeout=PATIENCE), 401)
    # Not even the body is read before: a stranger learns nothing of how it is wrong.
    check_error(post_bytes(keyed, "/v2/chat", b"{"), 401)


@pytest.mark.parametrize(
    "query",
    [
        "page_size=0",
        "page_size=-1",
        "page_size=x",
        "page_size=1e9",
        "page_size=nan",
        "page_token=x",
        "page_token=99",
    ],
)
def test_a_wrong_page_is_refused(server, query):
    check_error(server.get("/v1/models?" + query), 400)


def test_queries_may_come_as_clients_write_them(server):
    query = "page_size=5.0&page_token=0&default_only=true&default_only=false&unknown=%ff"
    assert server.get("/v1/models?" + query).status_code == 200


# ---- connections


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)


def exchange(
    server: Running, line: bytes, *headers: bytes, host: str | None = None
) -> tuple[int, dict, bytes]:
    """Sends a request as it is, and reads the answer."""
    host = f"127.0.0.1:{server.port}" if host is None else host
    with connect(server) as link:
        link.sendall(
            b"\r\n".join([line, b"Host: " + host.encode(), b"Connection: close", *headers, b"", b""])
        )
        answer = http.client.HTTPResponse(link, method=line.split()[0].decode())
        answer.begin()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def request_bytes(server: Running, path: str, body: dict) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(content) + content


def break_off(link: socket.socket) -> None:
    """Closes a connection with a reset instead of a farewell."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.close()


@pytest.mark.parametrize("polite", [True, False])
def test_a_request_may_break_off_at_any_byte(server, model, polite):
    request = request_bytes(
        server, "/v1/chat/completions", {"model": model, "messages": HELLO, "stream": True}
    )
    for end in range(0, len(request) + 7, 7):
        link = connect(server)
        link.sendall(request[:end])
        link.close() if polite else break_off(link)
    server.wait_idle()


def test_a_body_that_ends_early_is_not_answered_as_whole(server, model):
    request = request_bytes(server, "/v2/chat", {"model": model, "messages": HELLO})
    for end in range(len(request) - 60, len(request), 7):
        with connect(server) as link:
            link.sendall(request[:end])
            link.shutdown(socket.SHUT_WR)
            answer = link.makefile("rb").read()
            assert answer == b"" or answer.startswith(b"HTTP/1.1 400"), answer


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # The greeting of TLS.
        b"GET\r\n\r\n",
        b"\r\n" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /v2/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: abc\r\n\r\n",
        b"POST /v2/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v2/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        b"POST /v2/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 10_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n: no name\r\n\r\n",
        b"GET /\x00\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        bytes(range(256)) * 100,
    ],
)
def test_what_is_not_http_is_refused_or_hung_up_on(server, junk):
    with connect(server) as link:
        try:
            link.sendall(junk)
            link.shutdown(socket.SHUT_WR)
            answer = link.makefile("rb").read()
        except OSError:
            return  # It was hung up on.
    assert answer == b"" or 400 <= int(answer.split()[1]) < 500, answer[:200]


def test_a_connection_survives_errors(server, model):
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        for _ in range(5):
            bad = client.post("/v2/chat", json={"model": model})
            check_error(bad, 400, "messages")
            answer = client.post("/v2/chat", json={"model": model, "messages": HELLO, "max_tokens": 1})
            assert answer.status_code == 200
        # All of it on one connection.
        assert bad.extensions["network_stream"].get_extra_info("client_addr") == answer.extensions[
            "network_stream"
        ].get_extra_info("client_addr")


def test_requests_may_be_sent_before_answers_are_read(server, model):
    request = request_bytes(server, "/v1/tokenize", {"model": model, "text": "Hello"})
    with connect(server) as link:
        link.sendall(request * 5)
        # The last header of the last one would be "close", so they are counted instead.
        received = b""
        while received.count(b'"token_strings"') < 5:
            piece = link.recv(65536)
            assert piece, received
            received += piece
    assert received.count(b"HTTP/1.1 200") == 5


def test_a_client_that_asks_before_it_sends_is_told_to_go_on(server, model):
    head, body = request_bytes(server, "/v1/tokenize", {"model": model, "text": "Hello"}).split(
        b"\r\n\r\n", 1
    )
    with connect(server) as link:
        link.sendall(head + b"\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
        assert link.recv(4096).startswith(b"HTTP/1.1 100")
        link.sendall(body)
        assert b"HTTP/1.1 200" in link.makefile("rb").read()


@pytest.mark.parametrize("part", ["headers", "body"])
def test_clients_that_send_a_byte_a_second_keep_nobody_from_being_served(server, model, part):
    request = request_bytes(server, "/v1/chat/completions", {"model": model, "messages": HELLO})
    head, body = request.split(b"\r\n\r\n", 1)
    first = head[:20] if part == "headers" else head + b"\r\n\r\n" + body[:10]
    links = [connect(server) for _ in range(200)]
    try:
        for link in links:
            link.sendall(first)
        for byte in (b"a", b"b", b"c"):
            since = time.monotonic()
            for link in links:
                link.sendall(byte)
            for _ in range(3):
                good(server, model)
            # Alone, they take milliseconds; the bound allows for a machine that does much else.
            assert time.monotonic() - since < 10
            time.sleep(max(0, 1 - (time.monotonic() - since)))
    finally:
        for link in links:
            link.close()


def test_readers_that_never_read_keep_nobody_from_being_served(server, model, base):
    options = {"model": base, "prompt": "Once there was", "max_tokens": 400, "n": 16, "temperature": 1.5}
    request = request_bytes(server, "/v1/completions", {**options, "stream": True, "logprobs": 5})
    links = []
    try:
        for _ in range(4):
            link = socket.socket()
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            link.settimeout(PATIENCE)
            link.connect(("127.0.0.1", server.port))
            link.sendall(request)
            links.append(link)
        for _ in range(5):
            good(server, model)
        # Nor do they keep their places in the batch for longer than their answers take to be written.
        server.wait_idle()
    finally:
        for link in links:
            link.close()


def test_many_streams_broken_off_midway_leave_nothing_behind(server, base):
    options = {"model": base, "prompt": "Once there was", "max_tokens": 400, "n": 4, "temperature": 1.5}
    request = request_bytes(server, "/v1/completions", {**options, "stream": True})

    def ask(pieces: int) -> None:
        link = connect(server)
        link.sendall(request)
        for _ in range(pieces):
            link.recv(512)
        break_off(link)

    threads = [threading.Thread(target=ask, args=(number % 5,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.wait_idle()
