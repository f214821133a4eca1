#!/bin/bash
# Compares the shim's conversions between f32 and the small formats with NVIDIA's, which kernels/build.sh installs.
# Exit code 3: they are not there.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
toolkit=${TENON_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tenon}/cuda-13.0.3/nvidia/cu13
[ -d "$toolkit/include" ] || exit 3
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
g++ -std=c++20 -O1 -w -DNVIDIA -isystem "$toolkit/include" "$here/conversions.cpp" -o "$scratch/nvidia"
g++ -std=c++20 -O1 -w -march=native -I"$here" "$here/conversions.cpp" -o "$scratch/shim"
"$scratch/nvidia" >"$scratch/wanted"
"$scratch/shim" >"$scratch/got"
if ! cmp -s "$scratch/wanted" "$scratch/got"; then
  echo "the shim converts otherwise than NVIDIA's headers (pattern: bf16 f16 e4m3):" >&2
  diff "$scratch/wanted" "$scratch/got" | head -5 >&2
  exit 1
fi
echo "$(wc -l <"$scratch/got") conversions are NVIDIA's"
