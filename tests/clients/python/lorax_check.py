"""PyPI's `lorax-client` or `openlora-client`, unmodified, against a running server: each check prints one line. The module and the
distribution are the arguments; tests/it/clients.rs starts the server, sets the environment, and counts the lines."""

import asyncio
import json
import importlib
import importlib.metadata
import os
import sys
import threading
import time
import traceback

import requests

MODULE, DISTRIBUTION = sys.argv[1:]
lorax = importlib.import_module(MODULE)
errors = importlib.import_module(f"{MODULE}.errors")
types = importlib.import_module(f"{MODULE}.types")

URL, KEY = os.environ["TENON_URL"], os.environ["TENON_KEY"]
QUESTION, DATE = "The capital of France is", "December 7th, 1997"


def headers(key):
    return {"Authorization": f"Bearer {key}"}


client = lorax.Client(URL, headers=headers(KEY), timeout=240)
checks = []


def check(function):
    checks.append(function)
    return function


def equal(found, expected):
    assert found == expected, f"{found!r} is not {expected!r}"


def raised(kind, call):
    try:
        call()
    except Exception as error:
        assert type(error) is kind, f"{type(error)} is not exactly {kind}: {error}"
        return str(error)
    raise AssertionError(f"nothing of {kind} was raised")


def ours(prompt, tokens, adapters=(), key=KEY):
    """Text and token ids of our own route."""
    body = {"model": "base", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "return_token_ids": True, "adapters": list(adapters)}
    choice = requests.post(f"{URL}/v1/completions", json=body, headers=headers(key)).json()["choices"][0]
    return choice["text"], choice["token_ids"]


def ids(answer):
    return [token.id for token in answer.details.tokens]


@check
def it_is_the_pinned_version():
    equal(importlib.metadata.version(DISTRIBUTION), os.environ["TENON_CLIENT_VERSION"])


@check
def generate_gives_the_text_and_tokens_of_our_own_route():
    answer = client.generate(QUESTION, max_new_tokens=8)
    equal((answer.generated_text, ids(answer)), ours(QUESTION, 8))
    equal((answer.details.finish_reason, answer.details.generated_tokens), (types.FinishReason.Length, 8))
    equal((answer.details.prompt_tokens, answer.details.seed, answer.details.prefill), (5, None, []))
    assert all(token.logprob <= 0 and not token.special for token in answer.details.tokens)
    equal(client.generate(QUESTION, max_new_tokens=8, details=False).details, None)


@check
def a_stream_says_the_same():
    whole = client.generate(QUESTION, max_new_tokens=8)
    events = list(client.generate_stream(QUESTION, max_new_tokens=8))
    equal([event.token for event in events], whole.details.tokens)
    equal([event.generated_text for event in events], [None] * 7 + [whole.generated_text])
    details = events[-1].details
    equal((details.finish_reason, details.generated_tokens, details.prompt_tokens), (types.FinishReason.Length, 8, 5))
    equal(events[0].details, None)


@check
def an_alias_is_an_adapter_id():
    for source in (None, "local"):
        answer = client.generate(DATE, adapter_id="iso-date", adapter_source=source, max_new_tokens=8)
        equal((answer.generated_text, ids(answer)), ours(DATE, 8, [{"name": "iso-date"}]))
    assert ids(answer) != ids(client.generate(DATE, max_new_tokens=8))
    text = "".join(event.token.text for event in client.generate_stream(DATE, adapter_id="iso-date", max_new_tokens=8) if not event.token.special)
    equal(text, answer.generated_text)


@check
def a_linear_merge_is_the_exact_sum():
    merged = lorax.MergedAdapters(ids=["iso-date", "all-caps"], weights=[0.5, 1.5], merge_strategy="linear", density=0.5, majority_sign_method="total")
    answer = client.generate(DATE, merged_adapters=merged, max_new_tokens=8)
    adapters = [{"name": "iso-date", "weight": 0.5}, {"name": "all-caps", "weight": 1.5}]
    equal((answer.generated_text, ids(answer)), ours(DATE, 8, adapters))
    unnamed = lorax.MergedAdapters(ids=["iso-date", "all-caps"], weights=[0.5, 1.5], density=0)
    equal(client.generate(DATE, merged_adapters=unnamed, max_new_tokens=8), answer)


