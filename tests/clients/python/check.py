"""PyPI's `openai`, unmodified, against a running server: each check prints one line. tests/it/clients.rs starts the server,
sets the environment, and counts the lines."""

import asyncio
import json
import os
import sys
import threading
import time
import traceback
import typing
import urllib.request

import openai
import pydantic

URL, KEY = os.environ["TENON_URL"] + "/v1", os.environ["TENON_KEY"]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
DATE = [{"role": "system", "content": "ISO date."}, {"role": "user", "content": "December 7th, 1997"}]

client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0, timeout=240)
checks = []


def check(function):
    checks.append(function)
    return function


def chat(messages=QUESTION, model="base", **more):
    return client.chat.completions.create(**{"model": model, "messages": messages, "max_tokens": 16, "temperature": 0} | more)


def raised(kind, call):
    try:
        call()
    except kind as error:
        assert type(error) is kind, f"{type(error)} is not exactly {kind}"
        return error
    raise AssertionError(f"nothing of {kind} was raised")


def equal(found, expected):
    assert found == expected, f"{found!r} is not {expected!r}"


@check
def it_is_the_pinned_version():
    equal(openai.__version__, os.environ["TENON_CLIENT_VERSION"])


@check
def chat_answers_with_usage_and_a_request_id():
    answer = chat()
    equal(answer.choices[0].message.content, ANSWER)
    equal((answer.object, answer.model, answer.choices[0].finish_reason), ("chat.completion", "base", "stop"))
    equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)
    assert answer._request_id.startswith("req_")


@check
def a_streamed_chat_says_the_same():
    chunks = list(chat(stream=True))
    equal(chunks[0].choices[0].delta.role, "assistant")
    equal("".join(chunk.choices[0].delta.content or "" for chunk in chunks), ANSWER)
    equal(chunks[-1].choices[0].finish_reason, "stop")
    assert all(chunk.usage is None for chunk in chunks)


@check
def the_usage_chunk_comes_last_when_asked_for():
    *chunks, last = chat(stream=True, stream_options={"include_usage": True})
    equal((last.choices, last.usage.prompt_tokens), ([], chat().usage.prompt_tokens))
    assert chunks[-1].choices[0].finish_reason == "stop"


@check
def completions_whole_and_streamed():
    ask = lambda **more: client.completions.create(model="base", prompt="The capital of France is", max_tokens=8, temperature=0, **more)
    whole = ask()
    equal((whole.object, whole.choices[0].finish_reason), ("text_completion", "length"))
    equal("".join(chunk.choices[0].text for chunk in ask(stream=True)), whole.choices[0].text)


@check
def a_stop_string_ends_the_text_before_it():
    for stop in ("Par", ["nothing", "Par"]):
        answer = chat(stop=stop)
        equal((answer.choices[0].message.content, answer.choices[0].finish_reason), ("The capital of France is ", "stop"))
    equal("".join(chunk.choices[0].delta.content or "" for chunk in chat(stop="Par", stream=True)), "The capital of France is ")


@check
def a_seed_makes_sampling_repeatable():
    ask = lambda seed: chat(temperature=1.5, seed=seed, max_completion_tokens=24).choices[0].message.content
    first = ask(7)
    equal(ask(7), first)
    assert any(ask(seed) != first for seed in (8, 9, 10)), "another seed never changed anything"


@check
def log_probabilities_of_chats():
    tokens = chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
    equal("".join(token.token for token in tokens[:3]), "The capital of")
    for token in tokens:
        equal((len(token.top_logprobs), token.top_logprobs[0].logprob), (3, token.logprob))


@check
def log_probabilities_of_completions():
    answer = client.completions.create(model="base", prompt="The capital of France is", max_tokens=4, temperature=0, logprobs=2)
    found = answer.choices[0].logprobs
    equal([len(found.tokens), len(found.token_logprobs), len(found.top_logprobs), len(found.text_offset)], [4, 4, 4, 4])
    equal("".join(found.tokens), answer.choices[0].text)


