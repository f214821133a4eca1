"""peers.py without a GPU: its loop on CPU tensors, and its Triton kernels in Triton's interpreter, which it compares with f32
itself. Needs torch and triton; by hand, as CI has neither. What needs a device (events, streams, graphs) is stood in for.

    python3 peers_on_cpu.py
"""

import contextlib
import io
import json
import os
import runpy
import sys
import time
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
import torch


class Event:
    def __init__(self, enable_timing=False):
        self.time = 0.0

    def record(self):
        self.time = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return (end.time - self.time) * 1e3


class Stream:
    def wait_stream(self, other):
        pass


class Graph:
    """No recording: what is asked of it fails, so that peers.py runs the work itself."""

    def __init__(self):
        raise RuntimeError("no device records here")


def on_cpu(make):
    return lambda *arguments, device=None, **others: make(*arguments, **others)


for name in ("randn", "zeros", "tensor"):
    setattr(torch, name, on_cpu(getattr(torch, name)))
torch.cuda.is_available = lambda: True
torch.cuda.Event, torch.cuda.Stream, torch.cuda.current_stream, torch.cuda.CUDAGraph = Event, Stream, Stream, Graph
torch.cuda.stream = lambda stream: contextlib.nullcontext()
torch.cuda.synchronize = torch.cuda.empty_cache = lambda: None


def answers(questions, source):
    """What a peers.py with this text answers, line by line; the first line is its versions."""
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"peers-{os.getpid()}.py"
    folder.write_text(source)
    stdin, sys.stdin = sys.stdin, io.StringIO("\n".join(questions))
    try:
        with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()):
            runpy.run_path(str(folder))
    finally:
        sys.stdin = stdin
        folder.unlink()
    return [json.loads(line) for line in said.getvalue().splitlines()]


def main():
    source = Path(__file__).with_name("peers.py").read_text()
    case = {"rows": 8, "inputs": 96, "outputs": 200, "adapters": 4, "layers": 2, "rank": 16, "users": [0, 0, 1, 2, 2, 3, 0, 1]}
    one = {"rows": 1, "inputs": 64, "outputs": 32, "adapters": 1, "layers": 1, "rank": 8, "users": [0]}
    lines = [json.dumps({"lora": case}), json.dumps({"lora": one}), '{"product": 64}', '{"lora": {"rows": 1}}', "{}", "no JSON"]
    versions, several, single, product, *wrong = answers(lines, source)
    print(json.dumps(versions))
    for answer in (several, single):
        assert answer["loop"] > 0 and answer["triton"] > 0 and answer["why"] is None, answer
    assert product["seconds"] > 0 and product["versions"] == versions, product
    assert len(wrong) == 3 and all("error" in answer for answer in wrong), wrong
    # A wrong peer is no peer.
    for old, new in [
        ("first in range(part * BLOCK, inputs", "first in range(part * BLOCK + BLOCK, inputs"),
        ("b + user * outputs * RANK", "b"),
        ("values += tl.load(t + (part", "values = tl.load(t + (part"),
    ]:
        assert source.count(old) == 1, old
        (_, answer) = answers(lines[:1], source.replace(old, new))
        assert "triton" not in answer and "wrong by" in answer["why"], (old, answer)
    print("ok: loop and kernels agree, and three that are wrong are found")


main()
