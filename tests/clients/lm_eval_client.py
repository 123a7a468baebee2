"""Puts questions to `lathe serve` through lm-evaluation-harness and prints its scores as `lathe eval --questions` does.

    lm_eval_client.py URL QUESTIONS.jsonl

The questions become two tasks on local files: `multiple_choice`, for which the model `local-completions` asks for the
log-likelihood of token ids by an echoed prompt, and `generate_until`. The tokenizer is the server's.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

url, path = sys.argv[1:]
folder = tempfile.TemporaryDirectory()
# Data sets are copied into a cache before they are read, and nothing may be asked of the network.
os.environ |= {"HF_HOME": folder.name, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "LMEVAL_LOG_LEVEL": "ERROR"}

import lm_eval  # noqa: E402

questions = [json.loads(line) for line in Path(path).read_text().splitlines()]
chosen = [question for question in questions if "choices" in question]
said = [question for question in questions if "choices" not in question]


def task(name: str, lines: list[dict], **config) -> dict:
    """A task on a file of these lines."""
    file = Path(folder.name) / f"{name}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}}, "test_split": "test"}
    return {"task": name, **data, "doc_to_text": "{{context}}", "target_delimiter": "", "num_fewshot": 0, **config}


def generation(number: int, question: dict) -> dict:
    """A task of its own, for each question ends its answer otherwise."""
    limits = {"until": question["stop"], "max_gen_toks": question["max_tokens"], "do_sample": False, "temperature": 0}
    metric = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    return task(
        f"said_{number}",
        [question],
        output_type="generate_until",
        doc_to_target="{{answer}}",
        generation_kwargs=limits,
        metric_list=metric,
    )


choice = {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}"}
metrics = [{"metric": "acc"}, {"metric": "acc_norm"}]
tasks = [task("chosen", chosen, **choice, metric_list=metrics)]
tasks += [generation(number, question) for number, question in enumerate(said)]
server = {"base_url": f"{url}/v1/completions", "model": "smol", "tokenizer_backend": "remote", "num_concurrent": 4}
found = lm_eval.simple_evaluate(
    model="local-completions", model_args=server, tasks=tasks, batch_size=2, log_samples=True, bootstrap_iters=0
)
samples = found["samples"]
by_place = {sample["doc_id"]: sample for sample in samples["chosen"]}
outcomes = [
    {
        "choices": [{"logprob": float(logprob), "greedy": greedy} for [[logprob, greedy]] in by_place[place]["resps"]],
        "correct": bool(by_place[place]["acc"]),
        "correct_normalized": bool(by_place[place]["acc_norm"]),
    }
    for place in range(len(chosen))
]
for number in range(len(said)):
    [sample] = samples[f"said_{number}"]
    outcomes.append({"text": sample["resps"][0][0], "correct": bool(sample["exact_match"])})
accuracy = found["results"]["chosen"]["acc,none"], found["results"]["chosen"]["acc_norm,none"]
print(json.dumps({"questions": outcomes, "accuracy of choices": accuracy}))
