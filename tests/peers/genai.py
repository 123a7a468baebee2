"""OpenVINO GenAI, another peer: it reads the same GGUF files, of the families that it knows.

It comes as Python packages, kept in the cache. Run as a program by their Python, it measures one piece of work and prints
tokens per second as JSON:

    genai.py MODEL.gguf --prompt N --generate N --threads N --repetitions N
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import llama

# The versions are pinned because the figures name what they were measured with.
PACKAGES = ["openvino-genai==2026.4.1.0", "numpy==2.3.5"]


def python() -> Path:
    """A Python that has the packages."""
    environment = llama.cache() / "genai"
    interpreter = environment / "bin" / "python3"
    stamp = environment / "installed.txt"
    if not (stamp.exists() and stamp.read_text() == "\n".join(PACKAGES)):
        llama.run(sys.executable, "-m", "venv", "--clear", environment)
        llama.run(interpreter, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *PACKAGES)
        stamp.write_text("\n".join(PACKAGES))
    return interpreter


def measure(model: Path, prompt: int, answer: int, threads: int, repetitions: int) -> dict[str, list[float]] | None:
    """Samples of prefill and decode in tokens per second; `None` where the family is unknown to it."""
    options = ["--prompt", prompt, "--generate", answer, "--threads", threads, "--repetitions", repetitions]
    done = subprocess.run(
        [*map(str, [python(), __file__, model, *options])], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if "Unsupported model architecture" in done.stderr:
        return None
    sys.exit(f"error: OpenVINO GenAI failed on {model}:\n{done.stderr[-2000:]}")


def main() -> None:
    import numpy
    import openvino
    import openvino_genai

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    for option in ("prompt", "generate", "threads", "repetitions"):
        parser.add_argument(f"--{option}", type=int, required=True)
    arguments = parser.parse_args()
    pipeline = openvino_genai.LLMPipeline(str(arguments.model), "CPU", INFERENCE_NUM_THREADS=arguments.threads)
    config = openvino_genai.GenerationConfig()
    config.do_sample, config.ignore_eos, config.apply_chat_template = False, True, False
    samples: dict[str, list[float]] = {"prefill": [], "decode": []}

    def answer(prompt: int, tokens: int, seed: int) -> openvino_genai.PerfMetrics:
        config.max_new_tokens = tokens
        # Other tokens each time, so that no cache of prompts helps.
        ids = numpy.random.default_rng(seed).integers(100, 20000, (1, prompt), dtype=numpy.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids)))
        return pipeline.generate(inputs, config).perf_metrics

    for seed in range(arguments.repetitions + 1):
        first = answer(arguments.prompt, 1, 2 * seed).get_ttft().mean
        each = answer(1, arguments.generate + 1, 2 * seed + 1).get_tpot().mean
        if seed > 0:  # the first time warms it up
            samples["prefill"].append(arguments.prompt / first * 1e3)
            samples["decode"].append(1e3 / each)
    if min(map(statistics.median, samples.values())) <= 0:
        sys.exit("error: a time of zero was measured")
    print(json.dumps(samples))


if __name__ == "__main__":
    main()
