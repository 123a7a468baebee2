"""Measures Lathe beside llama.cpp on this machine, in turns, and prints tables of ratios.

    python3 tests/peers/compare.py              all of it, within 15 minutes
    python3 tests/peers/compare.py --quick      fewer rounds and models, within 5 minutes
    python3 tests/peers/compare.py --only serve,gaps

What it does, each part in rounds in which both take turns, so that both see the same noise of the machine:

  speed   prefill and decode of each model, and decode of 8 and 32 sequences side by side: `lathe bench`
          against `llama-bench` and `llama-batched-bench`, with the model as it is shipped and as Q4_0, and
          prefill and decode against OpenVINO GenAI with the latter, where it knows the family
  serve   the same requests to `lathe serve` and `llama-server` of SmolLM2 (Q4_0 there) by `lathe bench
          serve`: prompts of 128 to 512 tokens, 128 generated, from 1, 8 and 32 clients in closed loops, and
          at the times of a Poisson process
  prefix  time to first token of prompts that share 1000 tokens, against that of prompts that share none
  gaps    16 streams, alone and while long prompts arrive: the gaps between their tokens
  guess   answers to the prompts in tests/data/prompts with guesses and without: n-grams with SmolLM2 and Qwen
          2.5 Coder 1.5B, and the latter with the 0.5B model as its draft

Before each it checks that both find a text about as likely. It needs Rust, a C++ compiler and Python 3.11;
llama.cpp is built once (10 minutes on two idle cores, not counted above) and kept in the cache with the
models. Tables go to stdout; tables, pictures and all figures in JSON into the folder --out. Figures of a
machine that does other work are noise: each table says how far its rounds lie apart.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import chart
import genai
import guesses
import llama
import servers

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["speed", "serve", "prefix", "gaps", "guess"]
# What is measured of each model: tokens of prefill, tokens of decode, sequences side by side.
MODELS = {
    "smollm2": (512, 128, [8, 32]),
    "gemma3": (512, 64, []),
    "qwen2-coder-0.5b": (512, 48, []),
    "qwen2-coder-1.5b": (256, 24, []),
}
# How much worse Lathe's perplexity may be; Q4_0 loses more than Lathe's forms do.
WORST_PERPLEXITY = 1.01
# Prompt and answer of each of several sequences.
SEQUENCE = (128, 64)


class Bench:
    """One comparison: binaries, models, and what was found."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.rounds = arguments.rounds or (2 if arguments.quick else 5)
        self.out: Path = arguments.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.lathe = arguments.lathe or build()
        self.found: dict = {"commands": {}}
        self.text: list[str] = []

    def say(self, line: str = "") -> None:
        print(line, flush=True)
        self.text.append(line)

    def table(self, title: str, header: list[str], rows: list[list[str]]) -> None:
        self.say(f"\n{title}\n")
        for row in [header, ["---"] * len(header), *rows]:
            self.say(f"| {' | '.join(row)} |")

    def files(self, name: str) -> tuple[Path, Path, Path]:
        """The plan, the model as it is shipped, and as Q4_0."""
        model = Path(output("cargo", "xtask", "model", name, cwd=ROOT).strip())
        plan = llama.cache() / f"{name}.plan"
        output(self.lathe, "compile", model, "-o", plan)
        return plan, model, llama.quantized(model)

    def pair(self, name: str, draft: str) -> tuple[Path, Path]:
        """The plan of a model and its draft, and the draft as Q4_0."""
        large, small = (Path(output("cargo", "xtask", "model", each, cwd=ROOT).strip()) for each in (name, draft))
        plan = llama.cache() / f"{name}+{draft}.plan"
        output(self.lathe, "compile", large, "--draft", small, "-o", plan)
        return plan, llama.quantized(small)


def build() -> Path:
    """The release build of Lathe."""
    llama.run("cargo", "xtask", "setup", cwd=ROOT)
    llama.run("cargo", "build", "--release", "-p", "lathe-runtime", "-p", "lathe-compiler", "--bins", cwd=ROOT)
    return ROOT / "target/release/lathe"


