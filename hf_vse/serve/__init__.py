"""A gallery over HTTP.

What other rooms use:

- `app`: `make_app`, the ASGI application over a gallery and its encoder
- `limits`: `Limits`, what a request may ask for
- `run`: `bound_socket` and `run_server`, the application until a signal ends it

`requests` reads a request, `batching` puts concurrent queries together, `answers` encodes and searches them, `metrics`
counts, `openapi` describes it all.
"""
