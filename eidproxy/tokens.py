"""The tokens of the chat surface: strict checks of a JWT, its issue, and the link that carries it.

PyJWT checks the signature and the times. What it tolerates (padding, odd numbers, repeated claims, header fields it
ignores) is refused before, so that a token has one reading. Every fault is the same `unauthorized`.
"""

import base64
import binascii
import io
import json
import math
import re
import time
from typing import Any
from urllib.parse import urlsplit

import jwt

from eidproxy.errors import Refusal
from eidproxy.inbound.http1 import RequestHead

_MAX_TOKEN_BYTES = 4096
"""A bound of the contract (9): a longer token is not parsed."""
_MAX_KID_BYTES = 128
"""A bound of the contract (9). `kid` never chooses a key."""
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_HEADER_FIELDS = frozenset({"alg", "typ", "kid"})
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhdw]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_MAX_SECONDS = 10 * 366 * 86_400.0
"""Ten years: more is a wrong unit, and no token can be revoked."""


def bearer_token(head: RequestHead) -> bytes:
    """Return the token of the only `Authorization: Bearer` header; empty, thus invalid, when there are none or two."""
    scheme, _, token = head.headers.get(b"authorization", b"").partition(b" ")
    return b"" if scheme.lower() != b"bearer" or b"authorization" in head.repeated else token.strip()


class Tokens:
    """The checker and issuer of tokens of one secret."""

    def __init__(self, secret: str, audience: str | None, issuer: str | None, leeway_seconds: float) -> None:
        self._secret = secret.encode()
        self._audience = audience
        self._issuer = issuer
        self._leeway_seconds = leeway_seconds

    def check(self, token: bytes) -> str:
        """Check a token and return its subject. Raises Refusal `unauthorized`."""
        if len(token) > _MAX_TOKEN_BYTES:
            raise Refusal("unauthorized")
        try:
            text = token.decode("ascii")
            if not _TOKEN.fullmatch(text):
                raise Refusal("unauthorized")
            header, claims, _ = (_decode_segment(part) for part in text.split("."))
            _check_header(_parse_object(header))
            _check_claims(_parse_object(claims), self._audience)
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
        subject: str = _parse_object(claims)["sub"]
        return subject

    def issue(self, subject: str, seconds: float) -> str:
        """Return a token that is valid for `seconds` from now."""
        now = int(time.time())
        claims: dict[str, Any] = {"sub": subject, "iat": now, "exp": now + math.ceil(seconds)}
        if self._audience is not None:
            claims["aud"] = self._audience
        if self._issuer is not None:
            claims["iss"] = self._issuer
        return jwt.encode(claims, self._secret, algorithm="HS256")


def _decode_segment(text: str) -> bytes:
    """Decode base64url without padding, in its one canonical spelling (RFC 4648, 3.5: no stray bits).

    Raises Refusal `unauthorized`.
    """
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise Refusal("unauthorized") from None
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != text:
        raise Refusal("unauthorized")
    return data


def _parse_object(data: bytes) -> dict[str, Any]:
    """Parse a segment as a JSON object. Raises ValueError, also for a repeated name, or Refusal for another type."""

    def refuse_repeated_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            raise ValueError
        return value

    def refuse_constant(_: str) -> Any:
        raise ValueError

    value = json.loads(data.decode("utf-8"), object_pairs_hook=refuse_repeated_names, parse_constant=refuse_constant)
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


# The link


def parse_duration(text: str) -> float:
    """Return the seconds of `90s`, `15m`, `1h`, `7d` or `2w`; a number alone is seconds. Raises ValueError."""
    match = _DURATION.fullmatch(text)
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < seconds <= _MAX_SECONDS:
        raise ValueError("must be a number with s, m, h, d or w, at most ten years, such as 90s, 15m, 1h or 90d")
    return seconds


def parse_base_url(url: str) -> str:
    """Return the address of an eidproxy or of its edge, without a `/` or `/chat` at its end.

    Raises ValueError.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    is_bare = not (parts.query or parts.fragment or "@" in parts.netloc or port == 0)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or not is_bare
        or not url.isprintable()
        or " " in url
    ):
        raise ValueError("must be http:// or https:// with a host, such as https://chat.example")
    return url.rstrip("/").removesuffix("/chat").rstrip("/")


def login_link(url: str, token: str) -> str:
    """Return a link that logs in. The token is the fragment, behind `#`, which a browser does not send."""
    return f"{url}/chat#token={token}"


def qr_code(text: str, *, colour: bool) -> str:
    """Return a QR code of half blocks for a terminal: a block is light, a blank is dark.

    With `colour` each line sets these colours. Without, a terminal with a light background shows the code inverted,
    which not every camera reads.
    """
    import segno

    out = io.StringIO()
    segno.make(text, micro=False, error="l", boost_error=False).terminal(out, border=2, compact=True)
    lines = out.getvalue().splitlines()
    return "\n".join(f"\x1b[97;40m{line}\x1b[0m" if colour else line for line in lines)
