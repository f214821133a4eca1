"""The same work as `lora_alone.rs` and `limits.rs` in PyTorch and Triton: reads a JSON question a line, answers with a line.

All times are of one layer, of a CUDA graph of all layers where it can be recorded, in seconds. Needs torch with a device;
without, the first line says why. Triton is optional.
"""

import json
import sys

try:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no CUDA device")
except Exception as error:  # whatever a broken installation throws
    print(json.dumps({"error": f"torch: {error}"}), flush=True)
    sys.exit(0)

VERSIONS = {"torch": torch.__version__, "cuda": torch.version.cuda}
try:
    import triton
    import triton.language as tl

    VERSIONS["triton"] = triton.__version__

    @triton.jit
    def shrink_kernel(x, a, t, users, inputs, RANK: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr):
        row, part = tl.program_id(0), tl.program_id(1)
        user = tl.load(users + row).to(tl.int64)
        ranks = tl.arange(0, RANK)
        total = tl.zeros((RANK,), dtype=tl.float32)
        for first in range(part * BLOCK, inputs, PARTS * BLOCK):
            at = first + tl.arange(0, BLOCK)
            values = tl.load(x + row * inputs + at, mask=at < inputs, other=0.0).to(tl.float32)
            factors = tl.load(
                a + user * RANK * inputs + ranks[:, None] * inputs + at[None, :], mask=(at < inputs)[None, :], other=0.0
            )
            total += tl.sum(factors.to(tl.float32) * values[None, :], axis=1)
        tl.store(t + (part * tl.num_programs(0) + row) * RANK + ranks, total)

    @triton.jit
    def expand_kernel(y, b, t, users, outputs, RANK: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr):
        row, tile = tl.program_id(0), tl.program_id(1)
        user = tl.load(users + row).to(tl.int64)
        ranks = tl.arange(0, RANK)
        values = tl.zeros((RANK,), dtype=tl.float32)
        for part in range(PARTS):
            values += tl.load(t + (part * tl.num_programs(0) + row) * RANK + ranks)
        at = tile * BLOCK + tl.arange(0, BLOCK)
        inside = at < outputs
        factors = tl.load(b + user * outputs * RANK + at[:, None] * RANK + ranks[None, :], mask=inside[:, None], other=0.0)
        added = tl.sum(factors.to(tl.float32) * values[None, :], axis=1)
        place = y + row * outputs + at
        tl.store(place, tl.load(place, mask=inside) + added, mask=inside)

except Exception as error:
    triton = None
    VERSIONS["triton"] = f"absent: {error}"

REPEATS = 4


def first_line(error):
    """CUDA's errors have several."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def seconds(work):
    """Of `work` on the device, once."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def recorded(work):
    """`work` as a graph, or itself where it cannot be one."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay
    except Exception as error:
        print(f"no graph: {first_line(error)}", file=sys.stderr)
        return work


class Lora:
    """A case with its works: `loop`, and `triton` if that is there."""

    def __init__(self, rows, inputs, outputs, adapters, layers, rank, users):
        def values(*shape):
            return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) / 64

        self.layers = layers
        x, y = values(rows, inputs), torch.zeros(rows, outputs, device="cuda")
        a = [values(adapters, rank, inputs) for _ in range(layers)]
        b = [values(adapters, outputs, rank) for _ in range(layers)]
        runs, first = [], 0
        for row in range(1, rows + 1):
            if row == rows or users[row] != users[first]:
                runs.append((first, row, users[first]))
                first = row

        def loop():
            for layer in range(layers):
                for start, end, user in runs:
                    y[start:end] += (x[start:end] @ a[layer][user].T) @ b[layer][user].T

        self.works, self.why = {"loop": recorded(loop)}, None
        if triton is None:
            self.why = VERSIONS["triton"]
            return
        index = torch.tensor(users, device="cuda", dtype=torch.int32)
        best = None
        for parts, block, tile in [(4, 256, 128), (8, 128, 128), (8, 256, 256), (16, 128, 64)]:
            t = torch.zeros(parts, rows, rank, device="cuda")

            def work(parts=parts, block=block, tile=tile, t=t):
                for layer in range(layers):
                    shrink_kernel[(rows, parts)](x, a[layer], t, index, inputs, RANK=rank, BLOCK=block, PARTS=parts)
                    grid = (rows, triton.cdiv(outputs, tile))
                    expand_kernel[grid](y, b[layer], t, index, outputs, RANK=rank, BLOCK=tile, PARTS=parts)

            try:
                self.check(work, x, y, a, b, users)
                replay = recorded(work)
                replay()
                took = min(seconds(replay) for _ in range(3))
            except Exception as error:
                self.why = f"triton: {first_line(error)}"[:300]
                continue
            if best is None or took < best[0]:
                best = (took, replay)
        if best is not None:
            self.works["triton"] = best[1]

    @staticmethod
    def check(work, x, y, a, b, users):
        """A wrong peer is no peer: y after `work` against the sum of all layers in f32."""
        y.zero_()
        work()
        users = torch.tensor(users, device="cuda")
        want = torch.zeros_like(y)
        for factors_a, factors_b in zip(a, b):
            t = torch.einsum("ri,rki->rk", x.float(), factors_a[users].float())
            want += torch.einsum("rk,rok->ro", t, factors_b[users].float())
        apart = (y - want).abs().max().item()
        size = want.abs().max().item()
        y.zero_()
        if not apart <= 1e-3 * size + 1e-6:
            raise RuntimeError(f"wrong by {apart} of {size}")

    def times(self):
        def repeated(work):
            def all_of_them():
                for _ in range(REPEATS):
                    work()

            return all_of_them

        return {name: seconds(repeated(work)) / (REPEATS * self.layers) for name, work in self.works.items()}


CASES = {}


def lora(question):
    key = json.dumps(question)
    if key not in CASES:
        CASES.clear()
        torch.cuda.empty_cache()
        CASES[key] = Lora(**question)
        CASES[key].times()
    return {**CASES[key].times(), "why": CASES[key].why}


def product(size):
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) / 64 for _ in range(2))
    for _ in range(5):
        left @ right
    times = sorted(seconds(lambda: left @ right) for _ in range(20))
    return {"seconds": times[2], "versions": VERSIONS}


print(json.dumps(VERSIONS), flush=True)
for line in sys.stdin:
    try:
        question = json.loads(line)
        answer = lora(question["lora"]) if "lora" in question else product(question["product"])
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"[:500]}
    print(json.dumps(answer), flush=True)
