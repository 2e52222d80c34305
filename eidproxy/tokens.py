"""Who may use the chat surface: a JWT that could not have been meant otherwise.

PyJWT checks the signature and the times. What it takes beyond that (padding, odd numbers, repeated claims, header
fields it ignores) is refused before, so that a token has one reading. Every fault is the same `unauthorized`.
"""

import base64
import binascii
import json
import math
import re
import time
from typing import Any

import jwt

from eidproxy.errors import Refusal

_MAX_TOKEN_BYTES = 4096
_MAX_KID_BYTES = 128
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_HEADER_FIELDS = frozenset({"alg", "typ", "kid"})


class Tokens:
    """Checks tokens against one secret, and issues them for development."""

    def __init__(self, secret: str, audience: str | None, issuer: str | None, leeway_seconds: float) -> None:
        self._secret = secret.encode()
        self._audience = audience
        self._issuer = issuer
        self._leeway_seconds = leeway_seconds

    def check(self, token: bytes) -> str:
        """The subject of a token. Raises Refusal `unauthorized`."""
        if len(token) > _MAX_TOKEN_BYTES:
            raise Refusal("unauthorized")
        try:
            text = token.decode("ascii")
            if not _TOKEN.fullmatch(text):
                raise Refusal("unauthorized")
            header, claims, _ = (_segment(part) for part in text.split("."))
            _check_header(_object(header))
            _check_claims(_object(claims), self._audience)
            jwt.decode(
                text,
                self._secret,
                algorithms=["HS256"],
                issuer=self._issuer,
                leeway=self._leeway_seconds,
                options={
                    "require": ["exp", "sub", *(["iss"] if self._issuer is not None else [])],
                    "verify_aud": False,  # checked above, more strictly
                    "verify_iss": self._issuer is not None,
                },
            )
        # Whatever is wrong with a token, its bearer learns only that it is not accepted.
        except (jwt.PyJWTError, ValueError, RecursionError, OverflowError, TypeError):
            raise Refusal("unauthorized") from None
        subject: str = _object(claims)["sub"]
        return subject

    def issue(self, subject: str, seconds: float) -> str:
        """A token for development."""
        now = int(time.time())
        claims: dict[str, Any] = {"sub": subject, "iat": now, "exp": now + math.ceil(seconds)}
        if self._audience is not None:
            claims["aud"] = self._audience
        if self._issuer is not None:
            claims["iss"] = self._issuer
        return jwt.encode(claims, self._secret, algorithm="HS256")


def _segment(text: str) -> bytes:
    """Undo base64url without padding, in its one canonical spelling (RFC 4648, 3.5: no stray bits)."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise Refusal("unauthorized") from None
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != text:
        raise Refusal("unauthorized")
    return data


def _object(data: bytes) -> dict[str, Any]:
    """The JSON object a segment is, none of its names twice."""

    def closed(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            raise ValueError
        return value

    def refuse(_: str) -> Any:
        raise ValueError

    value = json.loads(data.decode("utf-8"), object_pairs_hook=closed, parse_constant=refuse)
    if not isinstance(value, dict):
        raise Refusal("unauthorized")
    return value


def _check_header(header: dict[str, Any]) -> None:
    kid = header.get("kid", "")
    if (
        header.keys() - _HEADER_FIELDS
        or header.get("alg") != "HS256"
        or header.get("typ", "JWT") != "JWT"
        or not isinstance(kid, str)
        or len(kid.encode()) > _MAX_KID_BYTES
    ):
        raise Refusal("unauthorized")


def _check_claims(claims: dict[str, Any], audience: str | None) -> None:
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject or not subject.isprintable():
        raise Refusal("unauthorized")
    for name in ("exp", "nbf", "iat"):
        if name in claims and (type(claims[name]) not in (int, float) or not math.isfinite(claims[name])):
            raise Refusal("unauthorized")
    if audience is not None and claims.get("aud") not in (audience, [audience]):
        raise Refusal("unauthorized")
