"""tokens: a token has one reading, or it is refused."""

import base64
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from eidproxy.errors import Refusal
from eidproxy.inbound.http1 import parse_head
from eidproxy.tokens import Tokens, bearer_token, login_link, parse_base_url, parse_duration, qr_code

SECRET = "k" * 32
NOW = int(time.time())
LATER = NOW + 86_400  # longer than any suite runs
GOOD: dict[str, Any] = {"sub": "someone", "exp": LATER}
HEADER: dict[str, Any] = {"alg": "HS256", "typ": "JWT"}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(header: str | bytes, claims: str | bytes, secret: str = SECRET, digest: str = "sha256") -> str:
    """A token over any bytes, with a valid signature: what is refused is not refused for want of one."""
    parts = [b64(part.encode() if isinstance(part, str) else part) for part in (header, claims)]
    text = ".".join(parts)
    return f"{text}.{b64(hmac.digest(secret.encode(), text.encode(), digest))}"


def token(claims: Any = None, header: Any = None, **more: Any) -> str:
    return signed(json.dumps(HEADER if header is None else header), json.dumps({**GOOD, **(claims or {})}), **more)


def without(name: str) -> str:
    return signed(json.dumps(HEADER), json.dumps({key: value for key, value in GOOD.items() if key != name}))


def stray_bits() -> str:
    """The last character of the signature changed in bits that carry nothing: the same bytes in another spelling."""
    text = token()
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return text[:-1] + alphabet[alphabet.index(text[-1]) ^ 1]


