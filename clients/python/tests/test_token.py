"""Tests of the strict parsing, beyond the vectors."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from countersign._keys import decode_base64url
from countersign._token import _depth, _integer, _load, _without_depth


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
