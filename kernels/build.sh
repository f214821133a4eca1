#!/bin/bash
# Builds kernels/prebuilt/<op>.fatbin, which are committed and embedded, out of kernels/cuda/<op>.cu. The compiler comes
# from PyPI, pinned: its output is the same on every machine with the same g++ major version.
#   build.sh [OP...]      builds (all of them by default) and writes the list of digests
#   build.sh --check      builds beside and compares: fails if a committed fatbin is not what its source gives
#   build.sh --install    only installs the compiler
# Exit code 3: the compiler, or the g++ that it preprocesses with, is not there and cannot be fetched.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
version=13.0.3
gxx=12
cache=${TENON_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tenon}
toolkit=$cache/cuda-$version
nvcc=$toolkit/nvidia/cu13/bin/nvcc

install() {
  if [ -x "$nvcc" ]; then return; fi
  echo "nvcc $version: installing it from PyPI into $toolkit (105 MB, once)"
  # Beside and moved, so that an install that was cut off is not taken for one.
  rm -rf "$toolkit.part"
  if ! python3 -m pip install --quiet --no-compile --disable-pip-version-check --root-user-action ignore \
      --target "$toolkit.part" "cuda-toolkit[nvcc,cccl]==$version.0"; then
    echo "nvcc $version: PyPI cannot be reached, or pip is not there" >&2
    exit 3
  fi
  rm -rf "$toolkit"
  mv "$toolkit.part" "$toolkit"
}

# One line for each device: code for it, and PTX for those that come after.
targets=()
for sm in 80 86 89 90a 100f 120f; do targets+=("-gencode=arch=compute_$sm,code=sm_$sm"); done
targets+=(-gencode=arch=compute_80,code=compute_80)
# --fmad=false: a fused multiply-add is one that the source writes, so that two kernels that must agree to the bit do.
flags=(-std=c++17 -O3 --fmad=false -Werror all-warnings -Xptxas "-warn-spills,-warn-lmem-usage,-Werror"
  --compress-mode=size --fatbin "${targets[@]}")

build() { # op into
  # In the folder of the source: what the compiler writes down of a path is then the same everywhere.
  (cd "$here/cuda" && "$nvcc" "${flags[@]}" -t 2 "$1.cu" -o "$2/$1.fatbin") || { echo "$1.cu does not build" >&2; exit 1; }
}
ops() { (cd "$here/cuda" && ls -- *.cu | sed 's/\.cu$//' | LC_ALL=C sort); }

case ${1:-} in
  --install) install ;;
  --check)
    found=$(g++ -dumpversion 2>/dev/null | cut -d. -f1)
    if [ "$found" != "$gxx" ]; then
      echo "g++ ${found:-(none)} is here; the committed fatbins were made beside g++ $gxx, whose text nvcc compiles" >&2
      exit 3
    fi
    install
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    # What was compared before, by the digest of all that went into it, is not built again.
    known=${CARGO_TARGET_DIR:-$here/../target}/cuda-fatbins
    mkdir -p "$known"
    versions=$({ "$nvcc" --version; g++ --version; } | sha256sum)
    stale=0
    for op in $(ops); do
      digest=$({ echo "$versions"; cat "$0" "$here/cuda/$op.cu" "$here"/cuda/*.cuh "$here/prebuilt/$op.fatbin"; } | sha256sum | cut -c1-64)
      if [ -e "$known/$op-$digest" ]; then continue; fi
      build "$op" "$scratch"
      if cmp -s "$scratch/$op.fatbin" "$here/prebuilt/$op.fatbin"; then touch "$known/$op-$digest"; continue; fi
      echo "prebuilt/$op.fatbin is not what cuda/$op.cu gives: run kernels/build.sh $op" >&2
      stale=1
    done
    (cd "$here/prebuilt" && sha256sum --check --quiet SHA256SUMS) || stale=1
    committed=$(cd "$here/prebuilt" && ls -- *.fatbin | sed 's/\.fatbin$//' | LC_ALL=C sort)
    if [ "$committed" != "$(ops)" ]; then echo "prebuilt/ has other fatbins than cuda/ has sources" >&2; stale=1; fi
    exit $stale
    ;;
  -*) sed -n 2,8p "$0" >&2; exit 2 ;;
  *)
    install
    for op in ${*:-$(ops)}; do build "$op" "$here/prebuilt"; done
    cd "$here/prebuilt"
    LC_ALL=C sha256sum -- *.fatbin >SHA256SUMS
    echo "$(ls -- *.fatbin | wc -l) fatbins, $(cat -- *.fatbin | wc -c) bytes"
    ;;
esac
