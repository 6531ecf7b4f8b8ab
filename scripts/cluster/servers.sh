#!/bin/bash
# The servers of a pool as `teacher.base_urls` wants them, once enough of them answer.
#
#   scripts/cluster/servers.sh FOLDER [AT_LEAST] [SECONDS]
#
# waits until AT_LEAST (1) of the URLs in FOLDER answer /health, SECONDS (3600) at most, and prints
# ["http://node1:8000/v1", "http://node2:8000/v1"]. Listed are all that are announced: a server
# that does not answer yet is taken into the pool when it does. Ends with 1 if there are too few.
set -euo pipefail
shopt -s nullglob

folder=${1:?the folder into which serve.sbatch writes URLs}
least=${2:-1}
patience=${3:-3600}

begin=$SECONDS
while true; do
    urls=()
    up=0
    for file in "$folder"/*.url; do
        url=$(cat "$file" 2>/dev/null) || continue # taken away meanwhile
        [[ -n "$url" ]] || continue
        urls+=("\"$url\"")
        if curl -fsS -m 5 -o /dev/null "${url%/v1}/health" 2>/dev/null; then up=$((up + 1)); fi
    done
    ((up >= least)) && break
    if ((SECONDS - begin >= patience)); then
        echo "only $up of the $least servers wanted answer after $patience s: see $folder" >&2
        exit 1
    fi
    sleep 5
done
echo "$up of ${#urls[@]} announced servers answer" >&2
joined=$(printf ', %s' "${urls[@]}")
echo "[${joined:2}]"
