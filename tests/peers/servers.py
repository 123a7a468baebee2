"""Starts Lathe's server and llama.cpp's side by side, and runs Lathe's load generator against both."""

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import llama

# A server that is not ready by then has failed.
PATIENCE = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(command: list, port: int, log: Path) -> Iterator[str]:
    """A server's address, from when it is ready until the block ends."""
    with log.open("w") as out:
        process = subprocess.Popen([*map(str, command)], stdout=out, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + PATIENCE
        while not is_ready(port):
            if process.poll() is not None or time.monotonic() > until:
                sys.exit(f"error: `{' '.join(map(str, command))}` did not become ready; see {log}")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@contextlib.contextmanager
def both(lathe: Path, plan: Path, gguf: Path, slots: int, threads: int, context: int) -> Iterator[dict[str, str]]:
    """Addresses of both servers, each with so many places of so many positions."""
    ports = free_port(), free_port()
    positions = slots * context
    ours = [lathe, "serve", plan, "--port", ports[0], "--threads", threads, "--cache-tokens", positions]
    # Random prompts are answered by repetitions, which guesses would make short work of.
    ours += ["--speculate", "off"]
    peer = [llama.binaries() / "llama-server", "--model", gguf, "--port", ports[1], "--threads", threads]
    peer += ["--threads-batch", threads, "--parallel", slots, "--ctx-size", positions]
    logs = llama.cache() / "logs"
    logs.mkdir(exist_ok=True)
    with running(ours, ports[0], logs / "lathe.log") as first, running(peer, ports[1], logs / "llama.log") as second:
        yield {"lathe": first, "llama-server": second}


def load(lathe: Path, servers: dict[str, str], *options: object, svg: Path | None = None) -> list[dict]:
    """The rows of `lathe bench serve` against some servers, with its picture beside."""
    command = [lathe, "bench", "serve", *(f"{name}={url}" for name, url in servers.items()), *options, "-o", "json"]
    command += ["--svg", svg] if svg else []
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"error: `{' '.join(map(str, command))}` failed")
    return json.loads(done.stdout)
