#!/usr/bin/env bash
# The first quarter of an hour on an NVIDIA GPU, in less than eight minutes: is every kernel right,
# and how fast is it. From a clone, without a network:
#
#   benchmarks/gpu/quarter_hour.sh OUT
#
# Steps whose tool is missing are skipped. Every step has a time limit and a log of its own in OUT;
# what one step does, or fails to do, does not keep the others from their work. OUT/summary.txt has
# a line for each step, and OUT.tar.gz holds all of it, to send. Ctrl-C ends it with what is there.
# Exit status: 0 if every step that could run passed, 1 if one did not, 2 for a wrong call.
#
# Options, before OUT:
#   --small            tiny sizes: a rehearsal, whose times mean nothing
#   --only STEP        one step, such as checks; may be given several times
#   --limit-scale X    multiply every time limit by X
# PYTHON names the interpreter, python3 if it is not set.
set -u -o pipefail

usage() {
    sed -n 's/^#   \(benchmarks.*\)/usage: \1/p; s/^#   \(--.*\)/  \1/p' "$0" >&2
    exit 2
}

small=() only=() scale=1
while [[ ${1-} == --* ]]; do
    case $1 in
    --small) small=(--small) ;;
    --only) only+=("${2-}") && shift ;;
    --limit-scale) scale=${2-} && shift ;;
    *) usage ;;
    esac
    shift || usage
done
[[ $# -eq 1 && -n $1 && $scale =~ ^[0-9]+([.][0-9]+)?$ ]] || usage
mkdir -p -- "$1" || exit 2
out=$(cd -- "$1" && pwd)
if [[ -n $(ls -A -- "$out") ]]; then
    echo "$out is not empty. Name a new folder." >&2
    exit 2
fi
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
cd -- "$root" || exit 2
python=${PYTHON:-python3}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export PATH=$PATH:/usr/local/cuda/bin # where compute-sanitizer and ncu are, if not on the path

now() { # milliseconds since the script began
    echo $(($(date +%s%N) / 1000000 - begin))
}

scaled() { # scaled SECONDS: as milliseconds, times --limit-scale
    awk -v seconds="$1" -v scale="$scale" 'BEGIN { printf "%d", 1000 * seconds * scale + 0.5 }'
}

seconds() { # seconds MILLISECONDS
    printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000))
}

begin=0
begin=$(now) # milliseconds
deadline=$(scaled 465) # no step begins or goes on later than this
failed=0 child='' summary=$out/summary.txt

say() { # say STEP VERDICT [MILLISECONDS] [DETAIL]: a line of the summary
    local taken=${3:+$(seconds "$3") s}
    printf '%-28s %-14s %10s   %s\n' "$1" "$2" "$taken" "${4-}" | tee -a -- "$summary"
}

