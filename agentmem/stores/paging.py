"""Tokens that say where a page of sessions ended. Opaque to clients; they carry nothing that the client has not seen."""

from __future__ import annotations

import base64
import json
import math
from typing import NamedTuple

from agentmem.errors import InvalidInput


class Place(NamedTuple):
    """The last session of a page, in the order ``created_at`` descending, then ``id`` ascending."""

    created_at: float
    id: str


START = Place(math.inf, "")


def encode_place(place: Place) -> str:
    """Return ``place`` as URL-safe base64."""
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def decode_place(token: str) -> Place:
    """Return the place in ``token``, START for an empty one. Raises InvalidInput for what ``encode_place`` did not write."""
    if not token:
        return START
    try:
        created_at, session_id = json.loads(base64.b64decode(token.encode(), altchars=b"-_", validate=True))
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidInput("page_token was not returned by an earlier list call") from error
    if not isinstance(created_at, float) or not isinstance(session_id, str):
        raise InvalidInput("page_token was not returned by an earlier list call")
    return Place(created_at, session_id)