BAD: dict[str, Callable[[], str]] = {
    "empty": lambda: "",
    "one_segment": lambda: "abc",
    "two_segments": lambda: token().rsplit(".", 1)[0],
    "four_segments": lambda: token() + ".abc",
    "five_segments_like_jwe": lambda: "a.b.c.d.e",
    "empty_signature": lambda: token().rsplit(".", 1)[0] + ".",
    "no_header": lambda: "." + token().split(".", 1)[1],
    "wrong_key": lambda: token(secret="x" * 32),
    "key_prefix": lambda: token(secret="k" * 31),
    "signature_cut": lambda: token()[:-2],
    "signature_longer": lambda: token() + "AA",
    "claims_changed": lambda: ".".join(
        [token().split(".")[0], b64(json.dumps({**GOOD, "sub": "root"}).encode()), token().split(".")[2]]
    ),
    "padded": lambda: token() + "=",
    "padded_segments": lambda: (
        ".".join(part + "=" * (-len(part) % 4) for part in token({"sub": "ab"}).split(".")) + "="
    ),
    "stray_bits": stray_bits,
    "standard_base64": lambda: token().replace("-", "+").replace("_", "/") + "+",
    "line_end": lambda: token() + "\n",
    "blank_inside": lambda: token().replace(".", ". ", 1),
    "leading_blank": lambda: " " + token(),
    "null_byte": lambda: token() + "\0",
    "not_ascii": lambda: token() + "é",
    "over_4_kib": lambda: token({"pad": "x" * 4096}),
    "one_mebibyte": lambda: "a" * 1_048_576,
    "alg_none": lambda: token(header={"alg": "none", "typ": "JWT"}),
    "alg_none_unsigned": lambda: f"{b64(json.dumps({'alg': 'none'}).encode())}.{b64(json.dumps(GOOD).encode())}.",
    "alg_None_case": lambda: token(header={"alg": "nOnE"}),
    "alg_lower_case": lambda: token(header={"alg": "hs256"}),
    "alg_hs384": lambda: token(header={"alg": "HS384"}, digest="sha384"),
    "alg_hs512": lambda: token(header={"alg": "HS512"}, digest="sha512"),
    "alg_rs256": lambda: token(header={"alg": "RS256"}),
    "alg_es256": lambda: token(header={"alg": "ES256"}),
    "alg_missing": lambda: token(header={"typ": "JWT"}),
    "alg_list": lambda: token(header={"alg": ["HS256"]}),
    "alg_null": lambda: token(header={"alg": None}),
    "alg_twice": lambda: signed('{"alg":"none","alg":"HS256"}', json.dumps(GOOD)),
    "typ_other": lambda: token(header={**HEADER, "typ": "at+jwt"}),
    "typ_lower_case": lambda: token(header={**HEADER, "typ": "jwt"}),
    "crit": lambda: token(header={**HEADER, "crit": ["exp"]}),
    "jku": lambda: token(header={**HEADER, "jku": "http://127.0.0.1/keys"}),
    "jwk": lambda: token(header={**HEADER, "jwk": {"kty": "oct", "k": b64(SECRET.encode())}}),
    "x5u": lambda: token(header={**HEADER, "x5u": "http://127.0.0.1/cert"}),
    "x5c": lambda: token(header={**HEADER, "x5c": ["AA"]}),
    "b64_false": lambda: token(header={**HEADER, "b64": False}),
    "cty": lambda: token(header={**HEADER, "cty": "JWT"}),
    "zip": lambda: token(header={**HEADER, "zip": "DEF"}),
    "kid_too_long": lambda: token(header={**HEADER, "kid": "k" * 129}),
    "kid_not_a_string": lambda: token(header={**HEADER, "kid": 1}),
    "header_array": lambda: signed("[]", json.dumps(GOOD)),
    "header_not_json": lambda: signed("alg=HS256", json.dumps(GOOD)),
    "header_not_utf8": lambda: signed(b'{"alg":"HS256","kid":"\xff"}', json.dumps(GOOD)),
    "claims_array": lambda: signed(json.dumps(HEADER), "[]"),
    "claims_string": lambda: signed(json.dumps(HEADER), '"sub"'),
    "claims_not_json": lambda: signed(json.dumps(HEADER), "sub=someone"),
    "claims_not_utf8": lambda: signed(json.dumps(HEADER), b'{"sub":"\xff","exp":9999999999}'),
    "claims_deep": lambda: signed(json.dumps(HEADER), "[" * 1200 + "]" * 1200),
    "sub_twice": lambda: signed(json.dumps(HEADER), f'{{"sub":"a","sub":"b","exp":{LATER}}}'),
    "exp_twice": lambda: signed(json.dumps(HEADER), f'{{"sub":"a","exp":{NOW - 600},"exp":{LATER}}}'),
    "no_exp": lambda: without("exp"),
    "no_sub": lambda: without("sub"),
    "expired": lambda: token({"exp": NOW - 1}),
    "expires_now": lambda: token({"exp": int(time.time())}),
    "exp_string": lambda: token({"exp": str(LATER)}),
    "exp_true": lambda: token({"exp": True}),
    "exp_null": lambda: token({"exp": None}),
    "exp_infinity": lambda: signed(json.dumps(HEADER), '{"sub":"a","exp":Infinity}'),
    "exp_1e999": lambda: signed(json.dumps(HEADER), '{"sub":"a","exp":1e999}'),
    "exp_nan": lambda: signed(json.dumps(HEADER), '{"sub":"a","exp":NaN}'),
    "exp_huge_negative": lambda: token({"exp": -(10**30)}),
    "exp_list": lambda: token({"exp": [LATER]}),
    "not_before_later": lambda: token({"nbf": LATER}),
    "nbf_string": lambda: token({"nbf": "0"}),
    "issued_later": lambda: token({"iat": LATER}),
    "iat_string": lambda: token({"iat": "0"}),
    "sub_empty": lambda: token({"sub": ""}),
    "sub_number": lambda: token({"sub": 1}),
    "sub_null": lambda: token({"sub": None}),
    "sub_list": lambda: token({"sub": ["someone"]}),
    "sub_control": lambda: token({"sub": "a\nb"}),
    "sub_bidi": lambda: token({"sub": "a\u202eb"}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_token_is_refused(name: str) -> None:
    with pytest.raises(Refusal) as refused:
        Tokens(SECRET, None, None, 0).check(BAD[name]().encode())
    assert refused.value.reason == "unauthorized"
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("claims", "header"),
    [
        ({}, None),
        ({}, {"alg": "HS256"}),
        ({}, {**HEADER, "kid": "k" * 128}),
        ({"exp": LATER + 0.5}, None),
        ({"nbf": NOW - 1, "iat": NOW - 1}, None),
        ({"aud": "somebody else"}, None),
        ({"sub": "홍길동"}, None),
    ],
)
def test_a_good_token_names_its_subject(claims: dict[str, Any], header: dict[str, Any] | None) -> None:
    assert Tokens(SECRET, None, None, 0).check(token(claims, header).encode()) == claims.get("sub", "someone")


@pytest.mark.parametrize("aud", ["other", ["eid", "other"], ["other"], [], "", None, 1, {"eid": 1}])
def test_another_audience_is_refused(aud: object) -> None:
    with pytest.raises(Refusal):
        Tokens(SECRET, "eid", None, 0).check(token({"aud": aud}).encode())


@pytest.mark.parametrize("iss", ["other", "", None, ["home"]])
def test_another_issuer_is_refused(iss: object) -> None:
    with pytest.raises(Refusal):
        Tokens(SECRET, None, "home", 0).check(token({"iss": iss}).encode())


def test_configured_audience_and_issuer_must_be_there() -> None:
    tokens = Tokens(SECRET, "eid", "home", 0)
    for claims in ({"aud": "eid"}, {"iss": "home"}, {}):
        with pytest.raises(Refusal):
            tokens.check(token(claims).encode())
    for aud in ("eid", ["eid"]):
        assert tokens.check(token({"aud": aud, "iss": "home"}).encode()) == "someone"


def test_leeway_is_none_unless_given() -> None:
    late = token({"exp": int(time.time()) - 5}).encode()
    with pytest.raises(Refusal):
        Tokens(SECRET, None, None, 0).check(late)
    assert Tokens(SECRET, None, None, 60).check(late) == "someone"


def test_an_issued_token_is_accepted_and_expires() -> None:
    tokens = Tokens(SECRET, "eid", "home", 0)
    issued = tokens.issue("me", 60)
    assert tokens.check(issued.encode()) == "me"
    with pytest.raises(Refusal):
        Tokens("y" * 32, "eid", "home", 0).check(issued.encode())
    with pytest.raises(Refusal):
        tokens.check(tokens.issue("me", -1).encode())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("1h", 3600), ("1.5h", 5400), ("90d", 7_776_000), ("2w", 1_209_600), ("5", 5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("url", "link"),
    [
        ("https://chat.example", "https://chat.example/chat#token=t"),
        ("https://chat.example/", "https://chat.example/chat#token=t"),
        ("https://chat.example/chat", "https://chat.example/chat#token=t"),
        ("http://[::1]:8790", "http://[::1]:8790/chat#token=t"),
        ("https://home.example/eid/chat/", "https://home.example/eid/chat#token=t"),
    ],
)
def test_the_token_stands_where_no_server_sees_it(url: str, link: str) -> None:
    assert login_link(parse_base_url(url), "t") == link


def test_a_code_brings_its_own_colours_to_a_terminal() -> None:
    """White on black, since a code on a light ground would be inverted."""
    plain, coloured = qr_code("x", colour=False), qr_code("x", colour=True)
    assert "\x1b" not in plain
    assert coloured == "\n".join(f"\x1b[97;40m{line}\x1b[0m" for line in plain.splitlines())


@pytest.mark.parametrize(
    ("fields", "token"),
    [
        (b"", b""),
        (b"Authorization: Bearer a.b.c\r\n", b"a.b.c"),
        (b"authorization: bEARER  a \r\n", b"a"),
        (b"Authorization: Bearer\r\n", b""),
        (b"Authorization: Basic a\r\n", b""),
        (b"Authorization: Bearer a\r\nAuthorization: Bearer a\r\n", b""),
    ],
)
def test_there_is_one_bearer_token_or_none(fields: bytes, token: bytes) -> None:
    assert bearer_token(parse_head(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + fields + b"\r\n")) == token
