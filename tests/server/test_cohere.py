"""The official Cohere clients against the server. Nothing depends on what a model says."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Iterator

import cohere
import cohere.core.api_error
import httpx
import pytest

from running import PATIENCE, Running, long_answer

HELLO = [{"role": "user", "content": "Hello, how are you today?"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "count": {"type": "integer"}},
    "required": ["name", "count"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "look_up", "description": "Look something up", "parameters": SCHEMA},
}
TOOL_V1 = {
    "name": "look_up",
    "description": "Look something up",
    "parameter_definitions": {
        "name": {"type": "str", "required": True},
        "count": {"type": "int", "required": True},
    },
}
# By what one request of each kind asks for; the events of a stream are checked for each.
KINDS = {
    "plain": {},
    "few tokens": {"max_tokens": 2},
    "logprobs": {"logprobs": True, "max_tokens": 6},
    "json": {"response_format": {"type": "json_object", "json_schema": SCHEMA}},
    "tool": {"tools": [TOOL], "tool_choice": "REQUIRED"},
    "documents": {
        "documents": ["The sky is blue.", {"id": "b", "data": {"title": "Sea", "text": "It is deep."}}]
    },
}


def text_of(response) -> str:
    return "".join(block.text for block in response.message.content or [])


# ---- chat, version 2


def test_a_chat_is_answered(co, model):
    answer = co.chat(model=model, messages=HELLO)
    assert answer.id and answer.finish_reason in ("COMPLETE", "MAX_TOKENS")
    assert answer.message.role == "assistant"
    assert [block.type for block in answer.message.content] == ["text"]
    for counts in (answer.usage.tokens, answer.usage.billed_units):
        assert counts.input_tokens > 0 and counts.output_tokens > 0
    assert answer.usage.cached_tokens >= 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_client_sees_every_event_of_a_stream(server, co, model, kind, caplog):
    options = {"model": model, "messages": HELLO, "temperature": 0, **KINDS[kind]}
    with caplog.at_level(logging.DEBUG, logger="cohere"):
        events = list(co.chat_stream(**options))
    raw = server.post("/v2/chat", {**options, "stream": True})
    assert raw.headers["content-type"].startswith("text/event-stream")
    sent = [json.loads(line[6:])["type"] for line in raw.text.splitlines() if line.startswith("data: {")]
    named = [line[7:] for line in raw.text.splitlines() if line.startswith("event: ")]
    assert sent == named
    # Tokens that come at the same time are one delta, so two answers have the same text in pieces of their own.
    in_order = lambda types: [kind for kind, _ in itertools.groupby(types)]
    assert in_order(event.type for event in events) == in_order(sent)
    read = [event.delta.message.content.text for event in events if event.type == "content-delta"]
    data = [json.loads(line[6:]) for line in raw.text.splitlines() if line.startswith("data: {")]
    written = [part["delta"]["message"]["content"]["text"] for part in data if part["type"] == "content-delta"]
    assert "".join(read) == "".join(written)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("kind", KINDS)
def test_the_events_of_a_stream_are_in_order(co, model, kind):
    events = list(co.chat_stream(model=model, messages=HELLO, temperature=0, **KINDS[kind]))
    types = [event.type for event in events]
    assert types[0] == "message-start" and types[-1] == "message-end"
    assert types.count("message-start") == types.count("message-end") == 1
    assert events[0].id and events[0].delta.message.role == "assistant"
    assert events[-1].delta.finish_reason in ("COMPLETE", "MAX_TOKENS", "TOOL_CALL")
    assert events[-1].delta.usage.tokens.input_tokens > 0
    open_block, calls = None, 0
    for event in events[1:-1]:
        part, _, place = event.type.rpartition("-")
        if place == "start":
            assert open_block is None
            open_block = (part, event.index)
            if part == "tool-call":
                assert event.index == calls and event.delta.message.tool_calls.id
                calls += 1
        elif event.type != "tool-plan-delta":
            assert open_block == (part, event.index)
            open_block = None if place == "end" else open_block
    assert open_block is None
    assert (calls > 0) == (kind == "tool")


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_says_what_the_whole_answer_says(co, model, kind):
    options = {"model": model, "messages": HELLO, "temperature": 0, **KINDS[kind]}
    whole = co.chat(**options)
    events = list(co.chat_stream(**options))
    text = "".join(event.delta.message.content.text for event in events if event.type == "content-delta")
    assert text == text_of(whole)
    called = [
        event.delta.message.tool_calls.function.arguments
        for event in events
        if event.type == "tool-call-delta"
    ]
    assert "".join(called) == "".join(call.function.arguments for call in whole.message.tool_calls or [])
    assert events[-1].delta.finish_reason == whole.finish_reason
    assert events[-1].delta.usage.tokens == whole.usage.tokens


def test_log_probabilities_have_tokens_and_add_up_to_the_text(co, model):
    answer = co.chat(model=model, messages=HELLO, temperature=0, max_tokens=6, logprobs=True)
    assert answer.logprobs
    assert "".join(item.text for item in answer.logprobs).strip() == text_of(answer).strip()
    for item in answer.logprobs:
        assert len(item.token_ids) == len(item.logprobs) == 1 and -9999 <= item.logprobs[0] <= 0
    stream = co.chat_stream(model=model, messages=HELLO, temperature=0, max_tokens=6, logprobs=True)
    streamed = [
        event.logprobs.token_ids for event in stream if event.type == "content-delta" and event.logprobs
    ]
    assert streamed == [item.token_ids for item in answer.logprobs]


def test_without_asking_there_are_no_log_probabilities(co, model):
    assert co.chat(model=model, messages=HELLO, max_tokens=2).logprobs is None


@pytest.mark.parametrize("key", ["json_schema", "schema"])
def test_an_answer_has_the_form_of_its_schema(co, model, key):
    for seed in range(3):
        answer = co.chat(
            model=model,
            messages=HELLO,
            temperature=1,
            seed=seed,
            response_format={"type": "json_object", key: SCHEMA},
        )
        value = json.loads(text_of(answer))
        assert list(value) == ["name", "count"]
        assert len(value["name"]) <= 12 and type(value["count"]) is int


def test_a_json_object_without_a_schema_is_one(co, model):
    answer = co.chat(model=model, messages=HELLO, response_format={"type": "json_object"}, max_tokens=40)
    assert isinstance(json.loads(text_of(answer)), dict)


def test_a_required_tool_is_called_and_its_result_goes_back(co, model):
    answer = co.chat(model=model, messages=HELLO, tools=[TOOL], tool_choice="REQUIRED")
    assert answer.finish_reason == "TOOL_CALL" and not answer.message.content
    messages = [*HELLO, answer.message]
    for call in answer.message.tool_calls:
        assert call.id and call.type == "function" and call.function.name == "look_up"
        assert sorted(json.loads(call.function.arguments)) == ["count", "name"]
        document = {"type": "document", "document": {"data": {"found": "nothing"}}}
        messages.append({"role": "tool", "tool_call_id": call.id, "content": [document]})
    assert text_of(co.chat(model=model, messages=messages, max_tokens=20)) is not None


def test_no_tool_is_called_where_none_may_be(co, model):
    answer = co.chat(model=model, messages=HELLO, tools=[TOOL], tool_choice="NONE")
    assert not answer.message.tool_calls and text_of(answer) == text_of(co.chat(model=model, messages=HELLO))


def test_with_tools_at_will_there_is_a_text_or_a_call(co, model):
    answer = co.chat(model=model, messages=HELLO, tools=[TOOL], strict_tools=True)
    assert answer.message.content or answer.message.tool_calls


def test_documents_are_read(co, model):
    plain = co.chat(model=model, messages=HELLO, max_tokens=2).usage.tokens.input_tokens
    for documents in (KINDS["documents"]["documents"], [cohere.Document(data={"text": "It is deep."})]):
        options = {"documents": documents, "citation_options": {"mode": "FAST"}, "max_tokens": 2}
        assert co.chat(model=model, messages=HELLO, **options).usage.tokens.input_tokens > plain


def test_the_message_goes_back_as_it_came(co, model):
    messages = [
        {"role": "user", "content": "Please tell me about the city, the water and the weather of it."}
    ]
    for _ in range(3):
        answer = co.chat(model=model, messages=messages, max_tokens=20)
        messages += [answer.message, {"role": "user", "content": "And then?"}]
    # From the second turn on, what was said before is not computed again.
    assert answer.usage.cached_tokens > 0


def test_the_message_goes_back_as_typed_objects_and_with_parts(co, model):
    messages = [
        cohere.SystemChatMessageV2(content="Be brief."),
        cohere.UserChatMessageV2(content=[cohere.TextContent(text="Hello")]),
        cohere.AssistantChatMessageV2(content=None, tool_plan="I will look."),
        cohere.AssistantChatMessageV2(
            content=[{"type": "thinking", "thinking": "so"}, {"type": "text", "text": "Hi"}]
        ),
        cohere.UserChatMessageV2(content="And?"),
    ]
    assert co.chat(model=model, messages=messages, max_tokens=5).message.role == "assistant"


def test_options_of_none_are_as_if_absent(co, model):
    names = (
        "tools strict_tools documents citation_options safety_mode max_tokens stop_sequences "
        "seed frequency_penalty presence_penalty k p logprobs tool_choice thinking priority"
    )
    given = co.chat(model=model, messages=HELLO, temperature=0, **dict.fromkeys(names.split()))
    assert text_of(given) == text_of(co.chat(model=model, messages=HELLO, temperature=0))


def test_options_that_change_nothing_here_are_taken(co, model):
    answer = co.chat(
        model=model,
        messages=HELLO,
        max_tokens=2,
        safety_mode="STRICT",
        priority=5,
        thinking={"type": "disabled"},
        citation_options={"mode": "OFF"},
    )
    assert answer.finish_reason


@pytest.mark.parametrize("streamed", [False, True])
def test_a_stop_sequence_ends_an_answer_and_is_not_part_of_it(co, model, streamed):
    options = {"model": model, "temperature": 0, "max_tokens": 40}
    messages, text = long_answer(lambda messages: text_of(co.chat(messages=messages, **options)))
    options["messages"] = messages
    options["stop_sequences"] = [text[4:7], "\u0000no"]
    if streamed:
        events = list(co.chat_stream(**options))
        got = "".join(event.delta.message.content.text for event in events if event.type == "content-delta")
        reason = events[-1].delta.finish_reason
    else:
        answer = co.chat(**options)
        got, reason = text_of(answer), answer.finish_reason
    assert (got, reason) == (text[: text.index(text[4:7])], "STOP_SEQUENCE")


def test_equal_seeds_give_equal_answers(co, model):
    options = {"model": model, "messages": HELLO, "temperature": 1, "p": 0.99, "k": 500, "max_tokens": 30}
    answers = [[text_of(co.chat(seed=seed, **options)) for seed in range(6)] for _ in range(2)]
    assert answers[0] == answers[1] and len(set(answers[0])) > 1


def test_the_async_client_gets_the_same(server, co, model):
    async def ask() -> tuple[str, str]:
        async with cohere.AsyncClientV2(api_key="any", base_url=server.url) as client:
            answer = await client.chat(model=model, messages=HELLO, temperature=0)
            events = [event async for event in client.chat_stream(model=model, messages=HELLO, temperature=0)]
            texts = [event.delta.message.content.text for event in events if event.type == "content-delta"]
            return text_of(answer), "".join(texts)

    text = text_of(co.chat(model=model, messages=HELLO, temperature=0))
    assert asyncio.run(ask()) == (text, text)


@pytest.mark.parametrize("text", ["Grüße 🎉👩‍👩‍👧 日本語", "a\u2028b\u2029c\u0085d\x0be\x1cf", "\u0000", " "])
def test_any_characters_can_be_said(co, co1, model, text):
    assert co.chat(model=model, messages=[{"role": "user", "content": text}], max_tokens=5).message
    events = list(co1.chat_stream(model=model, message=text, max_tokens=5))
    # The line of the last event holds what was said, line ends and all.
    assert events[-1].response.chat_history[0].message == text


@pytest.mark.parametrize(
    "said", ["🎉 日本 é", "a\u2028b\u2029c\u0085d", "a\x0cb", '"\\\\\n\r\t/']
)
def test_any_characters_come_through_a_stream(co, co1, model, said):
    wanted = {"type": "object", "properties": {"said": {"const": said}}, "required": ["said"]}
    form = {"type": "json_object", "schema": {**wanted, "additionalProperties": False}}
    events = co.chat_stream(model=model, messages=HELLO, response_format=form)
    text = "".join(event.delta.message.content.text for event in events if event.type == "content-delta")
    assert json.loads(text) == {"said": said}
    events = co1.chat_stream(model=model, message="Hello", response_format=form)
    text = "".join(event.text for event in events if event.event_type == "text-generation")
    assert json.loads(text) == {"said": said}


# ---- chat, version 1


def test_version_1_answers_too(co1, model):
    answer = co1.chat(message="Hello", model=model)
    assert isinstance(answer.text, str) and answer.generation_id and answer.response_id
    assert answer.finish_reason in ("COMPLETE", "MAX_TOKENS")
    assert answer.meta.tokens.input_tokens > 0 and answer.meta.billed_units.output_tokens > 0
    assert answer.meta.api_version.version


def test_version_1_needs_no_model(co1):
    assert isinstance(co1.chat(message="Hello").text, str)


def test_version_1_streams_lines(co1, model):
    whole = co1.chat(message="Hello", model=model, temperature=0)
    events = list(co1.chat_stream(message="Hello", model=model, temperature=0))
    types = [event.event_type for event in events]
    assert types[0] == "stream-start" and types[-1] == "stream-end"
    assert set(types[1:-1]) <= {"text-generation"}
    text = "".join(event.text for event in events[1:-1])
    assert text == events[-1].response.text == whole.text
    assert events[-1].finish_reason == whole.finish_reason
    assert events[0].generation_id == events[-1].response.generation_id


class Recorded(httpx.HTTPTransport):
    """Keeps the bytes of each answer as the client reads them. (How tokens are grouped into lines depends on time:
    two streams of the same answer may differ in it.)"""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = b""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        return httpx.Response(
            response.status_code, headers=response.headers, stream=Tee(self, response.stream)
        )


class Tee(httpx.SyncByteStream):
    def __init__(self, record: Recorded, stream: httpx.SyncByteStream) -> None:
        self.record, self.stream = record, stream

    def __iter__(self) -> Iterator[bytes]:
        for part in self.stream:
            self.record.bytes += part
            yield part

    def close(self) -> None:
        self.stream.close()


def test_the_client_sees_every_line_of_a_stream(server, model):
    transport = Recorded()
    client = cohere.Client(
        api_key="any", base_url=server.url, httpx_client=httpx.Client(transport=transport, timeout=PATIENCE)
    )
    seen = [
        event.event_type for event in client.chat_stream(message="Hello", model=model, temperature=0)
    ]
    lines = [json.loads(line) for line in transport.bytes.decode().split("\n") if line]
    assert seen == [line["event_type"] for line in lines]
    assert seen[0] == "stream-start" and seen[-1] == "stream-end" and len(seen) > 2


def test_the_history_goes_back_as_it_came(co1, model):
    first = co1.chat(message="Please tell me about the city and the water.", model=model, preamble="Be kind.")
    assert [turn.role for turn in first.chat_history] == ["USER", "CHATBOT"]
    second = co1.chat(message="And then?", model=model, preamble="Be kind.", chat_history=first.chat_history)
    assert [turn.role for turn in second.chat_history] == ["USER", "CHATBOT"] * 2
    assert second.chat_history[1].message == first.text and second.chat_history[3].message == second.text
    assert second.meta.cached_tokens > 0


def test_version_1_calls_tools_and_takes_results(co1, model):
    # Version 1 cannot demand a call; that it takes tools, and results of calls, it must.
    answer = co1.chat(message="Look it up", model=model, tools=[TOOL_V1], force_single_step=True)
    assert answer.finish_reason == "COMPLETE" or answer.finish_reason == "MAX_TOKENS"
    for call in answer.tool_calls or []:
        assert call.name == "look_up" and isinstance(call.parameters, dict)
    result = {"call": {"name": "look_up", "parameters": {"name": "a", "count": 1}}, "outputs": [{"found": 3}]}
    answer = co1.chat(message="", model=model, tools=[TOOL_V1], tool_results=[result], max_tokens=20)
    assert [turn.role for turn in answer.chat_history] == ["TOOL", "CHATBOT"]

    # What the call gave is still there when the history comes back.
    def tokens(outputs: list[dict]) -> int:
        result["outputs"] = outputs
        answer = co1.chat(message="", model=model, tool_results=[result], max_tokens=1)
        again = co1.chat(message="So?", model=model, chat_history=answer.chat_history, max_tokens=1)
        return again.meta.tokens.input_tokens

    assert tokens([{"found": "three boats and a lamp at the market"}]) > tokens([{"found": 3}])


def test_version_1_takes_results_that_the_user_has(co1, model):
    result = {"call": {"name": "look_up", "parameters": {}}, "outputs": [{"found": 3}]}

    def tokens(**turn) -> int:
        history = [{"role": "USER", "message": "How many?", **turn}]
        answer = co1.chat(message="So?", model=model, chat_history=history, max_tokens=1)
        return answer.meta.tokens.input_tokens

    assert tokens(tool_results=[result]) > tokens()


def test_version_1_has_forms(co1, model):
    answer = co1.chat(message="Hello", model=model, response_format={"type": "json_object", "schema": SCHEMA})
    assert list(json.loads(answer.text)) == ["name", "count"]


def test_version_1_reads_documents(co1, model):
    plain = co1.chat(message="Hello", model=model, max_tokens=2).meta.tokens.input_tokens
    document = {"title": "Sea", "text": "It is deep."}
    seen = co1.chat(message="Hello", model=model, documents=[document], max_tokens=2).meta.tokens.input_tokens
    assert seen > plain


def test_version_1_stops(co1, model):
    text = co1.chat(message="Hello", model=model, temperature=0).text
    if len(text) < 8:
        pytest.skip("the model says too little to be stopped")
    answer = co1.chat(message="Hello", model=model, temperature=0, stop_sequences=[text[4:7]])
    assert (answer.text, answer.finish_reason) == (text[: text.index(text[4:7])], "STOP_SEQUENCE")


def test_the_oldest_turns_are_left_out_where_allowed(co1, model):
    length = co1.models.get(model).context_length
    history = [{"role": "USER", "message": "word " * 50}, {"role": "CHATBOT", "message": "yes"}] * (length // 50)
    with pytest.raises(cohere.BadRequestError):
        co1.chat(message="Hello", chat_history=history, model=model)
    answer = co1.chat(message="Hello", chat_history=history, model=model, prompt_truncation="AUTO", max_tokens=4)
    assert 0 < answer.meta.tokens.input_tokens < length
    with pytest.raises(cohere.BadRequestError):
        co1.chat(message="word " * 4 * length, model=model, prompt_truncation="AUTO")


def test_truncation_of_turns_tells_how_many(server, model):
    body = {"model": model, "truncation": "auto", "max_tokens": 2, "messages": []}
    for _ in range(40):
        body["messages"] += [{"role": "user", "content": "word " * 50}, {"role": "assistant", "content": "yes"}]
    body["messages"].append({"role": "user", "content": "Hello"})
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert answer.status_code == 200 and int(answer.headers["x-omitted-messages"]) >= 2


def test_a_raw_prompt_is_continued(co1, base):
    raw = co1.chat(message="Once there was", model=base, raw_prompting=True, temperature=0, max_tokens=6)
    continued = co1.generate(prompt="Once there was", model=base, temperature=0, max_tokens=6)
    assert raw.text == continued.generations[0].text


def test_version_1_options_of_none_are_as_if_absent(co1, model):
    names = (
        "preamble chat_history conversation_id prompt_truncation connectors search_queries_only documents "
        "citation_quality max_tokens max_input_tokens k p seed stop_sequences frequency_penalty "
        "presence_penalty raw_prompting tools tool_results force_single_step safety_mode"
    )
    given = co1.chat(message="Hello", model=model, temperature=0, **dict.fromkeys(names.split()))
    assert given.text == co1.chat(message="Hello", model=model, temperature=0).text


# ---- generate


def test_a_text_is_continued(co1, base):
    answer = co1.generate(prompt="Once there was", model=base, num_generations=3, max_tokens=5)
    assert answer.id and answer.prompt == "Once there was" and len(answer.generations) == 3
    assert [generation.index for generation in answer.generations] == [0, 1, 2]
    assert len({generation.id for generation in answer.generations}) == 3
    assert answer.meta.tokens.output_tokens <= 15


def test_version_2_clients_continue_texts_too(co, base):
    assert co.generate(prompt="Once there was", model=base, max_tokens=5).generations[0].text is not None


def test_a_continuation_is_streamed(co1, base):
    options = {
        "prompt": "Once there was",
        "model": base,
        "max_tokens": 8,
        "temperature": 0,
        "num_generations": 2,
    }
    whole = co1.generate(**options)
    *events, last = co1.generate_stream(**options)
    assert {event.event_type for event in events} == {"text-generation"} and last.event_type == "stream-end"
    assert last.is_finished and not any(event.is_finished for event in events)
    for index, generation in enumerate(whole.generations):
        text = "".join(event.text for event in events if event.index == index)
        assert text == generation.text == last.response.generations[index].text


@pytest.mark.parametrize("streamed", [False, True])
def test_stop_sequences_stay_and_end_sequences_go(co1, base, streamed):
    def ask(**options) -> str:
        options = {"prompt": "Once there was", "model": base, "max_tokens": 12, "temperature": 0, **options}
        if not streamed:
            return co1.generate(**options).generations[0].text
        *events, last = co1.generate_stream(**options)
        text = "".join(event.text for event in events)
        assert text == last.response.generations[0].text
        return text

    text = ask()
    if len(text) < 6:
        pytest.skip("the model says too little to be stopped")
    stop = text[3:6]
    before = text[: text.index(stop)]
    assert ask(end_sequences=[stop]) == before
    assert ask(stop_sequences=[stop]) == before + stop


def test_likelihoods_are_those_of_the_tokens(co1, base):
    options = {"prompt": "Once there was", "model": base, "max_tokens": 6, "temperature": 0}
    generation = co1.generate(return_likelihoods="GENERATION", **options).generations[0]
    values = [token.likelihood for token in generation.token_likelihoods]
    assert "".join(token.token for token in generation.token_likelihoods) == generation.text
    # The mean is of single precision, and the values are.
    assert generation.likelihood == pytest.approx(sum(values) / len(values), rel=1e-5)
    assert co1.generate(**options).generations[0].likelihood is None
    everything = co1.generate(return_likelihoods="ALL", **options).generations[0]
    assert "".join(token.token for token in everything.token_likelihoods) == options["prompt"] + generation.text
    assert [token.likelihood for token in everything.token_likelihoods[-len(values) :]] == values
    known = [token.likelihood for token in everything.token_likelihoods if token.likelihood is not None]
    assert everything.likelihood == pytest.approx(sum(known) / len(known), rel=1e-5)


def test_a_long_prompt_is_cut_or_refused_as_asked(co1, base):
    long = "word " * 4 * co1.models.get(base).context_length
    for truncate in ("START", "END"):
        assert co1.generate(prompt=long, model=base, truncate=truncate, max_tokens=2).generations
    with pytest.raises(cohere.BadRequestError):
        co1.generate(prompt=long, model=base, truncate="NONE", max_tokens=2)


def test_generate_options_of_none_are_as_if_absent(co1, base):
    names = (
        "num_generations truncate seed preset end_sequences stop_sequences k p frequency_penalty "
        "presence_penalty return_likelihoods raw_prompting"
    )
    options = {"prompt": "Once there was", "model": base, "max_tokens": 5, "temperature": 0}
    given = co1.generate(**options, **dict.fromkeys(names.split()))
    assert given.generations[0].text == co1.generate(**options).generations[0].text


# ---- tokens


@pytest.mark.parametrize(
    "text", ["Hello", "the water and the land", "Grüße 🎉 日本語\n\t\u2028\u0000", "<|user|>"]
)
def test_tokens_become_the_same_text_again(co1, model, text):
    cut = co1.tokenize(text=text, model=model, offline=False)
    assert cut.tokens and len(cut.tokens) == len(cut.token_strings)
    assert co1.detokenize(tokens=cut.tokens, model=model, offline=False).text == text


def test_tokens_are_the_same_where_the_client_looks_for_a_tokenizer_first(co, co1, model):
    direct = co1.tokenize(text="the water", model=model, offline=False).tokens
    assert co1.tokenize(text="the water", model=model).tokens == direct
    assert co.tokenize(text="the water", model=model).tokens == direct
    assert co1.detokenize(tokens=direct, model=model).text == "the water"


def test_what_has_no_tokens_is_refused(co1, model):
    for text in ("", "a" * 65_537):
        with pytest.raises(cohere.BadRequestError):
            co1.tokenize(text=text, model=model, offline=False)
    for tokens in ([], [10**8], [-1], [1] * 65_537):
        with pytest.raises(cohere.BadRequestError):
            co1.detokenize(tokens=tokens, model=model, offline=False)


# ---- models and keys


def test_models_are_listed_and_described(co, models):
    assert [model.name for model in co.models.list().models] == models
    for name in models:
        model = co.models.get(name)
        assert model.name == name and model.context_length > 0 and "chat" in model.endpoints


def test_models_come_in_pages(co, models):
    names, token = [], None
    for _ in models:
        page = co.models.list(page_size=1, page_token=token)
        names += [model.name for model in page.models]
        token = page.next_page_token
    assert names == models and not token


def test_models_are_listed_by_what_they_do(co, models):
    assert [model.name for model in co.models.list(endpoint="chat").models] == models
    assert co.models.list(endpoint="embed").models == []


def test_a_key_is_checked(co1, keyed):
    assert co1.with_raw_response.check_api_key().data.valid is True
    good = cohere.Client(api_key=keyed.keys["free"], base_url=keyed.url)
    assert good.with_raw_response.check_api_key().data.valid is True
    with pytest.raises(cohere.UnauthorizedError):
        cohere.Client(api_key="wrong", base_url=keyed.url).with_raw_response.check_api_key()


# ---- errors


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("messages", {"messages": []}),
        ("messages[0].role", {"messages": [{"role": "king", "content": "a"}]}),
        ("messages[0].content", {"messages": [{"role": "user"}]}),
        ("messages[0].content[0]", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        ("messages[1].tool_call_id", {"messages": [*HELLO, {"role": "tool", "content": "a"}]}),
        ("temperature", {"temperature": -0.1}),
        ("temperature", {"temperature": 1.1}),
        ("k", {"k": 501}),
        ("k", {"k": -1}),
        ("p", {"p": 1.5}),
        ("seed", {"seed": -1}),
        ("frequency_penalty", {"frequency_penalty": 2}),
        ("presence_penalty", {"presence_penalty": -1}),
        ("max_tokens", {"max_tokens": -1}),
        ("stop_sequences", {"stop_sequences": list("abcdef")}),
        ("tool_choice", {"tools": [TOOL], "tool_choice": "SOMETIMES"}),
        ("tool_choice", {"tool_choice": "REQUIRED"}),
        ("tools[0]", {"tools": [{"type": "function"}]}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "x"}}}]}),
        ("response_format.type", {"response_format": {"type": "xml"}}),
        ("response_format", {"response_format": {"type": "json_object", "json_schema": {"type": "x"}}}),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_what_is_wrong_is_named(co, model, field, options, streamed):
    options = {"model": model, "messages": HELLO, **options}
    with pytest.raises(cohere.BadRequestError) as caught:
        list(co.chat_stream(**options)) if streamed else co.chat(**options)
    assert caught.value.body["message"].startswith(field)
    assert caught.value.body["error"]["param"].startswith(field)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("prompt", {"prompt": ""}),
        ("num_generations", {"num_generations": 6}),
        ("num_generations", {"num_generations": 0}),
        ("temperature", {"temperature": 5.1}),
        ("truncate", {"truncate": "MIDDLE"}),
        ("return_likelihoods", {"return_likelihoods": "SOME"}),
        ("end_sequences", {"end_sequences": list("abcdef")}),
    ],
)
def test_what_is_wrong_with_a_continuation_is_named(co1, base, field, options):
    with pytest.raises(cohere.BadRequestError) as caught:
        co1.generate(**{"model": base, "prompt": "a", **options})
    assert caught.value.body["error"]["param"] == field


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("message", {"message": ""}),
        ("chat_history[0]", {"chat_history": [{"role": "KING", "message": "a"}]}),
        ("prompt_truncation", {"prompt_truncation": "SOME"}),
        ("temperature", {"temperature": 2}),
    ],
)
def test_what_is_wrong_with_a_version_1_chat_is_named(co1, model, field, options):
    with pytest.raises(cohere.BadRequestError) as caught:
        co1.chat(**{"model": model, "message": "a", **options})
    assert caught.value.body["error"]["param"].startswith(field)


@pytest.mark.parametrize(
    "ask",
    [
        lambda co, co1, model: co.chat(model="nothing", messages=HELLO),
        lambda co, co1, model: list(co.chat_stream(model="nothing", messages=HELLO)),
        lambda co, co1, model: co1.chat(model="nothing", message="a"),
        lambda co, co1, model: co1.generate(model="nothing", prompt="a"),
        lambda co, co1, model: co1.tokenize(model="nothing", text="a", offline=False),
        lambda co, co1, model: co1.detokenize(model="nothing", tokens=[5], offline=False),
        lambda co, co1, model: co.models.get("nothing"),
        lambda co, co1, model: co.models.get("org/nothing"),
        lambda co, co1, model: co.embed(
            model=model, texts=["a"], input_type="search_query", embedding_types=["float"]
        ),
        lambda co, co1, model: co.rerank(model=model, query="a", documents=["b"]),
        lambda co, co1, model: co1.rerank(model=model, query="a", documents=["b"]),
        lambda co, co1, model: co1.classify(model=model, inputs=["a"], examples=[]),
        lambda co, co1, model: co1.summarize(model=model, text="a" * 300),
        lambda co, co1, model: co1.datasets.list(),
        lambda co, co1, model: co1.connectors.list(),
    ],
)
def test_what_is_not_there_is_not_found(co, co1, model, ask):
    with pytest.raises(cohere.NotFoundError) as caught:
        ask(co, co1, model)
    assert caught.value.body["message"]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_wrong_key_is_unauthorized(keyed, model, streamed):
    client = cohere.ClientV2(api_key="wrong", base_url=keyed.url)
    with pytest.raises(cohere.UnauthorizedError) as caught:
        options = {"model": model, "messages": HELLO}
        list(client.chat_stream(**options)) if streamed else client.chat(**options)
    assert caught.value.body["message"] == "invalid api token"


def test_too_many_requests_are_told_when_to_come_back(keyed, model):
    client = cohere.ClientV2(api_key=keyed.keys["slow"], base_url=keyed.url, max_retries=0)
    with pytest.raises(cohere.TooManyRequestsError) as caught:
        for _ in range(5):
            client.chat(model=model, messages=HELLO, max_tokens=1)
    headers = {name.lower(): value for name, value in caught.value.headers.items()}
    assert 1 <= int(headers["retry-after"]) <= 30


def test_the_client_comes_back_by_itself(keyed, model):
    key = keyed.keys["brisk"]
    options = {"model": model, "messages": HELLO, "max_tokens": 1}
    hasty = cohere.ClientV2(api_key=key, base_url=keyed.url, max_retries=0)
    with pytest.raises(cohere.TooManyRequestsError):
        for _ in range(80):
            hasty.chat(**options)
    assert cohere.ClientV2(api_key=key, base_url=keyed.url).chat(**options).message


def test_a_request_by_another_name_is_forbidden(server: Running, model):
    if server.process is None:
        pytest.skip("a server that is given may have keys")
    http = httpx.Client(headers={"Host": "evil.example"}, timeout=PATIENCE)
    with pytest.raises(cohere.ForbiddenError):
        cohere.ClientV2(api_key="any", base_url=server.url, httpx_client=http).chat(
            model=model, messages=HELLO
        )


# ---- connections


def test_a_stream_that_is_closed_midway_frees_the_server(server, co1, base):
    server.wait_idle()
    cancelled = server.metric("strata_requests_total", outcome="cancelled")
    for _ in range(4):
        options = {"num_generations": 5, "max_tokens": 400, "temperature": 5, "p": 0.99}
        stream = co1.generate_stream(prompt="Once there was", model=base, **options)
        next(stream)
        stream.close()
    server.wait_idle()
    assert server.metric("strata_requests_total", outcome="cancelled") > cancelled
    assert co1.generate(prompt="Once there was", model=base, max_tokens=2).generations