def output(*command: object, **options) -> str:
    """What a program prints; this one ends if it fails."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    done = subprocess.run([*map(str, command)], **options)
    if done.returncode != 0:
        sys.exit(f"error: `{' '.join(map(str, command))}` failed:\n{(done.stderr or done.stdout)[-2000:]}")
    return done.stdout


def middle(values: list[float]) -> float:
    return statistics.median(values)


def spread(values: list[float]) -> str:
    """How far values lie apart, as a share of their median."""
    return f"±{(max(values) - min(values)) / 2 / middle(values):.0%}"


def sanity(bench: Bench, name: str, plan: Path, q4_0: Path) -> None:
    """Both must find the beginning of the tests' corpus about as likely: fast and wrong is easy."""
    corpus = (ROOT / "tests/data/corpus.txt").read_text()[: 5000 if bench.arguments.quick else 12000]
    text = bench.out / "corpus.txt"
    text.write_text(corpus)
    ours = json.loads(output(bench.lathe, "eval", plan, "--text", text, "--context", 512, "--json"))["perplexity"]
    size = ["-c", 512, "-b", 512, "-t", bench.arguments.threads]
    said = output(llama.binaries() / "llama-perplexity", "-m", q4_0, "-f", text, *size, stderr=subprocess.STDOUT)
    estimate = re.search(r"Final estimate: PPL = ([0-9.]+)", said)
    if estimate is None:
        sys.exit(f"error: llama-perplexity gave no estimate for {name}:\n{said[-2000:]}")
    theirs = float(estimate[1])
    bench.found[f"perplexity {name}"] = {"lathe": ours, "Q4_0": theirs}
    bench.say(f"\n{name}: perplexity {ours:.2f} (Lathe), {theirs:.2f} (llama.cpp, Q4_0)")
    if not ours < theirs * WORST_PERPLEXITY:
        sys.exit(f"error: Lathe's perplexity of {name} is more than {WORST_PERPLEXITY} times the peer's")


def speed(bench: Bench, name: str, plan: Path, shipped: Path, q4_0: Path) -> None:
    """Prefill, decode, and decode of several sequences."""
    prompt, answer, sides = MODELS[name]
    threads, peer = bench.arguments.threads, llama.binaries()
    if bench.arguments.quick:
        prompt, answer = prompt // 2, answer // 2
    samples: dict[tuple[str, str], list[float]] = {}

    def ours(work: str, *options: object) -> None:
        rows = json.loads(output(bench.lathe, "bench", plan, "-t", threads, "-r", 2, "-o", "json", *options))
        samples.setdefault((work, "lathe"), []).append(max(rows[-1]["samples_ts"]))

    def theirs(work: str, form: str, gguf: Path, *options: object) -> None:
        rows = output(peer / "llama-bench", "-m", gguf, "-t", threads, "-r", 2, "-o", "json", *options)
        samples.setdefault((work, form), []).append(max(json.loads(rows)[-1]["samples_ts"]))

    def many(count: int) -> None:
        work = f"decode, {count} sequences"
        size = ["-npp", SEQUENCE[0], "-ntg", SEQUENCE[1], "-npl", count, "-c", count * sum(SEQUENCE)]
        ours(work, "-s", count, "-p", 0, "-n", SEQUENCE[1], "-d", SEQUENCE[0])
        said = output(peer / "llama-batched-bench", "-m", q4_0, "-t", threads, "--output-format", "jsonl", *size)
        row = next(json.loads(line) for line in said.splitlines() if line.startswith("{"))
        samples.setdefault((work, "Q4_0"), []).append(row["speed_tg"])

    works = {f"prefill {prompt}": ["-p", prompt, "-n", 0], f"decode {answer}": ["-p", 0, "-n", answer]}
    for _ in range(bench.rounds):
        for work, options in works.items():
            ours(work, *options)
            theirs(work, "Q4_0", q4_0, *options)
            if not bench.arguments.quick:
                theirs(work, "shipped", shipped, *options)
        if not bench.arguments.quick and (found := genai.measure(q4_0, prompt, answer, threads, 2)):
            for work, values in zip(works, found.values(), strict=True):
                samples.setdefault((work, "OpenVINO"), []).append(max(values))
        for count in sides:
            many(count)
    works = list(dict.fromkeys(work for work, _ in samples))
    rows, bars = [], bench.found.setdefault("bars", [])
    for work in works:
        own, best = samples[work, "lathe"], samples[work, "Q4_0"]
        # Of each round, so that what slows both down cancels out.
        ratio = middle([a / b for a, b in zip(own, best, strict=True)])
        cells = [work, f"{middle(own):.1f} {spread(own)}", f"{middle(best):.1f} {spread(best)}", f"{ratio:.2f}×"]
        for who in ("shipped", "OpenVINO"):
            other = samples.get((work, who))
            cells += [f"{middle(own) / middle(other):.2f}× ({middle(other):.1f})" if other else "–"]
        rows.append(cells)
        bars.append((f"{name}: {work}", ratio, f"{middle(own):.0f} and {middle(best):.0f} tokens/s"))
    header = [f"{name}, tokens/s", "Lathe", "llama.cpp, Q4_0", "ratio", "to the file as shipped", "to OpenVINO GenAI"]
    bench.table(f"{bench.rounds} rounds, {threads} threads:", header, rows)
    bench.found[f"speed {name}"] = {f"{work}, {who}": values for (work, who), values in samples.items()}


