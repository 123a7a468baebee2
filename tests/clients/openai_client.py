"""Runs the official `openai` client over every endpoint and field of `lathe serve`.

    openai_client.py OPEN STRICT

OPEN is the address of a server of SmolLM2 called `smol` with `--api-key secret --policy deadline --metrics-compat vllm`;
STRICT that of one with `--strict-fields --policy priority --max-running 1 --max-waiting 3`. Every check judges an answer
by other answers or by what the fields mean, never by a recorded text. Prints what failed and ends with 1, or prints a
count and ends with 0.
"""

import asyncio
import json
import sys
import threading
import traceback
import urllib.error
import urllib.request

import openai

PROMPT = "The little robot walked through the door and"
TELL = [{"role": "user", "content": "Name three colours."}]
MOST_TOP = 20

OPEN, STRICT = sys.argv[1:]
client = openai.OpenAI(base_url=f"{OPEN}/v1", api_key="secret", max_retries=0)
strict = openai.OpenAI(base_url=f"{STRICT}/v1", api_key="any", max_retries=0)
CHECKS = []


def check(function):
    """Registers a check, which is run in the order of the file."""
    CHECKS.append(function)
    return function


def complete(prompt=PROMPT, on=client, **fields):
    """A completion, greedy unless said otherwise; fields that the client does not know go into the body as they are."""
    own = {"model": "smol", "prompt": prompt, "max_tokens": 12, "temperature": 0}
    extra = {"top_k", "min_p", "min_tokens", "ignore_eos", "repetition_penalty", "cache_salt", "priority"}
    extra |= {"include_stop_str_in_output", "stop_token_ids"}
    body = {name: fields.pop(name) for name in extra & fields.keys()}
    return on.completions.create(**{**own, **fields}, extra_body=body)


def chat(on=client, **fields):
    own = {"model": "smol", "messages": TELL, "max_completion_tokens": 12, "temperature": 0}
    return on.chat.completions.create(**{**own, **fields})


def text(**fields):
    return complete(**fields).choices[0].text


