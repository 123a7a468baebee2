#!/bin/bash
# Everything that a GPU is to show, in one call: kernel vectors, the same answers with graphs and without, alone and in
# company, the speed of plans, and PyTorch with the same shapes. Full results go to a folder, a short table comes last.
#
#   tests/gpu/run.sh FOLDER OUT [SECONDS]
#
# FOLDER holds `lathe`, plans (`*.plan`, benched in the order of their names; those of real models are asked too) and,
# in `vectors`, kernel vectors. What is not there is left out. No new step is begun after SECONDS (540).
set -u
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:?the folder of the binary and the plans}
out=${2:?the folder for results}
limit=${3:-540}
device=${LATHE_DEVICE:-cuda:0}
python=${PYTHON:-python3}
lathe=$folder/lathe
chmod +x "$lathe"
mkdir -p "$out"
summary=$out/summary.txt
: >"$summary"

say() { echo "$*" | tee -a "$summary"; }
left() { echo $((limit - SECONDS)); }
# Runs a command with what time is left, its output in a file; says when it fails.
step() {
    local name=$1 most=$2
    shift 2
    local time
    time=$(left)
    if [ "$time" -lt 5 ]; then
        say "left out, no time: $name"
        return 1
    fi
    [ "$time" -lt "$most" ] && most=$time
    timeout "$most" "$@" >"$out/$name.out" 2>"$out/$name.err"
    local code=$?
    [ $code -eq 0 ] || say "FAILED ($code) $name: $(tail -n 1 "$out/$name.err")"
    return $code
}

nvidia-smi >"$out/machine.txt" 2>&1
"$lathe" --version >>"$out/machine.txt"

if [ -d "$folder/vectors" ]; then
    step vectors 90 "$python" "$here/replay.py" "$folder/vectors" "$out/vectors.json"
    say "vectors: $(tail -n 1 "$out/vectors.out")"
fi

prompts=("The capital of France is" "Write a haiku about compilers." "Count from one to twenty." "Why is the sky blue?")
for plan in "$folder"/*.plan; do
    name=$(basename "$plan" .plan)
    # Plans of random weights say nothing.
    "$lathe" inspect "$plan" | grep -q '^weights *random' && continue
    for number in "${!prompts[@]}"; do
        for graphs in "" "--no-graphs"; do
            step "answer-$name-$number$graphs" 60 "$lathe" run "$plan" --device "$device" $graphs --temperature 0 -n 64 \
                --json --quiet -p "${prompts[$number]}"
        done
        text() { "$python" -c 'import json,sys; print(json.load(open(sys.argv[1]))["text"])' "$1"; }
        with=$(text "$out/answer-$name-$number.out") without=$(text "$out/answer-$name-$number--no-graphs.out")
        [ "$with" = "$without" ] && [ -n "$with" ] && verdict="same with graphs and without" || verdict="FAILED: graphs differ"
        say "$name, prompt $number: $verdict: ${with:0:60}"
    done
    step "company-$name" 120 "$python" "$here/company.py" "$lathe" "$plan" "$device"
    say "$name: $(head -n 1 "$out/company-$name.out")"
done

for plan in "$folder"/*.plan; do
    name=$(basename "$plan" .plan)
    bench() {
        local kind=$1
        shift
        step "$kind-$name" 100 "$lathe" bench "$plan" --device "$device" -o json "$@"
    }
    # The depth of the peer's decode steps.
    bench decode -p 0 -n 64 -d 512 -s 1,8,32 -r 3
    bench prefill -p 512,2048 -n 0 -s 1 -r 3
    bench deep -p 0 -n 32 -d 4096,8192 -s 1 -r 2
    bench direct --no-graphs -p 0 -n 64 -d 512 -s 1 -r 3
done

if [ "$(left)" -gt 60 ] && [ -z "${NO_PEER:-}" ]; then
    step peer "$(left)" "$python" "$here/peer.py" "$out/peer.json" --seconds "$(($(left) - 40))"
fi

"$python" - "$out" <<'PYTHON' | tee -a "$summary"
import glob, json, os, sys
out = sys.argv[1]
print(f"{'plan':<34} {'test':<22} {'tok/s':>12} {'ms':>10}")
for kind in ("decode", "direct", "deep", "prefill"):
    for path in sorted(glob.glob(f"{out}/{kind}-*.out")):
        try:
            rows = json.load(open(path))
        except ValueError:
            continue
        name = os.path.basename(path)[len(kind) + 1 : -4] + (" (no graphs)" if kind == "direct" else "")
        for row in rows:
            prompt, answer, depth, width = (row[f"n_{field}"] for field in ("prompt", "gen", "depth", "sequences"))
            test = (f"pp{prompt}" if prompt else f"tg{answer}") + (f" @ d{depth}" if depth else "") + f" x {width}"
            print(f"{name:<34} {test:<22} {row['avg_ts']:>12.1f} {row['avg_ns'] / 1e6 / max(answer, 1):>10.3f}")
if os.path.exists(f"{out}/peer.json"):
    peer = json.load(open(f"{out}/peer.json"))
    print("limits:", ", ".join(f"{name} {value:.1f}" for name, value in peer["limits"].items()))
    for row in peer["rows"]:
        if "ms" in row:
            print(f"{'torch ' + row['shape'] + ' bf16':<34} {row['test']:<22} {row['tokens_per_second']:>12.1f} {row['ms']:>10.3f}")
PYTHON
say "took $SECONDS s; full results in $out"
grep -q FAILED "$summary" && exit 1
exit 0
