"""Errors of the Hub and of the connection, each in one line with its remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN, with a token that may write"


def check_repo_id(repo_id: str) -> None:
    """Raises ValueError for a name that the Hub does not accept; makes no request."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise not_a_name(repo_id, error) from error


def not_a_name(repo_id: str, error: Exception) -> ValueError:
    return ValueError(f"repo_id={repo_id!r} is not a name for a repository, write org/name: {reason(error)}")


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Turns errors of the Hub or of the connection into one line.

    Raises:
        ValueError: no token, one that may not write there, or a name the Hub does not take.
        ConnectionError: an error that may not occur again when the command is repeated.
    """
    try:
        yield
    except Exception as error:
        clear = in_one_line(repo_id, error)
        if clear is None:
            raise
        raise clear from error


def in_one_line(repo_id: str, error: Exception) -> Exception | None:
    """The error to raise in its place; None for one that has nothing to do with the Hub."""
    if isinstance(error, HFValidationError):
        return not_a_name(repo_id, error)
    if isinstance(error, LocalTokenNotFoundError):
        return ValueError(f"cannot publish {repo_id}: you are not logged in; {LOG_IN}")
    failed = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error  # of an upload's thread
    if isinstance(failed, HfHubHTTPError) and failed.response is not None:
        if failed.response.status_code == 401:
            return ValueError(f"the Hub does not accept the token for {repo_id} (401); {LOG_IN}")
        if failed.response.status_code == 403:
            return ValueError(f"this token may not write to {repo_id} (403): check the organisation; {LOG_IN}")
    # the HTTP client of huggingface_hub, which is httpx under one name or another
    unreachable = isinstance(failed, HfHubHTTPError | ConnectionError) or type(failed).__module__.startswith("httpx")
    if not unreachable:
        return None
    return ConnectionError(
        f"publishing {repo_id} at {constants.ENDPOINT} did not finish ({reason(failed)}); the same command continues, "
        "files that have arrived are not sent again"
    )


def reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
