"""`hf-vse serve`."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec

from hf_vse.cli.command import (
    Result,
    add_model_options,
    at_least_zero,
    command_parser,
    model_options,
    positive,
    text_tower_of,
)

DESCRIPTION = """Serves a gallery over HTTP: /search, /health, /metrics (Prometheus) and /openapi.json. Queries that
arrive together are encoded and searched together. SIGTERM and Ctrl-C let requests that are there be answered. Of a
gallery with a text tower (`hf-vse index --fast_queries`) the model is opened when the first photograph comes."""
EXAMPLES = """
  hf-vse serve my_index                                        at http://127.0.0.1:8000
  hf-vse serve milvus://host:19530/photos --host 0.0.0.0 --token_env SEARCH_TOKEN
  hf-vse serve my_index --max_k 50 --queue 500 --timeout 3
  curl -G localhost:8000/search --data-urlencode "q=two dogs in the snow" --data-urlencode "where=year>=2020" -d k=5
  curl localhost:8000/search -F "q=at night" -F "q=with people" -F image=@beach.jpg"""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("serve", DESCRIPTION, EXAMPLES)
    parser.add_argument("gallery", help="what `hf-vse index` has written: a folder, milvus:// or postgresql://")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to be reached from other machines [127.0.0.1]")
    parser.add_argument("--port", type=at_least_zero, default=8000, help="0 for any that is free [8000]")
    parser.add_argument("--token_env", metavar="NAME", help="environment variable with the token that requests need")
    parser.add_argument("--model", help="the model that made the gallery [as the gallery names it]")
    add_model_options(parser)
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max_k", type=positive, default=100, help="results for each query [100]")
    limits.add_argument("--max_text", type=positive, default=1000, help="characters of a sentence [1000]")
    limits.add_argument("--max_queries", type=positive, default=32, help="sentences of one request [32]")
    limits.add_argument("--max_image_mb", type=positive, default=10, help="of a photograph [10]")
    limits.add_argument("--queue", type=positive, default=128, help="requests at a time; others get 429 [128]")
    limits.add_argument("--timeout", type=positive, default=10, help="seconds until a request is answered [10]")
    limits.add_argument("--batch", type=positive, default=64, help="queries that are answered together [64]")
    limits.add_argument("--wait_ms", type=at_least_zero, default=2, help="that a query waits for others [2]")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> Result | None:
    if missing := [name for name in ("starlette", "uvicorn", "python_multipart") if not find_spec(name)]:
        raise ImportError(f"serving needs {', '.join(missing)}: pip install 'hf_vse[serve]'")
    from hf_vse.search.locations import open_store
    from hf_vse.search.model import open_model
    from hf_vse.search.on_demand import ModelOnDemand
    from hf_vse.serve.app import make_app
    from hf_vse.serve.limits import Limits
    from hf_vse.serve.run import bound_socket, run_server

    token = token_of(arguments.token_env)
    limits = Limits(
        k=arguments.max_k,
        text=arguments.max_text,
        queries=arguments.max_queries,
        image_bytes=arguments.max_image_mb * 2**20,
        queue=arguments.queue,
        timeout=arguments.timeout,
    )
    gallery = open_store(arguments.gallery)
    items = len(gallery)
    with bound_socket(arguments.host, arguments.port) as place:  # a port that is taken is said before the model loads
        whole = partial(open_model, gallery, arguments.model, **model_options(arguments))
        tower = text_tower_of(gallery, arguments)
        encoder = whole() if tower is None else ModelOnDemand(tower, whole)
        wait = arguments.wait_ms / 1000
        app = make_app(gallery, encoder, limits, most=arguments.batch, wait=wait, token=token)
        host, port = place.getsockname()[:2]
        print(f"{items:,} items at http://{f'[{host}]' if ':' in host else host}:{port}", file=sys.stderr, flush=True)
        if token is None and arguments.host not in LOOPBACK:
            print("anyone who reaches this machine can search: --token_env NAME asks for a token", file=sys.stderr)
        run_server(app, place, limits.timeout)
    return None


def token_of(variable: str | None) -> str | None:
    if variable is None:
        return None
    token = os.environ.get(variable, "")
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"--token_env {variable}: set this variable to the token, ASCII without spaces")
    return token
