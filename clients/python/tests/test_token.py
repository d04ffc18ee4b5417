"""Tests of the strict parsing, beyond the vectors."""

import json
import random
from base64 import urlsafe_b64encode
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from countersign import Demands, Inactive, InactiveReason
from countersign._clock import SettableClock, SystemClock
from countersign._keys import KeySet, decode_base64url
from countersign._local import Local, Rules
from countersign._token import _depth, _integer, _load, _without_depth, parse_uuid
from countersign.testing import ISSUER, Authority


def test_base64url_is_strict() -> None:
    assert decode_base64url("") == b""
    assert decode_base64url("-_8") == b"\xfb\xff"
    assert decode_base64url("YQ") == b"a"
    for text in ("A", "YR", "YQ==", "YQ=", "+/8", "Y Q", "YWJj\n", "YWI\u00e9", "YW.j", "====="):
        with pytest.raises(ValueError):  # noqa: PT011 (The message does not matter.)
            decode_base64url(text)


def test_numbers_are_those_of_the_service() -> None:
    assert _integer("12") == 12
    assert type(_integer("12")) is int
    assert type(_integer("-0")) is float
    assert type(_integer(str(2**63 - 1))) is int
    assert type(_integer(str(2**64))) is float
    with pytest.raises(ValueError, match="out of range"):
        _integer("9" * 400)


@pytest.mark.parametrize(
    "payload",
    [
        '{"a":NaN}',
        '{"a":1e400}',
        '{"a":{"b":1,"\\u0062":2}}',
        '{"a":"\\ud800"}',
        '{"a":' + "[" * 128 + "]" * 128 + "}",
        "[]",
    ],
)
def test_payloads_that_are_refused(payload: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        _load(payload)


def test_payloads_that_are_accepted() -> None:
    deepest = '{"a":' + "[" * 127 + "]" * 127 + "}"
    assert _depth(_load(deepest)) == 128
    assert _load('{"a":"\\ud83d\\ude00"}') == {"a": "\U0001f600"}
    many = json.dumps({"a": [[]] * 200})
    assert _load(many) == json.loads(many)


def value(dice: random.Random, depth: int) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: dice.choice([0, -1.5, 1e3, True, None, "a", '"\\\n', "]{", "\u00e9"])
    ]
    if depth < 6:
        kinds.append(lambda: [value(dice, depth + 1) for _ in range(dice.randrange(4))])
        kinds.append(lambda: {f"k{it}": value(dice, depth + 1) for it in range(dice.randrange(4))})
    return dice.choice(kinds)()


def test_a_deep_header_loses_its_depth_only() -> None:
    dice = random.Random(7)  # noqa: S311
    filler: list[list[Any]] = [[] for _ in range(60)]
    for _ in range(300):
        header = {"x": filler, "y": value(dice, 0), "alg": "EdDSA", "z": value(dice, 0)}
        text = json.dumps(header, indent=dice.choice([None, 2]))
        flat = json.loads(_without_depth(text))
        expected = {
            name: None if isinstance(member, list | dict) else member
            for name, member in header.items()
        }
        assert flat == expected
        # Whatever is not JSON is refused, as `json` refuses it.
        place = dice.randrange(len(text))
        damaged = text[:place] + dice.choice('[]{},:"1 x') + text[place + dice.randrange(2) :]
        try:
            json.loads(damaged)
        except ValueError:
            with pytest.raises(ValueError):  # noqa: PT011
                json.loads(_without_depth(damaged))
        else:
            json.loads(_without_depth(damaged))


def test_a_header_may_be_as_deep_as_a_token_is_long() -> None:
    text = '{"alg":"EdDSA","x":' + "[" * 3000 + "]" * 3000 + "}"
    assert json.loads(_without_depth(text)) == {"alg": "EdDSA", "x": None}


def test_a_uuid_has_only_one_spelling() -> None:
    text = "0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22"
    assert parse_uuid(text).hex() == text.replace("-", "")
    for wrong in (text.upper(), text.replace("-", ""), f"{{{text}}}", text + "00", text + "\n", ""):
        with pytest.raises(ValueError, match="canonical"):
            parse_uuid(wrong)


def test_a_signature_of_es256_has_only_one_length() -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    numbers = private.public_key().public_numbers()

    def encode(number: int) -> str:
        return urlsafe_b64encode(number.to_bytes(32, "big")).rstrip(b"=").decode()

    jwk = {"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "a"}
    jwk |= {"x": encode(numbers.x), "y": encode(numbers.y)}
    keys = KeySet.read(json.dumps({"keys": [jwk]}), ())
    assert keys is not None
    key = keys.keys["a"]
    r, s = decode_dss_signature(private.sign(b"message", ec.ECDSA(SHA256())))
    halves = [r.to_bytes(32, "big"), s.to_bytes(32, "big")]
    assert key.verify(b"".join(halves), b"message")
    assert not key.verify(b"".join(halves), b"other")
    for wrong in (
        halves[0] + b"\0" + halves[1],
        b"".join(halves) + b"\0",
        halves[0],
        b"",
        bytes(64),
    ):
        assert not key.verify(wrong, b"message")


def test_only_keys_with_a_known_algorithm_are_used() -> None:
    good = {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": "good"}
    good["x"] = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    # It is too short on purpose.
    weak = rsa.generate_private_key(65537, 1024).public_key().public_numbers()  # noqa: S505
    modulus = urlsafe_b64encode(weak.n.to_bytes(128, "big")).rstrip(b"=").decode()
    others: list[Any] = [
        {**good, "kid": "no-alg", "alg": None},
        {**good, "kid": "other-alg", "alg": "ES256"},
        {**good, "kid": "other-curve", "crv": "X25519"},
        {**good, "kid": "short", "x": "11qY"},
        {**good, "kid": 7},
        {"kty": "oct", "alg": "HS256", "kid": "shared", "k": "c2VjcmV0"},
        {"kty": "RSA", "alg": "RS256", "kid": "weak", "e": "AQAB", "n": modulus},
        "x",
    ]
    keys = KeySet.read(json.dumps({"keys": [*others, good]}), ["bad"])
    assert keys is not None
    assert set(keys.keys) == {"good"}
    assert keys.revoked == {"bad"}
    for text in ("{}", "", "[]", '{"keys":{}}', "[" * 100_000):
        assert KeySet.read(text, ()) is None


def test_a_verified_token_is_refused_once_its_key_is_revoked() -> None:
    authority = Authority()
    token = authority.token("alice")
    local = Local(SettableClock(SystemClock().wall()), 1 << 20)
    rules = Rules(issuer=ISSUER, max_lifetime=2**60, leeway=2**30, lease_margin=0)
    former = authority.verifier()._source.local
    assert former is not None
    good = former.copy.keys
    local.replace(good, rules).lease.take_for_ever()
    assert local.answer(token, Demands())
    # The key is still in the set, so its tokens are still in the cache.
    earlier = local.copy
    local.replace(KeySet(good.keys, ["testing"]), rules).lease.take_for_ever()
    assert local.copy.cache is earlier.cache
    assert local.answer(token, Demands()) == Inactive(InactiveReason.REVOKED)
    local.replace(KeySet({}, ()), rules).lease.take_for_ever()
    assert local.copy.cache is not earlier.cache
    assert local.answer(token, Demands()) == Inactive(InactiveReason.UNKNOWN_KEY)
