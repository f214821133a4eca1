#!/bin/sh
# Everything on this machine's GPU, in eight minutes. Arguments go to the program: `./run.sh --help`.
here=$(cd "$(dirname "$0")" && pwd) || exit
exec "$here/cuda-bench" --peers "$here/peers.py" --json "${OUT:-.}/cuda.json" "$@"
