#!/usr/bin/env bash
# CIFAR-10 with VGG16 on one GPU, in calls of limited length: each goes on where the one before it was stopped.
#
#   tools/cifar10_on_gpu.sh FOLDER SECONDS [FLAGS OF dswag reproduce]
#
# FOLDER/results gets a small file for each result, to be copied into results/; FOLDER/work keeps weights and
# checkpoints (at most 20 GB, with one worker). Fewest epochs first; --only clients-2 or --quick do less.
set -euo pipefail
folder=$1
end=$((SECONDS + $2))
shift 2

reproduce() { # FOLDER OF RESULTS, WHAT...
    local results=$1
    shift
    local left=$((end - SECONDS))
    if ((left < 30)); then
        echo "time is up before dswag reproduce $*"
        exit 0
    fi
    local code=0
    timeout --signal=INT --kill-after=15 "$left" \
        "${PYTHON:-python3}" -m dswag reproduce "$@" --work "$folder/work" --output "$results" || code=$?
    if ((code == 124 || code == 130 || code == 137)); then
        echo "time is up within dswag reproduce $*"
        exit 0
    fi
    return "$code"
}

for clients in 2 4 8 1; do
    only=(--only "clients-$clients")
    reproduce "$folder/results" table-cifar10 "${only[@]}" "$@"
    reproduce "$folder/results/cifar10" fig5-right fig7 --dataset cifar10 "${only[@]}" "$@"
done
