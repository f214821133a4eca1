"""The bugs that mutate.py plants: (operation, file, text that is there once, what replaces it, what is wrong then)."""

MUTANTS = [
    ("rms_norm", "common.cuh", "  __syncthreads();\n  float sum = scratch[0];", "  float sum = scratch[0];", "no barrier before a block's sum is read"),
    ("rms_norm", "common.cuh", "for (int offset = 16; offset; offset >>= 1) value += ", "for (int offset = 8; offset; offset >>= 1) value += ", "a butterfly over half a warp"),
    ("rms_norm", "common.cuh", "for (int warp = 1; warp < WARPS; warp++)", "for (int warp = 1; warp < WARPS - 1; warp++)", "the last warp's sum is forgotten"),
    ("rms_norm", "rms_norm.cu", "if (row >= *rows) return;", "if (row > *rows) return;", "one row past the last is written"),
    ("rms_norm", "rms_norm.cu", "const unsigned quads = width / 4;", "const unsigned quads = width / 4 + 1;", "reads and writes past the row"),
    ("rms_norm", "rms_norm.cu", "SHARED float scratch[THREADS / WARP];", "SHARED float scratch[THREADS / WARP - 1];", "shared memory one short"),
    ("rms_norm", "rms_norm.cu", "    values[i] = v;\n", "", "the sum is not kept in the stream"),
    ("rms_norm", "rms_norm.cu", "sum / (float)width + epsilon", "sum / (float)THREADS + epsilon", "the mean over another width"),
]
