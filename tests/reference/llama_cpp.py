"""Logits of GGUF files as llama.cpp computes them, as logarithms of probabilities.

    llama_cpp.py FOLDER

For each NAME.gguf in the folder, NAME.json holds the tokens of one sequence, the positions that are wanted and the size
of the vocabulary; the answer, NAME.f32, is [R, V] in little-endian numbers.
"""

import json
import sys
from pathlib import Path

import numpy as np
import xllamacpp


def server(path):
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity, params.fit_params = 64, 1, False, -1, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = 1
    return xllamacpp.Server(params)


def logprobs(llama, tokens, vocabulary):
    """Of every token after these."""
    request = {"prompt": tokens, "n_predict": 1, "n_probs": vocabulary, "temperature": 1.0, "cache_prompt": False}
    answer = llama.handle_completions(request)
    (choice,) = answer["choices"]
    values = np.full(vocabulary, np.nan, dtype="<f4")
    for entry in choice["logprobs"]["content"][0]["top_logprobs"]:
        values[entry["id"]] = entry["logprob"]
    return values


def main():
    for path in sorted(Path(sys.argv[1]).glob("*.gguf")):
        asked = json.loads(path.with_suffix(".json").read_text())
        llama = server(path)
        rows = [logprobs(llama, asked["tokens"][: row + 1], asked["vocabulary"]) for row in asked["rows"]]
        path.with_suffix(".f32").write_bytes(np.concatenate(rows).tobytes())


main()