@check
def several_choices_whole_and_streamed():
    whole = chat(n=3, temperature=1.5, seed=3)
    equal([choice.index for choice in whole.choices], [0, 1, 2])
    texts = [choice.message.content for choice in whole.choices]
    assert len(set(texts)) > 1, texts
    equal(whole.usage.prompt_tokens, chat().usage.prompt_tokens)
    streamed = ["", "", ""]
    for chunk in chat(n=3, temperature=1.5, seed=3, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    equal(streamed, texts)


@check
def several_prompts_of_one_completion():
    prompts = ["The capital of France is", "The capital of Italy is"]
    ask = lambda prompt: client.completions.create(model="base", prompt=prompt, max_tokens=4, temperature=0).choices
    equal([choice.text for choice in ask(prompts)], [ask(prompt)[0].text for prompt in prompts])


@check
def biases_and_penalties_change_the_answer():
    ids = lambda **more: client.completions.create(
        model="base", prompt="one one one one", max_tokens=8, temperature=0, extra_body={"return_token_ids": True}, **more
    ).choices[0].model_extra["token_ids"]
    plain = ids()
    banned = ids(logit_bias={str(plain[0]): -100})
    assert plain[0] not in banned, banned
    assert ids(frequency_penalty=2, presence_penalty=2) != plain


@check
def an_answer_keeps_to_a_schema():
    class City(pydantic.BaseModel):
        name: typing.Literal["Paris", "Lyon"]
        people: int = pydantic.Field(ge=0, le=9999)
        is_capital: bool

    told = client.chat.completions.parse(model="base", messages=QUESTION, response_format=City, max_tokens=200).choices[0]
    equal(told.finish_reason, "stop")
    assert told.message.parsed.name in ("Paris", "Lyon") and 0 <= told.message.parsed.people <= 9999, told
    text = chat(response_format={"type": "json_object"}, max_tokens=200)
    if text.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text.choices[0].message.content), dict), text
    wrong = {"type": "json_schema", "json_schema": {"name": "wrong", "schema": {"type": "array", "uniqueItems": True}}}
    equal(raised(openai.BadRequestError, lambda: chat(response_format=wrong)).code, "invalid_constraint")
    equal(chat(extra_body={"guided_choice": ["yes", "no"]}).choices[0].message.content in ("yes", "no"), True)


@check
def tools_are_refused_by_a_base_that_has_no_place_for_them():
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
    equal(raised(openai.BadRequestError, lambda: chat(tools=tools)).code, "unsupported")
    equal(chat(tools=tools, tool_choice="none").choices[0].message.content, ANSWER)


@check
def models_are_listed_and_retrieved():
    found = {model.id: model.owned_by for model in client.models.list()}
    equal([found.get(name) for name in ("base", "iso-date", "skills")], ["tenon", "adapter", "function"])
    equal(client.models.retrieve("iso-date").object, "model")


@check
def an_adapters_alias_is_a_model():
    equal(chat(DATE, "iso-date").choices[0].message.content, "1997-12-07")


@check
def extra_body_composes_adapters():
    answer = chat(DATE, extra_body={"adapters": [{"name": "iso-date", "weight": 1}]})
    equal(answer.choices[0].message.content, "1997-12-07")
    equal([one["name"] for one in answer.model_extra["adapters"]], ["iso-date"])
    assert chat(DATE).choices[0].message.content != "1997-12-07"


@check
def a_function_is_a_model():
    equal(chat(DATE[1:], "skills").choices[0].message.content, "1997-12-07")
    equal("".join(chunk.choices[0].delta.content or "" for chunk in chat(DATE[1:], "skills", stream=True)), "1997-12-07")


@check
def closing_a_stream_cancels_the_request():
    stream = chat(stream=True, max_tokens=1000, extra_body={"ignore_eos": True})
    next(iter(stream))
    receipt = stream.response.headers["x-tenon-receipt"]
    stream.close()
    kind, deadline = None, time.monotonic() + 20
    while kind != "cancelled" and time.monotonic() < deadline:
        time.sleep(0.05)
        kind = client.get(f"/receipts/{receipt}", cast_to=object)["kind"]
    equal(kind, "cancelled")


