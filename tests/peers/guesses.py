"""What guesses of the tokens that follow save in Lathe and in llama.cpp: the same prompts to servers with and without.

Of either there is a server that guesses and one that does not. Each prompt goes to all of them in turns, one request at a
time, greedy. A rate is that of the tokens after the first, so that prompts count for nothing, and a share is of two rates
of the same prompt and round.
"""

import contextlib
import json
import statistics
import time
import urllib.request
from pathlib import Path

import llama
import servers

# What divides the prompts of a file: a line of its own.
DIVIDER = "\n====\n"
# Options of either server for each kind of guess. By default llama.cpp's looks for repetitions of twelve tokens, which are rare.
KINDS = {
    "off": (["--speculate", "off"], ["--spec-type", "none"]),
    "ngram": (["--speculate", "ngram"], ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", 3]),
    "draft": (["--speculate", "draft"], ["--spec-type", "draft-simple"]),
    "auto": (["--speculate", "auto"], None),
}


def rate(url: str, prompt: str, tokens: int) -> float:
    """Tokens a second of one answer, from its first token to its last."""
    body = {
        "model": model(url),
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        # Its prefix is in the cache after the first round; here only the tokens after it count.
        "cache_prompt": True,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    times, count = [], 0
    with urllib.request.urlopen(request, timeout=servers.PATIENCE) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[len(b"data: ") :])
            if usage := event.get("usage"):
                count = usage["completion_tokens"]
            if any(choice["delta"].get("content") for choice in event["choices"]):
                times.append(time.monotonic())
    if count < 2 or len(times) < 2:
        raise ValueError(f"an answer of {count} tokens in {len(times)} pieces has no rate")
    return (count - 1) / (times[-1] - times[0])


def model(url: str) -> str:
    """What a server calls its model."""
    with urllib.request.urlopen(f"{url}/v1/models", timeout=servers.PATIENCE) as answer:
        return json.load(answer)["data"][0]["id"]


def measure(lathe: Path, plan: Path, gguf: Path, draft: Path | None, kind: str, files: list[Path], size: tuple) -> dict:
    """Of each file of prompts the medians: rates of all four, and what guesses save in either."""
    threads, tokens, rounds = size
    with contextlib.ExitStack() as stack:
        addresses = {
            name: stack.enter_context(server(lathe, plan, gguf, draft, name, threads))
            for name in [("lathe", "off"), ("llama.cpp", "off"), ("lathe", kind)]
            + ([("llama.cpp", kind)] if KINDS[kind][1] else [])
        }
        found = {}
        for path in files:
            prompts = [prompt.strip() for prompt in path.read_text().split(DIVIDER) if prompt.strip()]
            rates: dict[tuple[str, str], list[float]] = {name: [] for name in addresses}
            # The first time fills caches.
            for turn in range(rounds + 1):
                for prompt in prompts:
                    for name, url in addresses.items():
                        got = rate(url, prompt, tokens)
                        if turn > 0:
                            rates[name].append(got)
            found[path.stem] = {
                who: {
                    "off": statistics.median(rates[who, "off"]),
                    "on": statistics.median(rates[who, kind]),
                    "share": statistics.median(
                        on / off for on, off in zip(rates[who, kind], rates[who, "off"], strict=True)
                    ),
                }
                for who in ("lathe", "llama.cpp")
                if (who, kind) in rates
            }
    return found


@contextlib.contextmanager
def server(lathe: Path, plan: Path, gguf: Path, draft: Path | None, name: tuple[str, str], threads: int):
    """One of the servers, with room for one request."""
    who, kind = name
    port, context = servers.free_port(), 2048
    ours, theirs = KINDS[kind]
    if who == "lathe":
        command = [lathe, "serve", plan, "--port", port, "--threads", threads, "--cache-tokens", 2 * context, *ours]
    else:
        command = [llama.binaries() / "llama-server", "--model", gguf, "--port", port, "--threads", threads]
        command += ["--threads-batch", threads, "--parallel", 1, "--ctx-size", context, *theirs]
        command += ["--model-draft", draft] if kind == "draft" else []
    logs = llama.cache() / "logs"
    logs.mkdir(exist_ok=True)
    with servers.running(command, port, logs / f"{who}-{kind}.log") as url:
        yield url