def http(path, body=None, root=OPEN, key="secret"):
    """Status and JSON, or text, of a path outside the client's interface."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(root + path, data=data, headers={"authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request) as answer:
            status, content = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read().decode()
    return status, json.loads(content) if content.startswith("{") else content


def tokenize(prompt):
    return http("/tokenize", {"prompt": prompt})[1]["tokens"]


def detokenize(tokens):
    return http("/detokenize", {"tokens": tokens})[1]["prompt"]


def equal(found, expected):
    assert found == expected, f"\n  found    {found!r}\n  expected {expected!r}"


def raises(kind, param, act, **also):
    """The error of an action, which must be of a kind and name a field."""
    try:
        act()
    except kind as error:
        body = error.body
        assert isinstance(body, dict) and body["message"] and body["type"], f"no error object: {body}"
        equal(body["param"], param)
        for name, value in also.items():
            equal(body[name], value)
        return error
    raise AssertionError(f"expected {kind.__name__} about {param}, and got an answer")


def metric(name, root=OPEN):
    """The sum of a counter over its labels."""
    lines = http("/metrics", root=root)[1].splitlines()
    values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{")]
    assert values, f"/metrics has no {name}"
    return sum(values)


# Answers whole and streamed


@check
def models_are_listed_and_found_by_name():
    equal([model.id for model in client.models.list()], ["smol"])
    assert client.models.retrieve("smol").owned_by
    raises(openai.NotFoundError, "model", lambda: client.models.retrieve("other"), code="model_not_found")


@check
def a_chat_is_answered():
    answer = chat()
    [choice] = answer.choices
    equal((answer.object, answer.model, choice.index, choice.message.role), ("chat.completion", "smol", 0, "assistant"))
    assert choice.message.content.strip() and choice.message.refusal is None
    assert answer.id.startswith("chatcmpl-") and answer.created > 1_700_000_000
    usage = answer.usage
    equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
    assert usage.prompt_tokens > 10 and 0 < usage.completion_tokens <= 12
    assert usage.prompt_tokens_details.cached_tokens >= 0
    timings = answer.model_extra["timings"]
    equal((timings["prompt_n"], timings["predicted_n"]), (usage.prompt_tokens, usage.completion_tokens))
    assert timings["prompt_ms"] > 0 and timings["predicted_ms"] > 0


@check
def roles_parts_and_old_names_of_fields_are_understood():
    whole = chat().choices[0].message.content
    parts = [{"type": "text", "text": "Name three"}, {"type": "text", "text": " colours."}]
    equal(chat(messages=[{"role": "user", "content": parts}]).choices[0].message.content, whole)
    equal(chat(max_completion_tokens=openai.omit, max_tokens=12).choices[0].message.content, whole)
    system = chat(messages=[{"role": "system", "content": "Answer in French."}, *TELL])
    assert system.usage.prompt_tokens != chat().usage.prompt_tokens
    history = [*TELL, {"role": "assistant", "content": "Red."}, {"role": "user", "content": "Two more."}]
    assert chat(messages=history).choices[0].message.content


@check
def a_stream_of_a_chat_says_what_the_whole_says():
    whole = chat(max_completion_tokens=24)
    chunks = list(chat(max_completion_tokens=24, stream=True, stream_options={"include_usage": True}))
    *body, last = chunks
    # What was cached and guessed depends on what the server did before and on how long its steps take.
    details = {"prompt_tokens_details", "completion_tokens_details"}
    equal((last.choices, last.usage.model_dump(exclude=details)), ([], whole.usage.model_dump(exclude=details)))
    assert last.usage.completion_tokens_details.rejected_prediction_tokens >= 0
    assert all(chunk.usage is None for chunk in body) and len({chunk.id for chunk in chunks}) == 1
    equal({chunk.object for chunk in chunks}, {"chat.completion.chunk"})
    equal(body[0].choices[0].delta.role, "assistant")
    equal("".join(chunk.choices[0].delta.content or "" for chunk in body), whole.choices[0].message.content)
    equal([c.choices[0].finish_reason for c in body if c.choices[0].finish_reason], [whole.choices[0].finish_reason])
    # One chunk for each token, and one that ends the choice.
    equal(len([chunk for chunk in body if not chunk.choices[0].finish_reason]), whole.usage.completion_tokens)


@check
def usage_comes_only_where_it_is_asked_for_and_on_demand_with_each_chunk():
    assert all(chunk.usage is None and chunk.choices for chunk in complete(stream=True))
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(complete(stream=True, max_tokens=6, ignore_eos=True, stream_options=options))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    equal(sorted(set(counts)), [1, 2, 3, 4, 5, 6])
    equal(counts, sorted(counts))
    prompt = complete().usage.prompt_tokens
    equal(
        {(chunk.usage.prompt_tokens, chunk.usage.total_tokens - chunk.usage.completion_tokens) for chunk in chunks},
        {(prompt, prompt)},
    )
    equal(chunks[-1].choices, [])


@check
def a_stream_of_a_completion_says_what_the_whole_says():
    fields = {"logprobs": 3, "echo": True, "n": 2, "temperature": 0.8, "seed": 5}
    whole = complete(**fields)
    streamed = {0: ("", [], []), 1: ("", [], [])}
    for chunk in complete(**fields, stream=True):
        for choice in chunk.choices:
            said, tokens, logprobs = streamed[choice.index]
            got = choice.logprobs
            more = (got.tokens, got.token_logprobs) if got else ([], [])
            streamed[choice.index] = (said + choice.text, tokens + more[0], logprobs + more[1])
    for choice in whole.choices:
        equal(streamed[choice.index], (choice.text, choice.logprobs.tokens, choice.logprobs.token_logprobs))


@check
def the_helpers_of_the_client_work():
    [eos] = tokenize(http("/tokenizer_info")[1]["eos_token"])
    fields = {"logit_bias": {str(eos): 100}, "extra_body": {"min_tokens": 8}, "temperature": 0, "max_tokens": 12}
    with client.chat.completions.stream(model="smol", messages=TELL, **fields) as stream:
        final = stream.until_done().get_final_completion()
    equal(
        (final.choices[0].message.content, final.choices[0].finish_reason),
        (chat(max_completion_tokens=8).choices[0].message.content, "stop"),
    )


@check
def many_at_once_get_what_each_gets_alone():
    prompts = [f"Chapter {number}. It was" for number in range(12)]
    fields = {"model": "smol", "max_tokens": 16, "logprobs": 2, "temperature": 1.0}
    alone = [client.completions.create(prompt=prompt, seed=7, **fields).choices for prompt in prompts]

    async def together():
        async with openai.AsyncOpenAI(base_url=f"{OPEN}/v1", api_key="secret", max_retries=0) as many:
            answers = [many.completions.create(prompt=prompt, seed=7, **fields) for prompt in prompts]
            return [answer.choices for answer in await asyncio.gather(*answers)]

    equal(asyncio.run(together()), alone)


# How many, how long, and where it ends


@check
def several_choices_differ_and_come_again_with_their_seed():
    answer = complete(n=4, temperature=1.0, seed=3)
    texts = [choice.text for choice in answer.choices]
    equal([choice.index for choice in answer.choices], [0, 1, 2, 3])
    assert len(set(texts)) > 1, texts
    equal([choice.text for choice in complete(n=4, temperature=1.0, seed=3).choices], texts)
    assert [choice.text for choice in complete(n=4, temperature=1.0, seed=4).choices] != texts
    equal(answer.usage.completion_tokens, 4 * 12)
    equal(len(chat(n=3, temperature=1.0).choices), 3)


@check
def the_best_of_several_is_the_one_of_highest_mean_logprob():
    fields = {"temperature": 1.0, "seed": 11, "logprobs": 0, "ignore_eos": True}
    each = complete(n=5, **fields).choices
    best = max(each, key=lambda choice: sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs))
    answer = complete(n=1, best_of=5, **fields)
    equal([choice.text for choice in answer.choices], [best.text])
    equal(answer.usage.completion_tokens, 5 * 12)
    raises(openai.BadRequestError, "best_of", lambda: complete(n=3, best_of=2))
    raises(openai.BadRequestError, "best_of", lambda: complete(n=1, best_of=2, stream=True))


@check
def stop_strings_end_an_answer_before_them():
    whole = text(max_tokens=24, ignore_eos=True)
    middle = whole[len(whole) // 2 :][:5]
    before = whole[: whole.index(middle)]
    for stop in (middle, [middle], ["never said", middle]):
        choice = complete(max_tokens=24, ignore_eos=True, stop=stop).choices[0]
        equal((choice.text, choice.finish_reason), (before, "stop"))
    equal(text(max_tokens=24, ignore_eos=True, stop=middle, include_stop_str_in_output=True), before + middle)
    streamed = complete(max_tokens=24, ignore_eos=True, stop=middle, stream=True)
    equal("".join(chunk.choices[0].text for chunk in streamed), before)
    raises(openai.BadRequestError, "stop", lambda: complete(stop=[""]))
    raises(openai.BadRequestError, "stop", lambda: complete(stop=["x"] * 1000))


@check
def lengths_are_kept():
    equal(complete(max_tokens=openai.omit, ignore_eos=True).usage.completion_tokens, 16)
    for most in (1, 7):
        answer = complete(max_tokens=most, ignore_eos=True)
        equal((answer.usage.completion_tokens, answer.choices[0].finish_reason), (most, "length"))
    equal(chat(max_completion_tokens=3, max_tokens=9).usage.completion_tokens, 3)
    nothing = complete(max_tokens=0, echo=True)
    equal((nothing.choices[0].text, nothing.usage.completion_tokens), (PROMPT, 0))


@check
def endings_of_the_model_are_kept_held_back_or_ignored():
    [eos] = tokenize(http("/tokenizer_info")[1]["eos_token"])
    bias = {str(eos): 100}
    ended = complete(logit_bias=bias)
    equal((ended.choices[0].finish_reason, ended.choices[0].text), ("stop", ""))
    least = complete(logit_bias=bias, min_tokens=5)
    equal((least.choices[0].finish_reason, least.choices[0].text), ("stop", text(max_tokens=5)))
    equal(complete(logit_bias=bias, ignore_eos=True, max_tokens=8).usage.completion_tokens, 8)
    [comma] = tokenize(",")
    by_token = complete(logit_bias={str(comma): 100}, stop_token_ids=[comma])
    equal((by_token.choices[0].finish_reason, by_token.choices[0].text), ("stop", ""))


# What is sampled


@check
def biases_force_and_forbid_tokens():
    [banana] = tokenize(" banana")
    equal(text(logit_bias={str(banana): 100}, max_tokens=3), " banana" * 3)
    first = complete(max_tokens=1).choices[0].text
    assert text(logit_bias={str(tokenize(first)[0]): -100}, max_tokens=1) != first
    raises(openai.BadRequestError, "logit_bias", lambda: complete(logit_bias={str(banana): 101}))
    raises(openai.BadRequestError, "logit_bias", lambda: complete(logit_bias={"99999999": 1}))


@check
def limits_that_leave_one_token_are_greedy():
    greedy = text()
    for limit in ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-9}):
        equal(text(temperature=2.0, seed=1, **limit), greedy)
    assert text(temperature=2.0, seed=1) != greedy
    for limit in ({"top_k": -2}, {"min_p": 1.5}, {"top_p": 0}, {"temperature": -0.1}, {"temperature": "hot"}):
        [name] = limit
        raises(openai.BadRequestError, name, lambda limit=limit: complete(**limit))


@check
def seeds_decide():
    texts = [text(temperature=1.0, seed=seed) for seed in (1, 1, 2, -9)]
    equal(texts[0], texts[1])
    equal(len(set(texts)), 3)
    chats = [chat(temperature=1.5, seed=seed).choices[0].message.content for seed in (1, 1, 2)]
    assert chats[0] == chats[1] != chats[2], chats


@check
def penalties_take_from_the_likelihood_what_they_say():
    """Each token is the likeliest after its penalty, computed here from the likelihoods without penalties."""
    for presence, frequency in ((1.5, 0), (0, 1.25), (0.5, 0.5), (-1, 0)):
        answer = chat(
            presence_penalty=presence, frequency_penalty=frequency, logprobs=True, top_logprobs=MOST_TOP,
            max_completion_tokens=24,
        )  # fmt: skip
        counts = {}
        for entry in answer.choices[0].logprobs.content:
            taken = {
                top.token: top.logprob - presence * (top.token in counts) - frequency * counts.get(top.token, 0)
                for top in entry.top_logprobs
            }
            chosen = taken[entry.token]
            assert chosen >= max(taken.values()) - 1e-4, (entry.token, taken)
            counts[entry.token] = counts.get(entry.token, 0) + 1
        assert max(counts.values()) > 1 or presence + frequency > 0
    again = tokenize(text(max_tokens=40, ignore_eos=True))
    never = tokenize(text(max_tokens=40, ignore_eos=True, repetition_penalty=10.0))
    assert len(set(again)) < len(again) and len(set(never)) == len(never), (again, never)
    for name in ("presence_penalty", "frequency_penalty"):
        raises(openai.BadRequestError, name, lambda name=name: complete(**{name: 2.5}))


# Likelihoods


@check
def logprobs_of_a_chat_belong_to_its_text():
    answer = chat(logprobs=True, top_logprobs=5, max_completion_tokens=20).choices[0]
    content = answer.logprobs.content
    equal(b"".join(bytes(entry.bytes) for entry in content).decode(), answer.message.content)
    for entry in content:
        tops = [top.logprob for top in entry.top_logprobs]
        equal((len(tops), tops), (5, sorted(tops, reverse=True)))
        equal((entry.logprob, entry.token), (tops[0], entry.top_logprobs[0].token))
        assert entry.logprob <= 0
    assert chat().choices[0].logprobs is None
    equal(
        [len(entry.top_logprobs) for entry in chat(logprobs=True, max_completion_tokens=2).choices[0].logprobs.content],
        [0, 0],
    )
    raises(openai.BadRequestError, "top_logprobs", lambda: chat(logprobs=True, top_logprobs=MOST_TOP + 1))
    raises(openai.BadRequestError, "top_logprobs", lambda: chat(top_logprobs=1))


@check
def logprobs_of_a_completion_stand_where_their_tokens_stand():
    choice = complete(logprobs=4, echo=True).choices[0]
    judged = choice.logprobs
    assert choice.text.startswith(PROMPT) and judged.token_logprobs[0] is None and judged.top_logprobs[0] is None
    for token, offset in zip(judged.tokens, judged.text_offset, strict=True):
        equal(choice.text[offset:][: len(token)], token)
    for token, logprob, top in list(zip(judged.tokens, judged.token_logprobs, judged.top_logprobs, strict=True))[1:]:
        assert 4 <= len(top) <= 5 and top[token] == logprob <= max(top.values()), (token, top)
    equal(len(judged.tokens), len(tokenize(PROMPT)) + 12)


@check
def a_text_is_as_likely_as_a_prompt_as_it_was_when_it_was_made():
    prompt = tokenize(PROMPT)
    made = complete(prompt=prompt, logprobs=1, temperature=1.0, seed=9, max_tokens=24, ignore_eos=True).choices[0]
    tokens = [tokenize(token) for token in made.logprobs.tokens]
    assert all(len(token) == 1 for token in tokens), made.logprobs.tokens
    judged = complete(prompt=prompt + [token for [token] in tokens], logprobs=1, echo=True, max_tokens=0).choices[0]
    equal(judged.logprobs.token_logprobs[len(prompt) :], made.logprobs.token_logprobs)


# Prompts


@check
def prompts_may_be_tokens_and_lists():
    others = ["One, two,", "Once upon a time", PROMPT]
    alone = [text(prompt=prompt) for prompt in others]
    equal([text(prompt=tokenize(prompt)) for prompt in others], alone)
    for batch in (others, [tokenize(prompt) for prompt in others]):
        answer = complete(prompt=batch)
        equal([(choice.index, choice.text) for choice in answer.choices], list(enumerate(alone)))
        equal(answer.usage.prompt_tokens, sum(len(tokenize(prompt)) for prompt in others))
    streamed = ["", "", ""]
    for chunk in complete(prompt=others, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    equal(streamed, alone)
    pairs = complete(prompt=others[:2], n=2, temperature=1.0, seed=2).choices
    equal([choice.index for choice in pairs], [0, 1, 2, 3])
    equal(
        [choice.text for choice in pairs[2:]],
        [c.text for c in complete(prompt=others[1], n=2, temperature=1.0, seed=2).choices],
    )
    for wrong in ([], "", [[]], [1, "a"], [-1], [99999999], 5):
        raises(openai.BadRequestError, "prompt", lambda wrong=wrong: complete(prompt=wrong))


@check
def a_prompt_is_remembered_for_those_who_share_its_salt():
    prompt = "A salt of its own. " * 12

    def cached(salt):
        return complete(prompt=prompt, cache_salt=salt).usage.prompt_tokens_details.cached_tokens

    equal(cached("one"), 0)
    assert cached("one") > 0
    equal(cached("two"), 0)
    assert text(prompt=prompt, cache_salt="one") == text(prompt=prompt, cache_salt="three")


# Errors and headers


@check
def errors_are_those_of_the_client():
    stranger = openai.OpenAI(base_url=f"{OPEN}/v1", api_key="wrong", max_retries=0)
    raises(openai.AuthenticationError, None, lambda: chat(on=stranger), code="invalid_api_key")
    raises(openai.NotFoundError, "model", lambda: complete(model="other"), code="model_not_found")
    raises(openai.BadRequestError, "messages", lambda: chat(messages=[]))
    raises(openai.BadRequestError, "n", lambda: complete(n=10**9))
    raises(openai.BadRequestError, None, lambda: complete(max_tokens=10**6), code="context_length_exceeded")
    raises(openai.BadRequestError, "tool_choice", lambda: chat(extra_body={"tool_choice": {"type": "nonsense"}}))
    raises(openai.BadRequestError, "stream_options", lambda: complete(stream=True, stream_options=[]))
    raises(openai.NotFoundError, None, lambda: client.embeddings.create(model="smol", input="x"))
    harmless = {"user": "u", "store": False, "metadata": {"a": "b"}, "service_tier": "auto", "seed": None, "stop": None}
    equal(chat(**harmless).choices[0].message.content, chat().choices[0].message.content)


@check
def requests_are_named_and_unknown_fields_too():
    named = client.completions.with_raw_response.create(
        model="smol", prompt="x", max_tokens=1, extra_headers={"x-request-id": "mine"}, extra_body={"colour": "red", "zoo": 1}
    )  # fmt: skip
    equal((named.headers["x-request-id"], named.headers["x-unknown-fields"]), ("mine", "colour, zoo"))
    equal(named.parse().choices[0].finish_reason, "length")
    assert metric("lathe_requests_with_unknown_fields_total") >= 1
    plain = client.completions.with_raw_response.create(model="smol", prompt="x", max_tokens=1, user="u")
    assert plain.headers["x-request-id"] and "x-unknown-fields" not in plain.headers
    error = raises(
        openai.BadRequestError,
        "colour",
        lambda: strict.completions.create(model="smol", prompt="x", extra_body={"colour": 1}),
    )
    assert "colour" in error.message and error.request_id
    assert complete(on=strict, user="u").choices


@check
def deadlines_are_met_or_refused():
    def header(value):
        return {"x-deadline-ms": value}

    equal(text(extra_headers=header("600000")), text())
    late = raises(
        openai.InternalServerError, None, lambda: complete(max_tokens=500, extra_headers=header("1")), code="deadline"
    )
    assert late.status_code in (503, 504)
    for wrong in ("soon", "-1", "0"):
        raises(openai.BadRequestError, None, lambda wrong=wrong: complete(extra_headers=header(wrong)))


@check
def the_more_urgent_goes_first_and_a_full_queue_says_so():
    """One answer runs at a time: while a stream runs, others wait, and the last to come is the first to run."""
    order, done = [], []
    stream = complete(on=strict, max_tokens=4000, ignore_eos=True, stream=True)
    next(iter(stream))

    def ask(name, priority):
        answer = complete(on=strict, max_tokens=4, ignore_eos=True, priority=priority)
        order.append(name)
        done.append(answer.usage.completion_tokens)

    threads = []
    for waiting, (name, priority) in enumerate([("later", 5), ("last", 9), ("first", -5)], 1):
        threads.append(threading.Thread(target=ask, args=(name, priority)))
        threads[-1].start()
        while metric("lathe_num_requests_waiting", STRICT) < waiting:
            pass
    full = raises(openai.RateLimitError, None, lambda: complete(on=strict), code="queue_full")
    assert int(full.response.headers["retry-after"]) > 0
    stream.close()
    for thread in threads:
        thread.join()
    equal((order, done), (["first", "later", "last"], [4, 4, 4]))
    raises(openai.BadRequestError, "priority", lambda: complete(priority=1000))


# Beside the client's interface


@check
def text_becomes_tokens_and_text_again():
    sample = "Grüße, 世界! 👩‍🚀 1234567\n\tif x:"
    status, answer = http("/tokenize", {"prompt": sample})
    equal((status, answer["count"], answer["max_model_len"]), (200, len(answer["tokens"]), 8192))
    equal(detokenize(answer["tokens"]), sample)
    equal(
        http("/tokenize", {"model": "smol", "prompt": "Hi", "add_special_tokens": False})[1]["tokens"], tokenize("Hi")
    )
    equal([http("/tokenize", body)[0] for body in ({}, {"prompt": 5})], [400, 400])
    equal([http("/detokenize", body)[0] for body in ({}, {"tokens": [-1]}, {"tokens": [99999999]})], [400, 400, 400])
    info = http("/tokenizer_info")[1]
    assert {"bos_token", "eos_token", "chat_template", "vocab_size"} <= info.keys()
    equal((info["eos_token"], info["vocab_size"]), ("<|im_end|>", 49152))


@check
def the_server_tells_of_itself():
    for path in ("/health", "/ready"):
        equal([http(path, key=key)[0] for key in ("secret", "wrong")], [200, 200])
    for path in ("/metrics", "/version", "/tokenizer_info", "/v1/models"):
        equal([http(path, key=key)[0] for key in ("secret", "wrong")], [200, 401])
    version = http("/version")[1]
    assert version["version"] and len(version["plan"]) == 64
    equal(http("/nothing")[0], 404)
    equal(http("/v1/completions")[0], 405)


@check
def metrics_count_what_was_delivered():
    names = ["prompt_tokens_total", "generation_tokens_total", "request_success_total"]
    names += [
        "time_to_first_token_seconds_count",
        "inter_token_latency_seconds_count",
        "e2e_request_latency_seconds_count",
    ]
    names += ["request_queue_time_seconds_count", "prefix_cache_queries_total", "prefix_cache_hits_total"]

    def read():
        return {prefix + name: metric(prefix + name) for name in names for prefix in ("lathe_", "vllm:")}

    before = read()
    usage = complete(prompt="A prompt that nobody has sent before.", max_tokens=9, ignore_eos=True).usage
    grown = {name: value - before[name] for name, value in read().items()}
    expected = [usage.prompt_tokens, 9, 1, 1, 8, 1, 1]
    for prefix in ("lathe_", "vllm:"):
        equal([grown[prefix + name] for name in names[:7]], expected)
        equal((grown[prefix + names[7]], grown[prefix + names[8]]), (usage.prompt_tokens, 0))
        for gauge in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
            equal(metric(prefix + gauge), 0)
    text_of = http("/metrics")[1]
    assert 'model_name="smol"' in text_of and "lathe_build_info" in text_of
    assert "vllm:" not in http("/metrics", root=STRICT)[1]


def main():
    failed = []
    for function in CHECKS:
        try:
            function()
        except Exception:
            failed.append(f"{function.__name__}\n{traceback.format_exc(limit=-3)}")
    for failure in failed:
        print(f"FAILED {failure}")
    print(f"{len(CHECKS) - len(failed)} of {len(CHECKS)} checks passed")
    sys.exit(bool(failed))


main()
