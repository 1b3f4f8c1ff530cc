"""A small language model behind an OpenAI-compatible server: llama.cpp, in a process of its own.

python tests/llama_server.py MODEL.gguf   # prints its address, ends with its standard input
"""

import sys

import xllamacpp

LONGEST_REPLY = 512  # tokens; a small model may repeat itself for ever
CONTEXT = 8192  # tokens; a task's prompt and steps take about two thousand


def main() -> None:
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx = CONTEXT
    params.n_parallel = 1
    params.n_predict = LONGEST_REPLY
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.sampling.temp = 0.0  # a run is like the one before
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
