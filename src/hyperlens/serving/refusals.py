"""What a server refuses, and how it says so: in the form that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hyperlens.errors import HyperLensError, InputError, is_memory_error

CODES = {
    400: ("invalid_request_error", None),
    401: ("authentication_error", "invalid_api_key"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "queue_full"),
    500: ("server_error", "internal_error"),
    503: ("server_error", "unavailable"),
}
"""Status → type and usual code of an error."""


class Refusal(HyperLensError):
    """What a server does not do for a client: an HTTP `status`, one sentence, and which field of the request it is about."""

    def __init__(
        self, status: int, sentence: str, param: str | None = None, code: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    def describe(self) -> dict[str, Any]:
        """What stands under "error"."""
        kind, usual = CODES.get(self.status, CODES[400 if self.status < 500 else 500])
        return {"message": str(self), "type": kind, "param": self.param, "code": self.code or usual}

    @property
    def headers(self) -> Mapping[str, str]:
        """What the answer's head says of it."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def describe_refusal(status: int, sentence: str) -> dict[str, Any]:
    """The body of a refusal that is about no field: `{"error": {"message", "type", "param", "code"}}`."""
    return {"error": Refusal(status, sentence).describe()}


def explain_failure(error: Exception) -> Refusal | None:
    """What a client is told of an error that stopped its answer; None where it is a bug of ours, about which it is told
    nothing."""
    if isinstance(error, Refusal):
        return error
    if is_memory_error(error):
        return Refusal(500, "memory did not suffice for this request; send a shorter one", code="out_of_memory")
    if isinstance(error, HyperLensError):
        return Refusal(400, str(error)) if isinstance(error, InputError) else Refusal(500, _keep_what_is(error))
    return None


def _keep_what_is(error: HyperLensError) -> str:
    """What an error says, without its advice, which is for who runs the server."""
    return f"{str(error).partition(';')[0]}; nothing is wrong with the request"