@check
def other_merges_say_where_to_go():
    for strategy in ("ties", "dare_linear", "dare_ties"):
        merged = lorax.MergedAdapters(ids=["iso-date", "all-caps"], weights=[1, 1], merge_strategy=strategy, density=0.5)
        message = raised(errors.ValidationError, lambda: client.generate(DATE, merged_adapters=merged))
        assert strategy in message and "/derive" in message, message


@check
def a_seed_makes_sampling_repeatable():
    ask = lambda **more: client.generate(QUESTION, do_sample=True, temperature=1.5, max_new_tokens=16, **more)
    first = ask(seed=7)
    equal((ask(seed=7), first.details.seed), (first, 7))
    unseeded = ask()
    equal(ask(seed=unseeded.details.seed), unseeded)
    assert any(ask(seed=seed).generated_text != first.generated_text for seed in (8, 9, 10))
    assert ask(seed=7, top_k=1).generated_text == client.generate(QUESTION, max_new_tokens=16).generated_text


@check
def a_stop_sequence_ends_the_text_before_it():
    whole = client.generate(QUESTION, max_new_tokens=8).generated_text
    stop = whole.split()[1]
    answer = client.generate(QUESTION, max_new_tokens=8, stop_sequences=["nothing of it", stop])
    equal((answer.generated_text, answer.details.finish_reason), (whole[: whole.index(stop)], types.FinishReason.StopSequence))
    *events, last = client.generate_stream(QUESTION, max_new_tokens=8, stop_sequences=[stop])
    equal((last.generated_text, last.details.finish_reason), (answer.generated_text, types.FinishReason.StopSequence))


@check
def alternatives_stand_beside_the_tokens():
    answer = client.generate(QUESTION, max_new_tokens=4, return_k_alternatives=3)
    for token in answer.details.tokens:
        equal([len(token.alternative_tokens), token.alternative_tokens[0].id], [3, token.id])

    # The synchronous client cannot ask for them in a stream.
    async def stream():
        asynchronous = lorax.AsyncClient(URL, headers=headers(KEY))
        return [event.token async for event in asynchronous.generate_stream(QUESTION, max_new_tokens=4, return_k_alternatives=3)]

    equal(asyncio.run(stream()), answer.details.tokens)


@check
def the_best_of_several():
    answer = client.generate(QUESTION, do_sample=True, temperature=1.5, best_of=3, max_new_tokens=8)
    mean = lambda one: sum(token.logprob for token in one.tokens) / len(one.tokens)
    equal(len(answer.details.best_of_sequences), 2)
    assert all(mean(other) <= mean(answer.details) + 1e-4 for other in answer.details.best_of_sequences)


@check
def the_rest_of_the_fields():
    whole = client.generate(QUESTION, max_new_tokens=4, ignore_eos_token=True)
    equal(client.generate(QUESTION, max_new_tokens=4, return_full_text=True).generated_text, QUESTION + whole.generated_text)
    *_, last = client.generate_stream(QUESTION, max_new_tokens=4, return_full_text=True)
    equal(last.generated_text, QUESTION + whole.generated_text)
    equal(client.generate(QUESTION, max_new_tokens=4, truncate=2).details.prompt_tokens, 2)
    assert ids(client.generate("one one one one", max_new_tokens=8, repetition_penalty=5.0)) != ids(client.generate("one one one one", max_new_tokens=8))


@check
def a_response_format_is_kept_to():
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "yz"]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_object", "schema": schema}
    told = client.generate(QUESTION, response_format=form, max_new_tokens=60).generated_text
    assert json.loads(told)["a"] in ("x", "yz"), told
    *_, last = client.generate_stream(QUESTION, response_format=form, max_new_tokens=60)
    equal(last.generated_text, told)
    raised(errors.ValidationError, lambda: client.generate(QUESTION, response_format={"type": "json_object", "schema": {"type": "x"}}))


@check
def what_is_not_served_is_a_validation_error():
    for field, value in {"typical_p": 0.5, "watermark": True, "decoder_input_details": True, "adapter_source": "pbase"}.items():
        message = raised(errors.ValidationError, lambda: client.generate(QUESTION, adapter_id="iso-date", **{field: value}))
        assert field in message, message
    message = raised(errors.ValidationError, lambda: list(client.generate_stream(QUESTION, typical_p=0.5)))
    assert "typical_p" in message, message
    raised(errors.ValidationError, lambda: client.generate(QUESTION, max_new_tokens=0))


