"""Measures llama.cpp through the low-level interface of llama-cpp-python, told line by line what to do, so that its runs
can be interleaved with others'. A request and its answer are one line of JSON each. Started by `cargo xtask bench`."""

import ctypes
import json
import sys
import time

import llama_cpp

FTYPES = {
    "bf16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
    "f16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
}
CONTEXT_TOKENS_SPARE = 32


@llama_cpp.llama_log_callback
def silent(_level, _text, _data):
    """llama.cpp writes pages about itself."""


class Model:
    """A file, and a context for each number of sequences."""

    def __init__(self, path):
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise ValueError(f"llama.cpp cannot load {path}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.contexts = {}

    def context(self, sequences, tokens_each, rows, threads):
        """One with at least this room, empty. Batches of up to `rows` tokens go through it in one piece of at most 512, as
        llama.cpp's own benchmark sets it."""
        key = (sequences, tokens_each, rows, threads)
        if key not in self.contexts:
            params = llama_cpp.llama_context_default_params()
            # Each sequence's share is rounded up to a multiple of 256 by llama.cpp itself.
            share = -(-(tokens_each + CONTEXT_TOKENS_SPARE) // 256) * 256
            params.n_ctx = share * sequences
            params.n_batch = max(rows, 512)
            params.n_ubatch = 512
            params.n_seq_max = sequences
            params.n_threads = threads
            params.n_threads_batch = threads
            context = llama_cpp.llama_init_from_model(self.model, params)
            if not context:
                raise ValueError(f"llama.cpp makes no context of {params.n_ctx} tokens")
            batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)
            self.contexts[key] = (context, batch)
        context, batch = self.contexts[key]
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        return context, batch

    def token(self, number):
        """An ordinary token; which one changes nothing."""
        return 1000 + number * 7919 % (self.vocabulary - 1000)

    def fill(self, batch, rows):
        """`rows`: (position, sequence, wants logits)."""
        batch.n_tokens = len(rows)
        for index, (position, sequence, wanted) in enumerate(rows):
            batch.token[index] = self.token(position * 31 + sequence * 17)
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = wanted

    def prefill(self, tokens, threads):
        """Seconds for a prompt of so many tokens, the logits of its last row included."""
        context, batch = self.context(1, tokens, tokens, threads)
        self.fill(batch, [(position, 0, position == tokens - 1) for position in range(tokens)])
        started = time.perf_counter()
        decode(context, batch)
        return time.perf_counter() - started

    def decode(self, sequences, context_tokens, steps, threads):
        """Seconds for so many steps of one token for each sequence, with the logits of all, after a short context."""
        rows = max(sequences, context_tokens)
        context, batch = self.context(sequences, context_tokens + steps + 1, rows, threads)
        for sequence in range(sequences):
            self.fill(batch, [(position, sequence, False) for position in range(context_tokens)])
            decode(context, batch)
        seconds = 0.0
        # The first step is not counted: the other side's is not either.
        for step in range(steps + 1):
            self.fill(batch, [(context_tokens + step, sequence, True) for sequence in range(sequences)])
            started = time.perf_counter()
            decode(context, batch)
            seconds += time.perf_counter() - started if step else 0.0
        return seconds


def decode(context, batch):
    if llama_cpp.llama_decode(context, batch) != 0:
        raise ValueError("llama_decode failed")
    llama_cpp.llama_synchronize(context)


def quantize(source, target, ftype):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FTYPES[ftype]
    params.allow_requantize = True
    params.nthread = 2
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)) != 0:
        raise ValueError(f"llama.cpp cannot write {target}")


def answer(models, request):
    todo = request["do"]
    if todo == "quantize":
        quantize(request["from"], request["to"], request["ftype"])
        return {}
    if todo == "open":
        models[request["name"]] = Model(request["path"])
        return {}
    if todo == "prefill":
        return {"seconds": models[request["name"]].prefill(request["tokens"], request["threads"])}
    if todo == "decode":
        model = models[request["name"]]
        return {"seconds": model.decode(request["batch"], request["context"], request["steps"], request["threads"])}
    raise ValueError(f"`{todo}` is not known")


def main():
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    models = {}
    info = llama_cpp.llama_print_system_info().decode()
    print(json.dumps({"version": llama_cpp.__version__, "system": info}), flush=True)
    for line in sys.stdin:
        try:
            result = answer(models, json.loads(line))
        except Exception as error:  # what went wrong is the answer
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
