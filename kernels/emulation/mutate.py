#!/usr/bin/env python3
"""Plants bugs in the CUDA kernels, one at a time, and demands that the emulated self-test catches each: by its values
under some schedule, by a check of the emulation, or under a sanitizer.

    mutate.py              all of them; a line each ("ok", "FAILED")
    mutate.py TEXT         those whose operation or description contains the text

What is planted is listed in mutants.py beside this file. A bug whose text is no longer in its file fails too: rewrite it.
Needs g++ and a built emulation's tests (`cargo test --test cuda_emulation`).
"""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutants import MUTANTS

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels" / "cuda"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
SCRATCH = TARGET / "cuda-mutants"
# A bug that makes a kernel wait for ever is caught by this.
TIMEOUT_S = 120
# How each run is made, the cheapest first: (sanitizer, schedules).
RUNS = [("", "0 1 2 3 4 5 6 7"), ("tsan", "1 6"), ("asan", "1")]


def test_binary():
    """The self-test's program, built as the stage builds it."""
    if given := os.environ.get("TENON_CUDA_TEST"):
        return given
    command = [os.environ.get("CARGO", "cargo"), "test", "--locked", "--workspace", "--test", "cuda_emulation", "--no-run"]
    out = subprocess.run(command + ["--message-format=json"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    messages = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    found = [m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "cuda_emulation"]
    return found[-1]


def runtime(sanitizer):
    out = subprocess.run(["g++", f"-print-file-name=lib{sanitizer}.so"], capture_output=True, text=True, check=True)
    return out.stdout.strip()


def build(library, kernels, sanitizer, ops):
    environment = dict(os.environ, KERNELS=str(kernels), SANITIZER=sanitizer, OPS=ops, JOBS="1")
    command = [str(ROOT / "kernels/emulation/build.sh"), str(library)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"does not build: {run.stderr.strip().splitlines()[:1]}")


def attempt(folder, op, sanitizer, schedules, binary):
    """None if the self-test passes; else how the bug showed."""
    library = folder / f"lib{sanitizer}"
    shutil.copytree(SCRATCH / f"base{sanitizer}", library)
    # What an operation loads, or else each of its cases fails without the bug.
    build(library, folder / "cuda", sanitizer, "linear linear_tall" if op == "linear" else op)
    environment = dict(
        os.environ,
        TENON_CUDA_EMULATION=str(library),
        TENON_CUDA_SCHEDULES=schedules,
        TENON_SELFTEST=f"{op}: ",
        ASAN_OPTIONS="detect_leaks=0:detect_stack_use_after_return=0",
        TSAN_OPTIONS="halt_on_error=1:report_thread_leaks=0:atexit_sleep_ms=0:suppressions="
        + str(ROOT / "kernels/emulation/tsan.supp"),
    )
    if sanitizer:
        environment["TENON_CUDA_PRELOAD"] = runtime(sanitizer)
    try:
        run = subprocess.run(
            [binary, "emulated::every_kernel"], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return "runs for ever"
    output = run.stdout + run.stderr
    if run.returncode == 0 and "1 passed" in output:
        return None
    if "no case is called" in output:
        raise RuntimeError("its operation has no cases")
    for mark in ("EMULATION:", "SUMMARY:", "MISS"):
        for line in output.splitlines():
            if mark in line:
                return " ".join(line[line.index(mark) :].split())
    return "the self-test fails"


def one(number, mutant, binary):
    op, file, old, new, what = mutant
    started = time.monotonic()
    folder = SCRATCH / str(number)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(KERNELS, folder / "cuda")
    try:
        path = folder / "cuda" / file
        text = path.read_text()
        if text.count(old) != 1:
            raise RuntimeError(f"its text is {text.count(old)} times in {file}, not once")
        path.write_text(text.replace(old, new))
        for sanitizer, schedules in RUNS:
            found = attempt(folder, op, sanitizer, schedules, binary)
            if found:
                by = f"{sanitizer}: " if sanitizer else ""
                return True, f"{what} ({time.monotonic() - started:.0f} s): {by}{found[:150]}"
        return False, f"{what}: NOT CAUGHT"
    except RuntimeError as error:
        return False, f"{what}: {error}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main():
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [(i, m) for i, m in enumerate(MUTANTS) if wanted in f"{m[0]}: {m[4]}"]
    if not chosen:
        sys.exit(f"no planted bug has `{wanted}` in its description")
    if not shutil.which("g++"):
        print("skipped planted bugs: there is no g++")
        return
    binary = test_binary()
    # What all of them share: the emulation without a kernel.
    for sanitizer, _ in RUNS:
        build(SCRATCH / f"base{sanitizer}", KERNELS, sanitizer, "none")
    missed = 0
    with ThreadPoolExecutor(max(2, len(os.sched_getaffinity(0)))) as pool:
        for mutant, (is_caught, line) in zip(chosen, pool.map(lambda c: one(*c, binary), chosen)):
            missed += not is_caught
            print(f"{'ok     ' if is_caught else 'FAILED '} {mutant[1][0]}: {line}", flush=True)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