def serve(bench: Bench, plan: Path, q4_0: Path) -> None:
    """The same requests to both servers."""
    quick, rows, bars = bench.arguments.quick, [], bench.found.setdefault("bars", [])
    rounds = 1 if quick else min(bench.rounds, 3)
    loads = [("--clients", count, count, count * (2 if count > 1 else 4)) for count in (1, 8, 32)]
    loads += [] if quick else [("--rate", 0.5, 32, 12)]
    for flag, value, slots, requests in loads:
        picture = bench.out / f"serve{flag[1:]}-{value}.svg"
        with servers.both(bench.lathe, plan, q4_0, slots, bench.arguments.threads, 704) as urls:
            options = [flag, value, "--requests", requests, "--rounds", rounds]
            ours, theirs = found = servers.load(bench.lathe, urls, *options, svg=picture)
        bench.found[f"serve {flag[2:]} {value}"] = found
        label = f"{value} client{'s' * (value != 1)}" if flag == "--clients" else f"{value} requests/s"
        ratio = ours["output_throughput"] / theirs["output_throughput"]
        for row in found:
            cells = [f"{row[key]['median']:.0f} / {row[key]['p99']:.0f}" for key in ("ttft_ms", "itl_ms", "e2el_ms")]
            rates = f"{row['output_throughput']:.1f} {spread(row['rounds'])}"
            rows.append([label, row["server"], rates, f"{row['total_token_throughput']:.0f}", *cells])
        shorter = [
            f"{theirs[key][which] / ours[key][which]:.2f}×"
            for key in ("ttft_ms", "itl_ms", "e2el_ms")
            for which in ("median", "p99")
        ]
        pairs = [" / ".join(shorter[at : at + 2]) for at in (0, 2, 4)]
        rows.append(["", "ratio", f"{ratio:.2f}×", "", *pairs])
        bars.append(
            (
                f"server, {label}: tokens/s",
                ratio,
                f"{ours['output_throughput']:.0f} and {theirs['output_throughput']:.0f}",
            )
        )
    header = [
        "load",
        "server",
        "output tokens/s",
        "with prompts",
        "first token ms (p50 / p99)",
        "between tokens ms",
        "end to end ms",
    ]
    bench.table(f"SmolLM2 served, {rounds} rounds in turns:", header, rows)


def prefix(bench: Bench, plan: Path, q4_0: Path) -> None:
    """What a prompt costs whose first 1000 tokens are in the cache."""
    requests, rows = 5 if bench.arguments.quick else 12, []
    options = ["--clients", 1, "--prompt", 1032, "--generate", 1, "--requests", requests, "--rounds", 2]
    with servers.both(bench.lathe, plan, q4_0, 1, bench.arguments.threads, 4096) as urls:
        misses = servers.load(bench.lathe, urls, *options, "--seed", 2)
        hits = servers.load(bench.lathe, urls, *options, "--seed", 3, "--prefix", 1000)
    for miss, hit in zip(misses, hits, strict=True):
        times = [row["ttft_ms"]["median"] for row in (miss, hit)]
        rows.append([miss["server"], *(f"{time:.1f}" for time in times), f"{times[0] / times[1]:.1f}×"])
    bench.found["prefix"] = {"miss": misses, "hit": hits}
    header = ["server", "1032 tokens, none cached, ms", "1000 of them cached, ms", "ratio"]
    bench.table("Time to first token, median:", header, rows)