wanted() { # wanted STEP: whether --only lets it run
    local name
    [[ ${#only[@]} -eq 0 ]] && return
    for name in "${only[@]}"; do [[ $name == "$1" ]] && return; done
    return 1
}

step() { # step NAME LIMIT_S COMMAND...: run it and tell how it went; NAME.log has what it printed
    local name=$1 limit start log=$out/$1.log status taken
    wanted "$name" || return 0
    start=$(now)
    limit=$(scaled "$2")
    shift 2
    ((limit <= deadline - start)) || limit=$((deadline - start))
    if ((limit <= 0)); then
        failed=1
        say "$name" "no time left"
        return 0
    fi
    # in the background, so that Ctrl-C is served while it runs; timeout ends its whole group
    timeout --kill-after=5 "$(seconds "$limit")" "$@" >"$log" 2>&1 </dev/null &
    child=$!
    wait "$child"
    status=$? child=''
    taken=$(($(now) - start))
    if ((status == 0)); then
        say "$name" ok "$taken"
    elif ((status == 124 || (status == 137 && taken >= limit))); then
        failed=1
        say "$name" "timed out" "$taken" "limit $(seconds "$limit") s; $(reason "$log")"
    else
        failed=1
        say "$name" failed "$taken" "exit status $status; $(reason "$log")"
    fi
}

reason() { # reason FILE: its last line that speaks of an error, or its last line
    local lines
    lines=$(grep -iE 'error|fail|denied' -- "$1") || lines=$(grep -v '^[[:space:]]*$' -- "$1")
    tail -n 1 <<<"$lines" | cut -c 1-160
}

missing() { # missing STEP WHAT: a step that can't run here, which is no failure
    wanted "$1" && say "$1" "not installed" "" "$2"
}

has() { # has MODULE: whether Python would find it
    "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec(sys.argv[1]) is None)' "$1"
}

finish() { # the end, whatever happened before
    trap '' INT TERM
    if [[ -n $child ]]; then
        kill -TERM "$child" 2>/dev/null
        wait "$child" 2>/dev/null
    fi
    tar -C "$(dirname -- "$out")" --exclude='*.engine' -czf "$out.tar.gz" -- "$(basename -- "$out")"
    echo "-> $out.tar.gz holds all of it: send this file"
}

interrupted() {
    say interrupted "" "$(now)"
    finish
    exit 130
}
trap interrupted INT TERM

# 1. the machine
step versions 15 bash -c 'uname -a; git log -1 --format=%H 2>&1; "$0" -m condinst_infer doctor' "$python"
if command -v nvidia-smi >/dev/null; then
    step nvidia-smi 10 nvidia-smi -q
else
    missing nvidia-smi nvidia-smi
fi

# 2. the kernels under compute-sanitizer, at tiny sizes and without PyTorch
for tool in memcheck racecheck synccheck; do
    if command -v compute-sanitizer >/dev/null; then
        step "$tool" 45 compute-sanitizer --tool "$tool" --error-exitcode 3 \
            --target-processes all "$python" -m condinst_infer.profiling.gpu.worker checks --small --stored
    else
        missing "$tool" compute-sanitizer
    fi
done

# 3. right, and how fast
parts=()
measure() { # measure PART LIMIT_S: checks, times or pipelines, each to a file of its own
    parts+=("$out/$1.json")
    step "$1" "$2" "$python" -m benchmarks.gpu.pipelines "$1" "${small[@]}" \
        --limit-scale "$scale" --output "$out/$1.json"
}

measure checks 90
measure times 110
if has torch; then measure pipelines 90; else missing pipelines torch; fi

step result 10 "$python" -m benchmarks.gpu.pipelines --merge "${parts[@]}" --output "$out"

# 4. four kernels under Nsight Compute
without_torch='import sys; sys.modules["torch"] = None
from condinst_infer.profiling.gpu import worker
sys.exit(worker.main())'
profiled=(
    "class_nms:class_nms times"
    "dynamic_mask_head_8_f16:dynamic_mask_head times"
    "paste_f16:paste times"
    "owners_of_things:panoptic_merge times"
)
for pair in "${profiled[@]}"; do
    kernel=${pair%%:*}
    if command -v ncu >/dev/null; then
        step "ncu-$kernel" 20 ncu --set full --clock-control none --target-processes all \
            --kernel-name "$kernel" --launch-skip 2 --launch-count 2 --kill yes \
            "$python" -c "$without_torch" "${pair#*:}" "${small[@]}"
    else
        missing "ncu-$kernel" ncu
    fi
done

# 5. an engine of the model that ships
if has tensorrt; then
    step engine-build 90 "$python" -m condinst_infer build condinst_infer/data/nuclei.onnx \
        -o "$out/nuclei.engine"
    if [[ -e $out/nuclei.engine ]]; then
        step engine-predict 20 "$python" -m condinst_infer predict "$out/nuclei.engine" \
            condinst_infer/data/nuclei.jpg -o "$out/predicted"
        step engine-bench 25 "$python" -m condinst_infer bench "$out/nuclei.engine" \
            --size 480x640 --repeats 50 -o "$out/engine-bench.json"
    fi
else
    missing engine-build tensorrt
fi

for name in "${only[@]}"; do
    grep -q -- "^$name " "$summary" 2>/dev/null && continue
    failed=1
    say "$name" "no such step"
done
say all "$([[ $failed -eq 0 ]] && echo ok || echo failed)" "$(now)"
finish
exit "$failed"
