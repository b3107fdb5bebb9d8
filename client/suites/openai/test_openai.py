"""The `openai` package, unmodified: chat, streams, embeddings, models, errors."""

import base64
import struct

import openai
import pytest

MODEL = "nearring/sample"
QUESTION = "What do you call an error that vanishes as soon as you try to look at it with a debugger?"
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]}


def test_chat(client):
    answer = client.chat.completions.create(**ASKED)
    assert answer.object == "chat.completion" and answer.model == MODEL and answer.id.startswith("chatcmpl-")
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].finish_reason == "stop"
    assert "[1]" in answer.choices[0].message.content
    cited = [p["document"] for p in answer.nearring["passages"] if p["number"] in answer.nearring["cited"]]
    assert "heisenbug" in cited
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


def test_chat_takes_a_conversation_and_parts(client):
    messages = [
        {"role": "system", "content": "Answer in short."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Ask away."},
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
    ]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=200, top_p=1, stop=["\n\n\n"], user="u", seed=7, n=1
    )
    assert answer.nearring["passages"][0]["number"] == 1 and answer.nearring["answered"]


def test_chat_with_the_fields_of_nearring(client):
    chosen = {"passages": 2, "filter": {"equals": {"path": "document", "value": "heisenbug"}}}
    answer = client.chat.completions.create(**ASKED, extra_body={"nearring": chosen})
    assert {p["document"] for p in answer.nearring["passages"]} == {"heisenbug"}


def test_raw_and_parsed_answers_agree(client):
    raw = client.chat.completions.with_raw_response.create(**ASKED)
    assert raw.status_code == 200 and raw.parse().choices[0].message.content


def test_stream(client):
    whole = client.chat.completions.create(**ASKED)
    chunks = list(client.chat.completions.create(**ASKED, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].nearring["passages"] == whole.nearring["passages"]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    cited = {n for chunk in chunks for n in (getattr(chunk, "nearring", None) or {}).get("citations", [])}
    assert sorted(cited) == whole.nearring["cited"]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_with_usage(client):
    whole = client.chat.completions.create(**ASKED)
    chunks = list(client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_stream_helper(client):
    with client.chat.completions.stream(**ASKED) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert any(event.type == "content.delta" for event in events)
    assert "[1]" in final.choices[0].message.content


def test_a_stream_may_be_left(client):
    stream = client.chat.completions.create(**ASKED, stream=True)
    next(iter(stream))
    stream.close()
    assert client.chat.completions.create(**ASKED).choices


@pytest.mark.anyio
async def test_async_chat_and_stream(url):
    async with openai.AsyncOpenAI(base_url=url, api_key="sk-any") as client:
        whole = await client.chat.completions.create(**ASKED)
        stream = await client.chat.completions.create(**ASKED, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == whole.choices[0].message.content


@pytest.fixture
def anyio_backend():
    return "asyncio"


def embed(client, input, **more):
    return [one.embedding for one in client.embeddings.create(model="static256", input=input, **more).data]


def test_embeddings_in_both_encodings(client):
    floats = embed(client, ["hello world", "ants"], encoding_format="float")
    assert [len(vector) for vector in floats] == [256, 256]
    assert sum(x * x for x in floats[0]) == pytest.approx(1, abs=1e-5)
    # The client asks for base64 by itself, and undoes it.
    assert embed(client, ["hello world", "ants"])[0] == pytest.approx(floats[0], abs=1e-7)
    raw = client.embeddings.create(model="static256", input="ants", encoding_format="base64").data[0].embedding
    assert struct.unpack("<256f", base64.b64decode(raw)) == pytest.approx(floats[1], abs=1e-7)


def test_embeddings_of_tokens(client):
    import tiktoken

    texts = ["hello world", "Ameisen leben in Völkern. 😀", "x = [1, 2]"]
    encoding = tiktoken.get_encoding("cl100k_base")
    tokens = [encoding.encode(text) for text in texts]
    expected = embed(client, texts)
    assert embed(client, tokens) == expected
    assert embed(client, tokens[0]) == expected[:1]
    usage = client.embeddings.create(model="static256", input=texts).usage
    assert usage.prompt_tokens == usage.total_tokens == sum(map(len, tokens))


def test_embeddings_dimensions(client):
    assert embed(client, "ants", dimensions=256) == embed(client, "ants")
    with pytest.raises(openai.BadRequestError) as error:
        embed(client, "ants", dimensions=64)
    assert error.value.param == "dimensions" and error.value.code == "unsupported_parameter"


def test_models(client):
    ids = [model.id for model in client.models.list()]
    assert MODEL in ids and "static256" in ids
    for id in [MODEL, "static256"]:
        assert client.models.retrieve(id).id == id


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.models.retrieve("gpt-4o"),
        lambda c: c.models.retrieve("nearring/none"),
        lambda c: c.chat.completions.create(**{**ASKED, "model": "nearring/none"}),
        lambda c: c.chat.completions.create(**{**ASKED, "model": "gpt-4o"}, stream=True),
        lambda c: c.embeddings.create(model="text-embedding-3-small", input="x"),
    ],
)
def test_unknown_models(client, call):
    with pytest.raises(openai.NotFoundError) as error:
        call(client)
    assert error.value.code == "model_not_found" and error.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 2}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tools"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages[0].content[0]"),
    ],
)
def test_bad_requests(client, more, param):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**{**ASKED, **more})
    assert error.value.param == param


def test_bad_embeddings(client):
    for input in [[], [""], "\u200b", [[100256]]]:
        with pytest.raises(openai.BadRequestError) as error:
            embed(client, input)
        assert error.value.param.startswith("input"), input


def test_a_model_server_writes_the_answer(generated, model_server):
    model_server.script("500", "429")
    answer = generated.chat.completions.create(**ASKED, temperature=0.5)
    assert answer.choices[0].message.content == "It is called a heisenbug [1]."
    assert answer.nearring["cited"] == [1] and answer.nearring["generator"] == "scribe"
    assert [request["temperature"] for request in model_server.requests] == [0.5] * 3
    text = "".join(c.choices[0].delta.content or "" for c in generated.chat.completions.create(**ASKED, stream=True))
    assert text == "It is called a heisenbug [1]."


@pytest.mark.parametrize(
    ("faults", "error_class", "code"),
    [
        (["429"] * 4, openai.RateLimitError, "rate_limit_exceeded"),
        (["500"] * 4, openai.InternalServerError, "unavailable"),
        (["401"], openai.InternalServerError, "unavailable"),
        (["garbage"], openai.InternalServerError, "unavailable"),
        (["cut"], openai.InternalServerError, "unavailable"),
        (["slow"] * 4, openai.InternalServerError, "deadline_exceeded"),
    ],
)
def test_a_model_server_that_fails_is_a_typed_error(generated, model_server, faults, error_class, code):
    model_server.script(*faults)
    with pytest.raises(error_class) as error:
        generated.chat.completions.create(**ASKED)
    assert error.value.code == code and "s3cret" not in str(error.value)
    model_server.script(*faults)
    chunks = []
    with pytest.raises(openai.APIError) as error:
        for chunk in generated.chat.completions.create(**ASKED, stream=True):
            chunks.append(chunk)
    assert error.value.code == code and "s3cret" not in str(error.value)
    assert chunks[0].nearring["passages"], "the passages were there before it failed"
    assert ("".join(c.choices[0].delta.content or "" for c in chunks) != "") == (faults == ["cut"])
    model_server.script()
    assert generated.chat.completions.create(**ASKED).choices