@check
def many_asynchronous_streams_at_once():
    async def all_of_them():
        asynchronous = openai.AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0, timeout=240)

        async def one():
            stream = await asynchronous.chat.completions.create(model="base", messages=QUESTION, max_tokens=16, temperature=0, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        async with asynchronous:
            return await asyncio.gather(*(one() for _ in range(6)))

    equal(set(asyncio.run(all_of_them())), {ANSWER})


@check
def no_key_is_an_authentication_error():
    error = raised(openai.AuthenticationError, lambda: client.with_options(api_key="tk_wrong").models.list())
    equal((error.status_code, error.code, error.type), (401, "unauthorized", "authentication_error"))


@check
def a_missing_right_is_a_permission_error():
    other = client.with_options(api_key=os.environ["TENON_KEY_WITHOUT_INVOKE"])
    equal(raised(openai.PermissionDeniedError, lambda: other.models.list()).code, "forbidden")


@check
def an_unknown_model_is_a_not_found_error():
    error = raised(openai.NotFoundError, lambda: chat(model="nobody"))
    equal((error.code, error.param), ("model_not_found", "model"))
    assert error.request_id.startswith("req_")
    raised(openai.NotFoundError, lambda: client.models.retrieve("nobody"))


@check
def a_senseless_field_is_a_bad_request_error():
    error = raised(openai.BadRequestError, lambda: chat(temperature=-1))
    equal((error.status_code, error.param, error.type), (400, "temperature", "invalid_request_error"))
    raised(openai.BadRequestError, lambda: chat(messages=[]))


@check
def what_is_there_already_is_a_conflict_error():
    tenant = {"name": "clients-python"}
    ask = lambda: client.post("/tenants", body=tenant, cast_to=object)
    ask()
    equal(raised(openai.ConflictError, ask).code, "tenant_exists")


@check
def a_plugins_refusal_is_an_unprocessable_entity_error():
    ask = lambda **more: chat([{"role": "user", "content": "reject"}], "clients-bad-plan", **more)
    error = raised(openai.UnprocessableEntityError, ask)
    assert error.code.startswith("rejected") and "say please" in error.message, error.body
    raised(openai.UnprocessableEntityError, lambda: ask(stream=True))


@check
def a_function_that_fails_is_an_internal_server_error():
    error = raised(openai.InternalServerError, lambda: chat([{"role": "user", "content": "panic"}], "clients-trap"))
    equal((error.status_code, error.code), (502, "plugin_trap"))


@check
def an_error_in_mid_stream_is_an_api_error():
    stream = chat([{"role": "user", "content": "chunk"}], "clients-trap", stream=True)
    error = raised(openai.APIError, lambda: list(stream))
    equal(error.code, "plugin_trap")


@check
def a_client_that_does_not_wait_times_out():
    slow = client.with_options(timeout=0.3)
    raised(openai.APITimeoutError, lambda: slow.completions.create(model="base", prompt="a", max_tokens=1000, extra_body={"ignore_eos": True}))


def waiting_requests():
    text = urllib.request.urlopen(os.environ["TENON_BUSY_URL"] + "/metrics").read().decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("vllm:num_requests_waiting"))


@check
def a_full_queue_is_a_rate_limit_error_and_the_client_waits_as_told():
    """One request runs and holds the memory, one waits and holds the queue; the third is refused until they leave."""
    busy = openai.OpenAI(base_url=os.environ["TENON_BUSY_URL"] + "/v1", api_key=os.environ["TENON_BUSY_KEY"], max_retries=0, timeout=240)

    def fill(token):
        return busy.completions.create(model="base", prompt=[token] * 800, max_tokens=200, stream=True, extra_body={"ignore_eos": True})

    small = lambda who: who.completions.create(model="base", prompt="a", max_tokens=1)
    first = fill(1000)
    next(iter(first))
    waiting = threading.Thread(target=lambda: list(fill(2000)))
    waiting.start()
    deadline = time.monotonic() + 20
    while waiting_requests() == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    error = raised(openai.RateLimitError, lambda: small(busy))
    equal((error.code, error.type, error.response.headers["retry-after"]), ("queue_full", "rate_limit_error", "1"))

    asked = []
    patient = busy.with_options(max_retries=20)
    patient._client.event_hooks["request"].append(lambda request: asked.append(time.monotonic()))
    threading.Timer(1.5, first.close).start()
    equal(len(small(patient).choices), 1)
    waits = [after - before for before, after in zip(asked, asked[1:])]
    # Left to itself the client would come back within half a second.
    assert waits and waits[0] > 0.9, f"the client waited {waits} s"
    waiting.join()


failed = 0
for function in checks:
    try:
        function()
        print(f"ok {function.__name__}", flush=True)
    except Exception:
        failed += 1
        print(f"FAILED {function.__name__}", flush=True)
        traceback.print_exc()
sys.exit(failed != 0)
