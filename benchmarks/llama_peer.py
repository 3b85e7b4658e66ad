"""llama.cpp decoding many sequences at once, for `rollouts.py --llama-python`; run by a Python with llama-cpp-python.

    PYTHON benchmarks/llama_peer.py MODEL.gguf THREADS ROWS CELLS unified|separate

One JSON list a line comes in; the answer tells the `seconds` that it took here, and to `feed` the most likely next
`tokens`. CELLS is what one row may cache. Knows nothing of this project.

    ["prefix", [ids]]                    all rows are empty, and begin with this text
    ["feed", [cached, [ids]], ...]       row by row, behind so many tokens after the prefix
    ["move", [sources], [targets]]       what some rows have cached, to the places of others
"""

import json
import sys
import time

import llama_cpp as cpp
import numpy as np

TOGETHER = 8192  # tokens of one llama_decode, which splits them further


class Decoder:
    """A context of `rows` sequences, and one more that keeps the prefix; their KV cells are one buffer or separate."""

    def __init__(self, model: str, threads: int, rows: int, cells: int, unified: bool):
        loaded = cpp.llama_model_load_from_file(model.encode(), cpp.llama_model_default_params())
        params = cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = (rows + 1) * cells, rows + 1, unified
        params.n_batch, params.n_threads, params.n_threads_batch = TOGETHER, threads, threads
        self.context, self.rows = cpp.llama_init_from_model(loaded, params), rows
        self.memory, self.batch = cpp.llama_get_memory(self.context), cpp.llama_batch_init(TOGETHER, 0, 1)
        self.vocabulary = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(loaded))

    def prefix(self, prefix: list[int]) -> None:
        cpp.llama_memory_clear(self.memory, True)
        self.offset, self.cached = len(prefix), [0] * self.rows
        self._decode([(self.rows, 0, prefix)])
        for row in range(self.rows):
            cpp.llama_memory_seq_cp(self.memory, self.rows, row, -1, -1)

    def feed(self, *chains: tuple[int, list[int]]) -> list[int]:
        for row, (cached, tokens) in enumerate(chains):
            if cached < self.cached[row]:  # another chain takes the row
                cpp.llama_memory_seq_rm(self.memory, row, self.offset + cached, -1)
            self.cached[row] = cached + len(tokens)
        return self._decode([(row, self.offset + cached, tokens) for row, (cached, tokens) in enumerate(chains)])

    def move(self, sources: list[int], targets: list[int]) -> None:
        for source, target in zip(sources, targets, strict=True):
            cpp.llama_memory_seq_rm(self.memory, target, -1, -1)
            cpp.llama_memory_seq_cp(self.memory, source, target, -1, -1)
            self.cached[target] = self.cached[source]

    def _decode(self, parts: list[tuple[int, int, list[int]]]) -> list[int]:
        """Tokens of some sequences, from a position on; the most likely token after each part."""
        batch, count, last = self.batch, 0, []
        for sequence, start, tokens in parts:
            for position, token in enumerate(tokens, start):
                batch.token[count], batch.pos[count], batch.logits[count] = token, position, False
                batch.n_seq_id[count], batch.seq_id[count][0] = 1, sequence
                count += 1
            batch.logits[count - 1] = True
            last.append(count - 1)
        batch.n_tokens = count
        if failed := cpp.llama_decode(self.context, batch):
            raise SystemExit(f"llama_decode failed with {failed}")
        logits = (cpp.llama_get_logits_ith(self.context, index) for index in last)
        return [int(np.ctypeslib.as_array(row, (self.vocabulary,)).argmax()) for row in logits]


if __name__ == "__main__":
    silent = cpp.llama_log_callback(lambda *_: None)  # it tells much of itself
    cpp.llama_log_set(silent, None)
    cpp.llama_backend_init()
    decoder = Decoder(sys.argv[1], *map(int, sys.argv[2:5]), unified=sys.argv[5] == "unified")
    for line in sys.stdin:
        name, *values = json.loads(line)
        started = time.perf_counter()
        tokens = getattr(decoder, name)(*values)
        print(json.dumps({"tokens": tokens, "seconds": time.perf_counter() - started}), flush=True)