@check
def an_adapter_that_is_not_there_is_a_not_found_error():
    for ask in (client.generate, lambda *args, **more: list(client.generate_stream(*args, **more))):
        assert "nobodys" in raised(errors.NotFoundError, lambda: ask(QUESTION, adapter_id="nobodys"))


@check
def a_source_that_the_host_does_not_ask_is_a_validation_error():
    for more in ({"adapter_id": "acme/adapter"}, {"adapter_id": "acme/adapter", "adapter_source": "hub", "api_token": "hf_x"}, {"adapter_id": "bucket/x", "adapter_source": "s3"}):
        message = raised(errors.ValidationError, lambda: client.generate(QUESTION, **more))
        assert "not asked" in message and "hf_x" not in message, message


@check
def who_calls_matters():
    stranger = lambda key: lorax.Client(URL, headers=headers(key) if key else None, timeout=60)
    for key in (None, "tk_wrong"):
        assert "401" in raised(errors.UnknownError, lambda: stranger(key).generate(QUESTION))
    # What the clients make of 403.
    raised(errors.ShardNotReadyError, lambda: stranger(os.environ["TENON_KEY_WITHOUT_INVOKE"]).generate(QUESTION))


@check
def the_asynchronous_client_says_the_same():
    async def both():
        asynchronous = lorax.AsyncClient(URL, headers=headers(KEY))
        whole = await asynchronous.generate(DATE, adapter_id="iso-date", max_new_tokens=8)
        events = [event async for event in asynchronous.generate_stream(DATE, adapter_id="iso-date", max_new_tokens=8)]
        return whole, events

    whole, events = asyncio.run(both())
    equal(whole, client.generate(DATE, adapter_id="iso-date", max_new_tokens=8))
    equal(whole.details.finish_reason, types.FinishReason.EndOfSequenceToken)
    # A special token stands for the end that the model made.
    equal([event.token for event in events if not event.token.special], whole.details.tokens)
    equal((events[-1].token.special, events[-1].token.text, events[-1].generated_text), (True, "", whole.generated_text))
    equal(events[-1].details.finish_reason, types.FinishReason.EndOfSequenceToken)


@check
def many_asynchronous_streams_at_once():
    async def all_of_them():
        asynchronous = lorax.AsyncClient(URL, headers=headers(KEY))

        async def one(adapter):
            return [event async for event in asynchronous.generate_stream(DATE, adapter_id=adapter, max_new_tokens=8)][-1].generated_text

        return await asyncio.gather(*(one(adapter) for adapter in [None, "iso-date", "all-caps"] * 3))

    texts = asyncio.run(all_of_them())
    equal(texts, [client.generate(DATE, adapter_id=adapter, max_new_tokens=8).generated_text for adapter in [None, "iso-date", "all-caps"]] * 3)


@check
def an_asynchronous_refusal_is_the_same_error():
    async def ask():
        return await lorax.AsyncClient(URL, headers=headers(KEY)).generate(QUESTION, adapter_id="nobodys")

    raised(errors.NotFoundError, lambda: asyncio.run(ask()))


def waiting_requests():
    text = requests.get(os.environ["TENON_BUSY_URL"] + "/metrics").text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("vllm:num_requests_waiting"))


@check
def a_full_queue_is_an_overloaded_error():
    """One request runs and holds the memory, one waits and holds the queue; the third is refused."""
    busy = lorax.Client(os.environ["TENON_BUSY_URL"], headers=headers(os.environ["TENON_BUSY_KEY"]), timeout=240)
    fill = lambda word: busy.generate_stream(word * 800, max_new_tokens=200, ignore_eos_token=True)
    first = fill("one ")
    next(first)
    waiting = threading.Thread(target=lambda: list(fill("two ")))
    waiting.start()
    deadline = time.monotonic() + 20
    while waiting_requests() == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    raised(errors.OverloadedError, lambda: busy.generate("a", max_new_tokens=1))
    # The client has no way to hang up but to forget it.
    busy.session.close()
    first.close()
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
