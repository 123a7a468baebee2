"""Whether answers of a served plan are the same bits alone and in company, on whatever device serves it.

    python3 tests/gpu/company.py LATHE PLAN [DEVICE]

Serves the plan, asks for answers of several lengths with seeds and logprobs, greedy and sampled, first one at a time and
then all at once, twice in different orders, and compares texts and logprobs. Ends with 1 if one differs.
"""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

WORDS = "the of and a to in is was he for it with as his on be at by had not are but from or have an they which one you".split()
PATIENCE = 60


def requests() -> list[dict]:
    """Forty requests, whose prompts have 3 to 161 words."""
    found = []
    for number in range(40):
        prompt = " ".join(WORDS[(number * 7 + at * at + at // 3) % len(WORDS)] for at in range(3 + number * number % 160))
        sampling = {"temperature": (0, 0.7, 1.0, 1.3)[number % 4], "seed": number}
        if number % 5 == 4:
            sampling["top_p"] = 0.9
        if number % 7 == 6:
            sampling["frequency_penalty"] = 0.5
        found.append({"prompt": prompt, "max_tokens": 8 + number, "logprobs": number % 3, **sampling})
    return found


def ask(url: str, model: str, body: dict) -> tuple:
    data = json.dumps({"model": model, **body}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        choice = json.load(answer)["choices"][0]
    return choice["text"], json.dumps(choice["logprobs"], sort_keys=True)


def main() -> None:
    lathe, plan, device = sys.argv[1], sys.argv[2], (sys.argv[3:] or ["auto"])[0]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [lathe, "serve", plan, "--port", str(port), "--device", device]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                with urllib.request.urlopen(f"{url}/v1/models", timeout=1) as answer:
                    model = json.load(answer)["data"][0]["id"]
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > until:
                    sys.exit("error: the server did not become ready")
                time.sleep(0.1)
        bodies = requests()
        alone = [ask(url, model, body) for body in bodies]
        differing = set()
        for order in (range(len(bodies)), range(len(bodies) - 1, -1, -1)):
            with ThreadPoolExecutor(len(bodies)) as pool:
                together = dict(zip(order, pool.map(lambda at: ask(url, model, bodies[at]), order), strict=True))
            differing |= {at for at, answer in together.items() if answer != alone[at]}
    finally:
        server.terminate()
        server.wait()
    tokens = sum(body["max_tokens"] for body in bodies)
    print(f"{len(bodies)} answers of up to {tokens} tokens in all, alone and together: {len(differing)} differ")
    for at in sorted(differing):
        print(f"differs: {bodies[at]}: alone {alone[at][0]!r}")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
