"""What goes wrong with a request, as HTTP statuses and bodies in OpenAI's form."""

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from starlette.responses import JSONResponse

from ..config import SamplingParams
from ..errors import CapacityError, ConfigError, PromptError, ScoutError

KINDS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    413: "RequestTooLargeError",
    429: "RateLimitError",
    499: "ClientClosedRequestError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}
SAYS = re.compile(rf"\w+(?==)|(?:{'|'.join(item.name for item in fields(SamplingParams))})\b")
"""How an error of a setting begins: with its name."""
FIELDS = {"json_schema": "response_format"}
"""Fields of requests, by the settings that have other names."""


class ApiError(ScoutError):
    """A request that gets an error.

    status: the HTTP status.   param: the field of the request that is at fault, if one is.   headers: of the response.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.headers = dict(headers or {})


def refused(message: str, param: str | None = None) -> ApiError:
    """A request that nobody can answer as it is."""
    return ApiError(400, message, param)


@contextmanager
def blamed(param: str) -> Generator[None, None, None]:
    """What is wrong with a prompt in here is the fault of this field of the request."""
    try:
        yield
    except PromptError as error:
        raise refused(str(error), param) from error


def api_error(error: ScoutError, *, begun: bool = False) -> ApiError:
    """An error of the engine, with its status.   begun: whether the engine had accepted the request."""
    if isinstance(error, ApiError):
        return error
    asked = isinstance(error, ConfigError | PromptError) or (isinstance(error, CapacityError) and not begun)
    match = SAYS.match(str(error))
    if asked:
        return refused(str(error), FIELDS.get(match[0], match[0]) if match else None)
    return ApiError(503 if isinstance(error, CapacityError) else 500, str(error))


def error_body(error: ApiError) -> dict[str, Any]:
    """The error as clients of OpenAI read it."""
    kind = KINDS.get(error.status, KINDS[400 if error.status < 500 else 500])
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.status}}


def error_response(error: ApiError) -> JSONResponse:
    """The whole response."""
    return JSONResponse(error_body(error), error.status, error.headers)
