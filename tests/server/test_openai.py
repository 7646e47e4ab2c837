"""The official OpenAI client against the server. Nothing depends on what a model says."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Literal

import openai
import pydantic
import pytest

from running import PATIENCE, Running, long_answer

HELLO = [{"role": "user", "content": "Hello, how are you today?"}]


def schema(**properties) -> dict:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": schema(city={"type": "string", "maxLength": 20}, days={"type": "integer"}),
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "get_time", "parameters": schema(zone={"enum": ["utc", "local"]})},
}


def check_call(call) -> None:
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        assert sorted(arguments) == ["city", "days"]
        assert isinstance(arguments["city"], str) and len(arguments["city"]) <= 20
        assert isinstance(arguments["days"], int)
    else:
        assert call.function.name == "get_time"
        assert arguments["zone"] in ("utc", "local")
    assert call.id and call.type == "function"


def text_of(stream) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


# ---- chat, whole and streamed


def test_a_chat_is_answered(client, model):
    answer = client.chat.completions.create(model=model, messages=HELLO)
    assert answer.object == "chat.completion" and answer.model == model and answer.id
    assert abs(answer.created - time.time()) < 3600
    [choice] = answer.choices
    assert choice.index == 0 and choice.message.role == "assistant"
    assert isinstance(choice.message.content, str)
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.prompt_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream_says_what_the_whole_answer_says(client, model):
    whole = client.chat.completions.create(model=model, messages=HELLO, temperature=0)
    stream = client.chat.completions.create(model=model, messages=HELLO, temperature=0, stream=True)
    assert text_of(stream) == whole.choices[0].message.content


def test_a_stream_begins_with_the_role_and_ends_with_the_reason(client, model):
    chunks = list(client.chat.completions.create(model=model, messages=HELLO, stream=True))
    assert all(chunk.object == "chat.completion.chunk" and chunk.id == chunks[0].id for chunk in chunks)
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks[:-1])


def test_a_stream_ends_with_the_usage_where_asked_for(client, model):
    whole = client.chat.completions.create(model=model, messages=HELLO, temperature=0)
    options = {"include_usage": True}
    stream = client.chat.completions.create(
        model=model, messages=HELLO, temperature=0, stream=True, stream_options=options
    )
    *others, last = stream
    assert last.choices == [] and last.usage.total_tokens == whole.usage.total_tokens
    assert all(chunk.usage is None for chunk in others)


def test_the_async_client_gets_the_same(client, async_client, model):
    whole = client.chat.completions.create(model=model, messages=HELLO, temperature=0)

    async def ask() -> tuple[str, str]:
        answer = await async_client.chat.completions.create(model=model, messages=HELLO, temperature=0)
        stream = await async_client.chat.completions.create(
            model=model, messages=HELLO, temperature=0, stream=True
        )
        return answer.choices[0].message.content, "".join(
            [c.choices[0].delta.content or "" async for c in stream]
        )

    assert asyncio.run(ask()) == (whole.choices[0].message.content,) * 2


def test_many_at_once_get_what_each_gets_alone(client, async_client, model):
    prompts = [[{"role": "user", "content": f"Tell me about {number} things."}] for number in range(16)]
    options = {"model": model, "temperature": 0, "max_tokens": 20}
    alone = [client.chat.completions.create(messages=prompt, **options) for prompt in prompts]

    async def ask():
        return await asyncio.gather(
            *(async_client.chat.completions.create(messages=prompt, **options) for prompt in prompts)
        )

    together = asyncio.run(ask())
    texts = [[answer.choices[0].message.content for answer in answers] for answers in (alone, together)]
    assert texts[0] == texts[1]


def test_three_answers_have_three_indices_and_one_prompt(client, model):
    one = client.chat.completions.create(model=model, messages=HELLO, max_tokens=5)
    answer = client.chat.completions.create(model=model, messages=HELLO, n=3, max_tokens=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.prompt_tokens == one.usage.prompt_tokens
    assert answer.usage.completion_tokens <= 15


def test_three_answers_are_streamed_side_by_side(client, model):
    stream = client.chat.completions.create(
        model=model, messages=HELLO, n=3, max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    for index in range(3):
        own = [choice for choice in choices if choice.index == index]
        assert own[0].delta.role == "assistant" and own[-1].finish_reason in ("stop", "length")
    whole = client.chat.completions.create(model=model, messages=HELLO, n=3, max_tokens=5)
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("listed", [False, True])
def test_a_stop_string_ends_an_answer_and_is_not_part_of_it(client, model, streamed, listed):
    options = {"model": model, "temperature": 0, "max_tokens": 40}

    def ask(messages: list) -> str:
        whole = client.chat.completions.create(messages=messages, **options)
        return whole.choices[0].message.content

    options["messages"], text = long_answer(ask)
    stop = text[4:7]
    options["stop"] = ["\u0000no", stop] if listed else stop
    if streamed:
        chunks = list(client.chat.completions.create(stream=True, **options))
        got, reason = text_of(chunks), chunks[-1].choices[0].finish_reason
    else:
        choice = client.chat.completions.create(**options).choices[0]
        got, reason = choice.message.content, choice.finish_reason
    assert got == text[: text.index(stop)] and reason == "stop"


def test_equal_seeds_give_equal_answers_and_others_others(client, model):
    def answer(seed: int) -> list[str]:
        options = {"temperature": 1.5, "max_tokens": 30, "seed": seed}
        whole = client.chat.completions.create(model=model, messages=HELLO, **options)
        return whole.choices[0].message.content

    assert answer(7) == answer(7) and answer(-7) == answer(-7)
    assert len({answer(seed) for seed in range(8)}) > 1


def test_temperature_zero_twice_is_the_same(client, model):
    answers = {
        client.chat.completions.create(model=model, messages=HELLO, temperature=0).choices[0].message.content
        for _ in range(3)
    }
    assert len(answers) == 1


def test_options_of_none_are_as_if_absent(client, model):
    names = (
        "frequency_penalty logit_bias logprobs max_tokens max_completion_tokens n presence_penalty "
        "response_format seed stop stream stream_options tool_choice tools top_logprobs top_p user"
    )
    nothing = dict.fromkeys(names.split())
    given = client.chat.completions.create(model=model, messages=HELLO, temperature=0, **nothing)
    absent = client.chat.completions.create(model=model, messages=HELLO, temperature=0)
    assert given.choices[0].message.content == absent.choices[0].message.content


# ---- tokens


def test_log_probabilities_are_those_of_the_answers_tokens(client, model):
    answer = client.chat.completions.create(
        model=model, messages=HELLO, temperature=0, max_tokens=10, logprobs=True, top_logprobs=5
    )
    choice = answer.choices[0]
    tokens = choice.logprobs.content
    # The token that ends an answer is counted and has no text.
    assert answer.usage.completion_tokens - 1 <= len(tokens) <= answer.usage.completion_tokens
    joined = b"".join(bytes(token.bytes) for token in tokens).decode(errors="replace")
    assert joined.strip() == choice.message.content.strip()
    for token in tokens:
        values = [top.logprob for top in token.top_logprobs]
        assert len(values) == 5 and values == sorted(values, reverse=True)
        assert all(-9999 <= value <= 0 for value in values)
        # Temperature 0 takes the likeliest.
        assert token.token == token.top_logprobs[0].token and token.logprob == values[0]


def test_log_probabilities_are_streamed_too(client, model):
    options = {"model": model, "messages": HELLO, "temperature": 0, "max_tokens": 8, "logprobs": True}
    whole = client.chat.completions.create(**options).choices[0].logprobs.content
    stream = client.chat.completions.create(stream=True, **options)
    choices = [chunk.choices[0] for chunk in stream]
    streamed = [token for choice in choices if choice.logprobs for token in choice.logprobs.content or []]
    assert [token.bytes for token in streamed] == [token.bytes for token in whole]
    # Both are the same passes through the model, so that they agree to the last digit of JSON.
    assert [token.logprob for token in streamed] == [token.logprob for token in whole]


def test_without_asking_there_are_no_log_probabilities(client, model):
    assert (
        client.chat.completions.create(model=model, messages=HELLO, max_tokens=2).choices[0].logprobs is None
    )


def test_a_bias_forces_a_token(client, model, token):
    number, text = token
    for limit in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(
            model=model, messages=HELLO, temperature=0, logit_bias={str(number): 100}, **{limit: 6}
        )
        assert answer.choices[0].message.content == text * 6
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 6


def test_a_bias_forbids_a_token(client, model):
    options = {"model": model, "messages": HELLO, "temperature": 0, "max_tokens": 1, "logprobs": True}
    tokens = client.chat.completions.create(**options).choices[0].logprobs.content
    if not tokens:
        pytest.skip("the model says nothing")
    first = tokens[0]
    number = cohere_token(client, model, first.token)
    if number is None:
        pytest.skip("the first token is not one token of its own text")
    other = (
        client.chat.completions.create(**options, logit_bias={str(number): -100}).choices[0].logprobs.content
    )
    assert not other or other[0].bytes != first.bytes


def cohere_token(client: openai.OpenAI, model: str, text: str) -> int | None:
    answer = client.post("/tokenize", body={"model": model, "text": text}, cast_to=object)
    return answer["tokens"][0] if len(answer["tokens"]) == 1 else None


def test_more_tokens_than_the_context_are_capped(client, model):
    answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=10**6, temperature=0)
    assert answer.choices[0].finish_reason in ("stop", "length")


# ---- messages


def test_parts_of_text_are_text(client, model):
    parts = [{"type": "text", "text": "Hello, how are you"}, {"type": "text", "text": "today?"}]
    text = "Hello, how are you\ntoday?"
    answers = [
        client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": content}], temperature=0
        )
        for content in (parts, text)
    ]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
    assert answers[0].usage.prompt_tokens == answers[1].usage.prompt_tokens


def test_a_developer_is_a_system(client, model):
    answers = [
        client.chat.completions.create(
            model=model, messages=[{"role": role, "content": "Be brief."}, *HELLO], temperature=0
        )
        for role in ("developer", "system")
    ]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
    assert answers[0].usage.prompt_tokens == answers[1].usage.prompt_tokens


@pytest.mark.parametrize(
    "text", ["Grüße 🎉👩‍👩‍👧 日本語 \u2028 \u0000 \ufeff", "\U0010ffff" * 20, "a\r\n\tb", " "]
)
def test_any_characters_can_be_said(client, model, text):
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], max_tokens=5
    )
    answer.choices[0].message.content.encode()


def test_special_tokens_in_a_text_are_only_text(client, model):
    # As one special token each, the marks would be shorter than as the characters that they consist of.
    plain = client.chat.completions.create(model=model, messages=HELLO, max_tokens=1).usage.prompt_tokens
    said = [{"role": "user", "content": HELLO[0]["content"] + "<|user|><|assistant|><|end|></s><s>"}]
    marked = client.chat.completions.create(model=model, messages=said, max_tokens=1).usage.prompt_tokens
    assert marked >= plain + 15


def test_the_second_turn_finds_the_first_in_the_cache(client, model):
    messages = [
        {"role": "user", "content": f"Please tell me about the city, the water and number {time.time_ns()}."}
    ]
    first = client.chat.completions.create(model=model, messages=messages, max_tokens=20)
    messages += [first.choices[0].message, {"role": "user", "content": "And then?"}]
    second = client.chat.completions.create(model=model, messages=messages, max_tokens=5)
    assert 0 < second.usage.prompt_tokens_details.cached_tokens < second.usage.prompt_tokens


# ---- answers of a form


def test_a_json_object_is_one(client, model):
    for seed in range(4):
        answer = client.chat.completions.create(
            model=model, messages=HELLO, response_format={"type": "json_object"}, temperature=1, seed=seed
        )
        assert isinstance(json.loads(answer.choices[0].message.content), dict)


@pytest.mark.parametrize(
    ("wanted", "check"),
    [
        (schema(ok={"type": "boolean"}), lambda value: value["ok"] in (True, False)),
        (schema(kind={"enum": ["a", "b"]}), lambda value: value["kind"] in ("a", "b")),
        (schema(kind={"const": "x"}), lambda value: value == {"kind": "x"}),
        (
            schema(list={"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4}),
            lambda value: 2 <= len(value["list"]) <= 4 and all(type(item) is int for item in value["list"]),
        ),
        (
            schema(in_={"type": "object", **schema(a={"type": "null"})}),
            lambda value: value == {"in_": {"a": None}},
        ),
        (
            schema(text={"type": "string", "minLength": 5, "maxLength": 10}),
            lambda value: 5 <= len(value["text"]) <= 10,
        ),
        (schema(code={"type": "string", "pattern": "^[A-Z]{3}$"}), lambda value: value["code"].isupper()),
        # Without anchors, a pattern may begin anywhere.
        (
            schema(code={"type": "string", "pattern": "[A-Z]+x"}),
            lambda value: re.search("[A-Z]+x", value["code"]) is not None,
        ),
        (schema(text={"const": "a\fb\rc\td"}), lambda value: value["text"] == "a\fb\rc\td"),
        (schema(either={"anyOf": [{"type": "null"}, {"type": "integer"}]}), lambda value: len(value) == 1),
    ],
)
def test_an_answer_has_the_form_of_its_schema(client, model, wanted, check):
    for seed in range(2):
        answer = client.chat.completions.create(
            model=model,
            messages=HELLO,
            temperature=1,
            seed=seed,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "form", "schema": wanted, "strict": True},
            },
        )
        value = json.loads(answer.choices[0].message.content)
        assert list(value) == wanted["required"] and check(value), value


def test_a_text_that_answers_cannot_hold_is_refused(client, model):
    form = {"name": "form", "schema": schema(text={"const": "a\u000bb"})}
    with pytest.raises(openai.BadRequestError, match="control character") as raised:
        client.chat.completions.create(
            model=model, messages=HELLO, response_format={"type": "json_schema", "json_schema": form}
        )
    assert raised.value.param == "response_format"


class Plan(pydantic.BaseModel):
    """Something to do."""

    title: str = pydantic.Field(max_length=20)
    effort: int
    kind: Literal["work", "play"]
    done: bool


def test_an_answer_is_parsed_into_a_pydantic_model(client, model):
    answer = client.chat.completions.parse(model=model, messages=HELLO, response_format=Plan)
    assert isinstance(answer.choices[0].message.parsed, Plan)


def test_the_async_client_parses_too(async_client, model):
    ask = async_client.chat.completions.parse(model=model, messages=HELLO, response_format=Plan)
    assert isinstance(asyncio.run(run(ask)).choices[0].message.parsed, Plan)


async def run(work):
    return await work


def test_a_stream_is_parsed_when_it_ends(client, model):
    with client.chat.completions.stream(model=model, messages=HELLO, response_format=Plan) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert isinstance(final.choices[0].message.parsed, Plan)


def test_a_form_in_few_tokens_is_still_whole(client, model):
    form = {"type": "json_schema", "json_schema": {"name": "form", "schema": schema(text={"type": "string"})}}
    answer = client.chat.completions.create(model=model, messages=HELLO, response_format=form, max_tokens=24)
    assert list(json.loads(answer.choices[0].message.content)) == ["text"]
    assert answer.usage.completion_tokens <= 24


# ---- tools


def test_a_required_tool_is_called(client, model):
    for seed in range(3):
        answer = client.chat.completions.create(
            model=model,
            messages=HELLO,
            tools=[WEATHER, CLOCK],
            tool_choice="required",
            temperature=1,
            seed=seed,
        )
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
        for call in choice.message.tool_calls:
            check_call(call)


@pytest.mark.parametrize("name", ["get_weather", "get_time"])
def test_a_named_tool_is_called(client, model, name):
    answer = client.chat.completions.create(
        model=model,
        messages=HELLO,
        tools=[WEATHER, CLOCK],
        tool_choice={"type": "function", "function": {"name": name}},
    )
    calls = answer.choices[0].message.tool_calls
    assert calls and all(call.function.name == name for call in calls)
    check_call(calls[0])


def test_with_tools_at_will_there_is_a_text_or_a_call(client, model):
    message = client.chat.completions.create(model=model, messages=HELLO, tools=[WEATHER]).choices[0].message
    assert message.content is not None or message.tool_calls
    for call in message.tool_calls or []:
        check_call(call)


def test_without_tools_by_choice_there_is_no_call(client, model):
    answer = client.chat.completions.create(model=model, messages=HELLO, tools=[WEATHER], tool_choice="none")
    assert not answer.choices[0].message.tool_calls
    plain = client.chat.completions.create(model=model, messages=HELLO)
    assert answer.choices[0].message.content == plain.choices[0].message.content


def test_a_streamed_call_adds_up(client, model):
    options = {"model": model, "messages": HELLO, "tools": [WEATHER], "tool_choice": "required"}
    with client.chat.completions.stream(**options) as stream:
        for _ in stream:
            pass
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    check_call(choice.message.tool_calls[0])


def test_a_tools_result_goes_back(client, model):
    first = (
        client.chat.completions.create(model=model, messages=HELLO, tools=[WEATHER], tool_choice="required")
        .choices[0]
        .message
    )
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "clear"}'} for call in first.tool_calls
    ]
    answer = client.chat.completions.create(model=model, messages=[*HELLO, first, *results], max_tokens=20)
    assert isinstance(answer.choices[0].message.content, str)


def test_a_pydantic_tool_is_parsed(client, model):
    answer = client.chat.completions.parse(
        model=model, messages=HELLO, tools=[openai.pydantic_function_tool(Plan)], tool_choice="required"
    )
    assert isinstance(answer.choices[0].message.tool_calls[0].function.parsed_arguments, Plan)


# ---- completions


def test_a_text_is_continued_by_sixteen_tokens_at_most(client, base):
    answer = client.completions.create(model=base, prompt="Once there was")
    assert answer.object == "text_completion" and answer.usage.completion_tokens <= 16


def test_several_texts_are_continued_in_order(client, base):
    options = {"model": base, "max_tokens": 6, "temperature": 0}
    prompts = ["Once there was", "The city of", "Water is"]
    alone = [client.completions.create(prompt=prompt, **options).choices[0].text for prompt in prompts]
    answer = client.completions.create(prompt=prompts, n=2, **options)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert [choice.text for choice in answer.choices] == [text for text in alone for _ in range(2)]


def test_tokens_are_continued(client, base):
    tokens = client.post("/tokenize", body={"model": base, "text": "Once there was"}, cast_to=object)[
        "tokens"
    ]
    one = client.completions.create(model=base, prompt=tokens, max_tokens=3, temperature=0)
    two = client.completions.create(model=base, prompt=[tokens, tokens], max_tokens=3, temperature=0)
    assert one.usage.prompt_tokens == len(tokens)
    assert [choice.text for choice in two.choices] == [one.choices[0].text] * 2


@pytest.mark.parametrize("streamed", [False, True])
def test_an_echo_is_the_prompt_as_it_came(client, base, streamed):
    prompt = "Grüße  🎉 \u2028 \n日本"
    options = {"model": base, "prompt": prompt, "max_tokens": 4, "temperature": 0}
    plain = client.completions.create(**options).choices[0].text
    if streamed:
        chunks = client.completions.create(echo=True, stream=True, **options)
        text = "".join(chunk.choices[0].text for chunk in chunks)
    else:
        text = client.completions.create(echo=True, **options).choices[0].text
    assert text == prompt + plain


def choices(client, streamed: bool, **options) -> list[openai.types.CompletionChoice]:
    """The choices of a completion; those of a stream put together."""
    if not streamed:
        return client.completions.create(**options).choices
    whole: dict[int, openai.types.CompletionChoice] = {}
    for chunk in client.completions.create(stream=True, **options):
        for choice in chunk.choices:
            before = whole.setdefault(choice.index, choice)
            if before is not choice:
                before.text += choice.text
                before.finish_reason = choice.finish_reason
                for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                    getattr(before.logprobs, name).extend(getattr(choice.logprobs, name) if choice.logprobs else [])
    return [whole[index] for index in sorted(whole)]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_text_is_measured_by_the_log_probabilities_of_its_tokens(client, base, streamed):
    options = {"model": base, "prompt": "Grüße. Once there was", "echo": True, "logprobs": 2, "temperature": 0}
    (found,) = choices(client, streamed, max_tokens=0, **options)
    assert found.text == options["prompt"], "what is sent comes back, whatever its tokens are"
    options["prompt"] = "Once there was"
    # As tools that measure models ask: nothing, or one token, is written.
    (alone,), (found,) = (choices(client, streamed, max_tokens=most, **options) for most in (0, 1))
    assert alone.text == options["prompt"] == "".join(alone.logprobs.tokens) and alone.finish_reason == "length"
    assert found.text.startswith(alone.text)
    for told in (alone.logprobs, found.logprobs):
        assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset)
        for token, value, top in zip(told.tokens[1:], told.token_logprobs[1:], told.top_logprobs[1:]):
            assert value <= max(top.values()) and (token not in top or "\ufffd" in token or top[token] == value)
    count = len(alone.logprobs.tokens)
    assert found.logprobs.token_logprobs[:count] == alone.logprobs.token_logprobs


def test_a_token_is_measured_as_it_would_be_written(client, base):
    tokens = client.post("/tokenize", body={"model": base, "text": "Once there was a town"}, cast_to=object)["tokens"]
    options = {"model": base, "logprobs": 0, "temperature": 0}
    measured = client.completions.create(prompt=tokens, echo=True, max_tokens=0, **options).choices[0].logprobs
    assert len(measured.token_logprobs) == len(tokens) > 3
    for at in range(1, len(tokens)):
        # What is added to logits chooses the token and is not part of its probability.
        forced = client.completions.create(
            prompt=tokens[:at], max_tokens=1, logit_bias={str(tokens[at]): 100}, **options
        )
        value = forced.choices[0].logprobs.token_logprobs[0]
        assert measured.token_logprobs[at] == pytest.approx(value, abs=1e-4), f"token {at}"


@pytest.mark.parametrize("streamed", [False, True])
def test_tokens_are_measured_too_and_several_prompts_at_once(client, base, streamed):
    tokens = client.post("/tokenize", body={"model": base, "text": "Once there was"}, cast_to=object)["tokens"]
    options = {"model": base, "logprobs": 1, "temperature": 0, "echo": True, "max_tokens": 1, "n": 2}
    found = choices(client, streamed, prompt=[tokens, tokens[:2]], **options)
    assert [len(choice.logprobs.tokens) for choice in found] == [len(tokens) + 1] * 2 + [3] * 2
    for choice in found:
        first, *others = choice.logprobs.token_logprobs
        assert first is None and choice.logprobs.top_logprobs[0] is None
        assert all(-9999 <= value <= 0 for value in others)
    assert found[0].text.startswith("Once there was")
    assert found[2].logprobs.token_logprobs[:2] == found[0].logprobs.token_logprobs[:2]


def test_log_probabilities_of_a_continuation_are_parallel_lists(client, base):
    answer = client.completions.create(
        model=base, prompt="Once there was", max_tokens=6, logprobs=3, temperature=0
    )
    found = answer.choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset)
    assert "".join(found.tokens) == answer.choices[0].text
    for token, value, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        assert len(top) <= 3 and top[token] == value == max(top.values())
    for token, offset in zip(found.tokens, found.text_offset, strict=True):
        assert answer.choices[0].text[offset:].startswith(token)


def test_a_continuation_is_streamed_with_usage(client, base):
    options = {"model": base, "prompt": "Once there was", "max_tokens": 6, "temperature": 0}
    whole = client.completions.create(**options)
    *chunks, last = client.completions.create(stream=True, stream_options={"include_usage": True}, **options)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.choices == [] and last.usage.total_tokens == whole.usage.total_tokens


def test_a_stop_string_ends_a_continuation(client, base):
    options = {"model": base, "prompt": "Once there was", "max_tokens": 12, "temperature": 0}
    text = client.completions.create(**options).choices[0].text
    if len(text) < 6:
        pytest.skip("the model says too little to be stopped")
    choice = client.completions.create(stop=[text[3:6]], **options).choices[0]
    assert choice.text == text[: text.index(text[3:6])] and choice.finish_reason == "stop"


# ---- models


def test_models_are_listed_and_described(client, models):
    assert [model.id for model in client.models.list()] == models
    for name in models:
        model = client.models.retrieve(name)
        assert (model.id, model.object) == (name, "model") and model.created > 0 and model.owned_by


@pytest.mark.parametrize("name", ["nothing", "org/nothing", "../models", "%2e%2e", "ünknown 🎉"])
def test_an_unknown_model_is_not_found(client, name):
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(name)


# ---- errors


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("messages", {"messages": []}),
        ("messages[0].role", {"messages": [{"role": "king", "content": "a"}]}),
        ("messages[0].content", {"messages": [{"role": "user", "content": None}]}),
        ("messages[0].content[0]", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        ("temperature", {"temperature": -0.1}),
        ("temperature", {"temperature": 2.1}),
        ("top_p", {"top_p": 1.5}),
        ("n", {"n": 0}),
        ("n", {"n": 10**6}),
        ("max_tokens", {"max_tokens": -1}),
        ("max_completion_tokens", {"max_completion_tokens": 1.5}),
        ("stop", {"stop": list("abcde")}),
        ("stop", {"stop": 5}),
        ("frequency_penalty", {"frequency_penalty": 3}),
        ("presence_penalty", {"presence_penalty": -3}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
        ("top_logprobs", {"top_logprobs": 2}),
        ("logit_bias", {"logit_bias": {"5": 101}}),
        ("logit_bias", {"logit_bias": {"x": 1}}),
        ("logit_bias", {"logit_bias": {"999999999": 1}}),
        ("response_format.type", {"response_format": {"type": "xml"}}),
        ("response_format", {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}),
        ("tools[0]", {"tools": [{"type": "magic"}]}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "x"}}}]}),
        ("tool_choice", {"tools": [WEATHER], "tool_choice": "sometimes"}),
        ("tool_choice", {"tool_choice": "required"}),
        ("tool_choice", {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "b"}}}),
        ("seed", {"seed": 0.5}),
    ],
)
def test_what_is_wrong_is_named(client, model, field, options):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": model, "messages": HELLO, **options})
    assert caught.value.param.startswith(field)
    assert caught.value.type == "invalid_request_error" and caught.value.body["message"]


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("prompt", {"prompt": []}),
        ("prompt", {"prompt": [[]]}),
        ("prompt", {"prompt": [10**9]}),
        ("prompt", {"prompt": {"a": 1}}),
        ("logprobs", {"logprobs": 6}),
        ("suffix", {"suffix": "end"}),
        ("best_of", {"best_of": 3}),
        ("echo", {"prompt": [5], "echo": True}),
        ("n", {"n": 0}),
        ("n", {"prompt": ["a", "b"], "n": 2**63}),
    ],
)
def test_what_is_wrong_with_a_completion_is_named(client, base, field, options):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": base, "prompt": "a", **options})
    assert caught.value.param.startswith(field)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_prompt_longer_than_the_context_has_a_code(client, model, streamed):
    length = client.models.retrieve(model).context_length
    messages = [{"role": "user", "content": "word " * (length * 2)}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=messages, stream=streamed)
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "messages"


def test_a_model_that_is_not_there_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nothing", messages=HELLO)
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_what_the_server_does_not_have_is_not_found(client, model):
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=model, input="a")
    with pytest.raises(openai.NotFoundError):
        client.moderations.create(input="a")
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model=model, input="a")


def keyed_client(keyed: Running, key: str, **options) -> openai.OpenAI:
    options = {"max_retries": 0, "timeout": PATIENCE, **options}
    return openai.OpenAI(base_url=keyed.url + "/v1", api_key=key, **options)


def test_a_wrong_key_is_refused_and_a_right_one_is_not(keyed, model):
    with pytest.raises(openai.AuthenticationError) as caught:
        keyed_client(keyed, "wrong").models.list()
    assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        keyed_client(keyed, "wrong").chat.completions.create(model=model, messages=HELLO, stream=True)
    answer = keyed_client(keyed, keyed.keys["free"]).chat.completions.create(model=model, messages=HELLO)
    assert answer.choices


def test_too_many_requests_are_told_when_to_come_back(keyed, model):
    client = keyed_client(keyed, keyed.keys["slow"])
    options = {"model": model, "messages": HELLO, "max_tokens": 1}
    with pytest.raises(openai.RateLimitError) as caught:
        for _ in range(5):
            client.chat.completions.create(**options)
    # Two a minute: the next one is half a minute away at most.
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30
    assert caught.value.code == "rate_limit_exceeded"


def test_the_client_comes_back_by_itself(keyed, model):
    key = keyed.keys["brisk"]
    options = {"model": model, "messages": HELLO, "max_tokens": 1}
    hasty = keyed_client(keyed, key)
    with pytest.raises(openai.RateLimitError):
        for _ in range(80):
            hasty.chat.completions.create(**options)
    patient = keyed_client(keyed, key, max_retries=3)
    assert patient.chat.completions.create(**options).choices


# ---- connections


def test_every_answer_has_a_request_id(client, model):
    raw = client.chat.completions.with_raw_response.create(model=model, messages=HELLO, max_tokens=1)
    other = client.models.with_raw_response.list()
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.headers["x-request-id"] != other.headers["x-request-id"]


def test_a_stream_that_is_closed_midway_frees_the_server(server, client, base):
    server.wait_idle()
    cancelled = server.metric("strata_requests_total", outcome="cancelled")
    for _ in range(4):
        stream = client.completions.create(
            model=base, prompt="Once there was", max_tokens=400, n=16, temperature=1.5, stream=True
        )
        next(iter(stream))
        stream.close()
    server.wait_idle()
    assert server.metric("strata_requests_total", outcome="cancelled") > cancelled
    assert client.completions.create(model=base, prompt="Once there was").choices
