"""Answers: as JSON, as errors that OpenAI's clients know, and as the OpenAPI schema documents them."""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from hardwon.errors import ArtifactError, DataError, HardwonError, MissingExtra
from hardwon.serve import schemas
from hardwon.serve.batching import Unusable
from hardwon.serve.limits import Refused

log = logging.getLogger(__name__)
REASONS = {
    400: "A request of another form.",
    401: "No key, or a wrong one.",
    403: "Without a key, a request under another name than this machine's.",
    404: "No such model, or nothing that could answer this.",
    405: "Another method.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is not JSON, or is compressed.",
    422: "A picture that is damaged or too large, or something that the model does not read.",
    429: "Too many requests: try again after the seconds in Retry-After.",
    500: "A fault of the server.",
    503: "The server does not compute any more, or its index cannot be read.",
    504: "No answer in time.",
}


def as_json(value: Any) -> Response:
    """An answer of 200."""
    return Response(to_json(value), media_type="application/json")


def documented(reply: Any, *codes: int) -> dict[int | str, dict[str, Any]]:
    """Answers for the OpenAPI schema."""
    errors = {code: {"model": schemas.ErrorReply, "description": REASONS[code]} for code in codes}
    return {**errors, **({} if reply is None else {200: {"model": reply, "description": "The answer."}})}


def absent(error: Exception) -> str:
    """What is said of an item that is not there, or leads out of its folder by now, which the log alone tells."""
    log.info("an item was asked for: %s", error)
    return "the index has no such item, or it cannot be read any more"


def refusal(error: Refused) -> Response:
    """The answer to what is refused."""
    return Response(error.body, error.status, error.headers, "application/json")


def explained(error: Exception, path: str) -> Response:
    """The answer to a request that failed, whatever it was."""
    if isinstance(error, Refused):
        return refusal(error)
    if isinstance(error, (ValidationError, RequestValidationError)):
        return refusal(_invalid(error.errors()))
    if isinstance(error, (Unusable, HardwonError)):
        return refusal(_unusable(error, path))
    if isinstance(error, HTTPException):
        said = {404: "there is nothing at this address", 405: "this address takes another method"}
        code = "not_found" if error.status_code == 404 else None
        made = refusal(Refused(error.status_code, said.get(error.status_code, str(error.detail)), code=code))
        made.headers.update(error.headers or {})
        return made
    # Left to the server, it would close the connection under other requests of the client.
    log.error("a request to %s failed", path, exc_info=error)
    return refusal(Refused(500, "the server failed; its log says why", code="internal_error"))


def _unusable(error: Exception, path: str) -> Refused:
    """What a client is told of it: never where anything lies on this machine."""
    if isinstance(error, (ArtifactError, MissingExtra)):
        log.error("a request to %s failed", path, exc_info=error)
        return Refused(503, "the index cannot be read; the server's log says why", code="index_unavailable")
    if isinstance(error, DataError):  # what clients send has been refused before: this is about a file of the index
        log.warning("a request to %s failed", path, exc_info=error)
        return Refused(422, "an item of the index cannot be used; the server's log says why", code="unusable_item")
    return Refused(422, str(error), code="unusable_item")


def _invalid(errors: Sequence[Any]) -> Refused:
    first = max(errors, key=lambda each: len(each["loc"]))  # of several forms it is the one that fits furthest
    # Between the field and the position stand names of types, which say nothing to the client.
    field, *inner = [part for part in first["loc"] if part not in ("body", "query", "path")] or [""]
    where = str(field) + "".join(f"[{part}]" for part in inner if isinstance(part, int))
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        said = f"there is no field {str(first['loc'][-1])[:60]!r}"
    if first["type"] == "literal_error" and inner and isinstance(inner[-1], str):
        said = f"{inner[-1]}: {said}"
    return Refused(400, f"{where[:80]}: {said}" if where else said, where[:80] or None, "invalid")


async def _answered(request: Request, error: Exception) -> Response:
    return explained(error, request.scope["path"])


ANSWERS: dict[Any, Any] = dict.fromkeys((Refused, Unusable, HardwonError, RequestValidationError, HTTPException), _answered)
