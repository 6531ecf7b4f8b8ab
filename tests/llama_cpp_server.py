"""Ask llama.cpp about a GGUF file: `python tests/llama_cpp_server.py FILE < requests > answers`.

Runs in whatever interpreter has `xllamacpp` (prebuilt llama.cpp for Python). Requests are JSON
lines [path, body] of llama.cpp's own HTTP server, answers JSON lines.
"""

from __future__ import annotations

import json
import sys
import urllib.request


def main(model: str) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = 512
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = False
    server = xllamacpp.Server(params)
    for line in sys.stdin:
        path, body = json.loads(line)
        request = urllib.request.Request(
            server.listening_address + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as reply:
            print(json.dumps(json.load(reply)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
