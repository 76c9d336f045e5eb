"""Runs the application until a signal ends it."""

import signal
import socket

import uvicorn
from starlette.types import ASGIApp

HEAD_BYTES = 2**16  # of a request: a GET has its texts there


def bound_socket(host: str, port: int) -> socket.socket:
    """A place to listen at; nobody is let in yet. Port 0 is any free one.

    Raises:
        OSError: the port is taken, or the host is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol has to be said: else asyncio leaves Nagle's algorithm on, and an answer waits 40 ms for the client.
    place = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((host, port))
    except (OSError, OverflowError) as error:
        place.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(f"cannot listen at --host {host} --port {port} ({reason}): choose others") from error
    return place


def run_server(app: ASGIApp, place: socket.socket, timeout: float) -> None:
    """Returns after SIGTERM or an interrupt: nobody is let in any more, and requests that are there are answered.

    Args:
        timeout: seconds that these may take.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=round(timeout) + 1,
    )
    ends = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(each, lambda *_: None) for each in ends]  # uvicorn sends its signal again at its end
    try:
        uvicorn.Server(config).run(sockets=[place])
    finally:
        for each, handler in zip(ends, before, strict=True):
            signal.signal(each, handler)
        place.close()