def gaps(bench: Bench, plan: Path, q4_0: Path) -> None:
    """What long prompts do to streams in progress."""
    requests, rows = (4, []) if bench.arguments.quick else (12, [])
    options = ["--streams", 16, "--clients", 1, "--prompt", 1500, "--generate", 1, "--requests", requests]
    with servers.both(bench.lathe, plan, q4_0, 18, bench.arguments.threads, 2112) as urls:
        found = servers.load(bench.lathe, urls, *options, "--quiet", 6, svg=bench.out / "gaps.svg")
    for row in found:
        streams = row["streams"]
        times = [f"{streams[part][which]:.1f}" for part in ("quiet_ms", "loaded_ms") for which in ("median", "p99")]
        rows.append([row["server"], *times, f"{streams['p99_ratio']:.2f}×", f"{row['ttft_ms']['median']:.0f}"])
    bench.found["gaps"] = found
    header = [
        "server",
        "quiet p50 ms",
        "quiet p99",
        "loaded p50",
        "loaded p99",
        "p99 ratio",
        "a prompt's first token ms",
    ]
    bench.table("Gaps of 16 streams, alone and while prompts of 1500 tokens arrive one after the other:", header, rows)


def guess(bench: Bench) -> None:
    """What guesses save, of each kind and with the prompts that it is made for."""
    rounds, rows = 1 if bench.arguments.quick else min(bench.rounds, 3), []
    size = (bench.arguments.threads, 128, rounds)
    prompts = ROOT / "tests/data/prompts"
    works = [("smollm2", "ngram", ["editing", "summarizing"]), ("smollm2", "auto", ["editing", "summarizing", "prose"])]
    if not bench.arguments.quick:
        pair = ["code"]
        works += [("qwen2-coder-1.5b", "ngram", ["editing", "summarizing"])]
        works += [("qwen2-coder-1.5b", kind, pair) for kind in ("draft", "auto")]
    for name, kind, files in works:
        plan, _, q4_0 = bench.files(name)
        draft = None
        if files == ["code"]:
            plan, draft = bench.pair(name, "qwen2-coder-0.5b")
        texts = [prompts / f"{file}.txt" for file in files]
        found = guesses.measure(bench.lathe, plan, q4_0, draft, kind, texts, size)
        bench.found[f"guess {name} {kind}"] = found
        for file, both in found.items():
            ours, theirs = both["lathe"], both.get("llama.cpp")
            cells = [f"{name}, {kind}: {file}", f"{ours['off']:.1f}", f"{ours['on']:.1f}", f"{ours['share']:.2f}×"]
            if theirs:
                cells += [f"{theirs['off']:.1f}", f"{theirs['on']:.1f}", f"{theirs['share']:.2f}×"]
                cells += [f"{ours['on'] / max(theirs['on'], theirs['off']):.2f}×"]
            rows.append(cells + ["–"] * (8 - len(cells)))
    header = ["prompts", "Lathe, off", "guessing", "saves", "llama.cpp, off", "guessing", "saves", "Lathe to the better"]
    bench.table(f"Answers of 128 tokens, tokens/s, {rounds} rounds in turns:", header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and only SmolLM2")
    parser.add_argument("--only", metavar="PART,…", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--models", metavar="NAME,…", help=f"some of {', '.join(MODELS)} for the part speed")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds (default 5, or 2 with --quick)")
    parser.add_argument("--threads", type=int, metavar="N", default=2, help="threads of either (default 2)")
    parser.add_argument("--lathe", type=Path, metavar="PATH", help="use this binary instead of building one")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "target/peers", help="folder of results (default target/peers)"
    )
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    names = arguments.models.split(",") if arguments.models else list(MODELS)[: 1 if arguments.quick else None]
    if unknown := [part for part in parts if part not in PARTS] + [name for name in names if name not in MODELS]:
        parser.error(f"unknown: {', '.join(unknown)}")
    llama.binaries()
    bench = Bench(arguments)
    if "speed" in parts:
        for name in names:
            plan, shipped, q4_0 = bench.files(name)
            sanity(bench, name, plan, q4_0)
            speed(bench, name, plan, shipped, q4_0)
    if "guess" in parts:
        guess(bench)
    if set(parts) - {"speed", "guess"}:
        plan, _, q4_0 = bench.files("smollm2")
        sanity(bench, "smollm2", plan, q4_0)
        for part in (serve, prefix, gaps):
            if part.__name__ in parts:
                part(bench, plan, q4_0)
    if bars := bench.found.get("bars"):
        (bench.out / "ratios.svg").write_text(chart.ratios("Lathe against llama.cpp (Q4_0), the same moment", bars))
    (bench.out / "tables.md").write_text("\n".join(bench.text) + "\n")
    (bench.out / "figures.json").write_text(json.dumps(bench.found, indent=1))
    print(f"\ntables, pictures and figures are in {bench.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
