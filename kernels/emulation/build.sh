#!/bin/bash
# Builds libcuda.so.1 for machines without a GPU out of kernels/cuda/*.cu and the shim beside this script, and
# FOLDER/cublaslt/libcublasLt.so.13, which only those find who look there. g++ alone.
#   build.sh [FOLDER]          into FOLDER (target/cuda-emulation)
#   SANITIZER=asan|tsan        instruments the kernels
#   KERNELS=FOLDER             other sources than kernels/cuda (the mutation script's)
#   OPS="NAME NAME"            only these operations (all of them)
#   JOBS=N                     compilers at once (2)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
kernels=${KERNELS:-$here/../cuda}
out=${1:-$here/../../target/cuda-emulation}
flags=(-std=c++20 -O2 -g1 -fPIC -fvisibility=hidden -march=native -ffp-contract=off -fno-strict-aliasing
  -Wall -Wextra -Wno-unknown-pragmas -Wno-unused-parameter -Wno-attributes -DCUDA_SHIM -I"$here" -I"$kernels")
instrumented=() told=()
case ${SANITIZER:-} in
  asan) instrumented=(-fsanitize=address "-fsanitize-sections=shared_*" -fno-omit-frame-pointer) told=(-DSHIM_ASAN) ;;
  tsan) instrumented=(-fsanitize=thread) told=(-DSHIM_TSAN) ;;
  "") ;;
  *) echo "SANITIZER is asan or tsan" >&2; exit 2 ;;
esac
objects=$out/objects
mkdir -p "$objects"
compiler=${CXX:-g++}

# Whatever a unit was built from: itself, headers, flags, compiler. An equal stamp means an equal object.
shim=$(cat "$here"/*.h "$here/build.sh" | sha256sum)
headers=$shim$(cat "$kernels"/*.cuh | sha256sum)
version=$("$compiler" --version | head -1)
compile() { # headers source object flags...
  local headers=$1 source=$2 object=$3; shift 3
  local stamp; stamp=$({ echo "$headers $version $*"; cat "$source"; } | sha256sum)
  if [ -f "$object" ] && [ "$(cat "$object.stamp" 2>/dev/null)" = "$stamp" ]; then return; fi
  "$compiler" "${flags[@]}" "$@" -c "$source" -o "$object" && echo "$stamp" >"$object.stamp"
}
pids=()
start() {
  compile "$@" & pids+=($!)
  if [ ${#pids[@]} -ge "${JOBS:-2}" ]; then wait "${pids[0]}"; pids=("${pids[@]:1}"); fi
}
units=("$objects/scheduler.o" "$objects/fake_libcuda.o")
start "$shim" "$here/scheduler.cpp" "$objects/scheduler.o" "${told[@]}"
start "$shim" "$here/fake_libcuda.cpp" "$objects/fake_libcuda.o" "${told[@]}"
start "$shim" "$here/fake_cublaslt.cpp" "$objects/fake_cublaslt.o"
for source in "$kernels"/*.cu; do
  op=$(basename "$source" .cu)
  if [ -n "${OPS:-}" ] && [[ " $OPS " != *" $op "* ]]; then continue; fi
  units+=("$objects/$op.o")
  start "$headers" "$source" "$objects/$op.o" -x c++ "${instrumented[@]}" "-DSHIM_SECTION=\"shared_$op\"" \
    "-DSHIM_FIRST=__start_shared_$op" "-DSHIM_LAST=__stop_shared_$op"
done
for pid in "${pids[@]}"; do wait "$pid"; done
# What a kernel calls SHARED must lie where the emulation fills it anew for each block; g++ drops the attribute, without a
# word, of what a template declares.
if [ -z "${SANITIZER:-}" ] && [ ${#units[@]} -gt 2 ]; then
  strays=$(objdump -t "${units[@]:2}" 2>/dev/null | awk '$0 ~ / O [.](bss|data|tbss)/ && $NF !~ /registration_|^_ZGV/ {print $NF}')
  if [ -n "$strays" ]; then
    echo "shared memory outside its section, or a global variable: $(c++filt <<<"$strays" | head -3)" >&2
    exit 1
  fi
fi
# Written beside and moved, so that a program that runs with the old one keeps it.
"$compiler" -shared "${instrumented[@]}" -Wl,-soname,libcuda.so.1 -Wl,-z,defs -o "$out/libcuda.so.new" "${units[@]}"
mv "$out/libcuda.so.new" "$out/libcuda.so.1"
# cudarc asks for libcuda.so first: without this a machine with a real driver would load that.
ln -sfn libcuda.so.1 "$out/libcuda.so"
mkdir -p "$out/cublaslt"
"$compiler" -shared -Wl,-soname,libcublasLt.so.13 -Wl,-z,defs -o "$out/cublaslt/libcublasLt.so.new" "$objects/fake_cublaslt.o" -ldl
mv "$out/cublaslt/libcublasLt.so.new" "$out/cublaslt/libcublasLt.so.13"
ln -sfn libcublasLt.so.13 "$out/cublaslt/libcublasLt.so"
