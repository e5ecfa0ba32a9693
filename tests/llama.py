"""A llama.cpp server as a process of its own: `python llama.py MODEL PORT`."""

import sys
import threading

if __name__ == "__main__":
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.port = sys.argv[1], int(sys.argv[2])
    params.n_ctx, params.n_parallel, params.warmup = 2048, 2, False
    params.cpuparams.n_threads, params.model_alias = 1, {"smollm2"}
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)  # noqa: T201
    threading.Event().wait()
