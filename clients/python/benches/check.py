"""Measures a check of a token by a local verifier: of one that was seen before, and of a new one.

Both are compared with PyJWT, which checks the signature and the registered claims, and knows
nothing of revocations. The bars: a token seen before takes at most 1/20 of its time, and a new one
at most 1.15 of it.

Usage: python benches/check.py. It prints the best of several rounds, because other processes can
only make a round slower.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from countersign import Demands, Verifier
from countersign.testing import AUDIENCE, ISSUER, Authority

ROUNDS: Final = 10
TOKENS: Final = 500


def best(rounds: Sequence[Callable[[], object]], steps: int) -> float:
    """Returns the best time of a round for each of its steps, in microseconds."""
    times = []
    for run in rounds:
        began = time.perf_counter()
        run()
        times.append((time.perf_counter() - began) / steps)
    return min(times) * 1e6


def main() -> None:
    """Runs the comparison."""
    authority = Authority()
    verifier: Verifier = authority.verifier()
    demands = Demands(audience=AUDIENCE, scopes=["read"])
    numbers = itertools.count()

    def issue() -> list[str]:
        return [
            authority.token(
                f"user-{next(numbers)}",
                tenant="acme",
                client_id="web",
                scopes=["read", "write"],
                claims={"plan": "gold"},
            )
            for _ in range(TOKENS)
        ]

    def check(tokens: list[str]) -> Callable[[], object]:
        return lambda: [verifier.verify_locally(token, demands) for token in tokens]

    key: Ed25519PublicKey = authority.public_key

    def decode(tokens: list[str]) -> Callable[[], object]:
        required = ["iss", "sub", "aud", "exp", "iat", "jti", "sid"]
        return lambda: [
            jwt.decode(
                token,
                key,
                algorithms=["EdDSA"],
                audience=AUDIENCE,
                issuer=ISSUER,
                options={"require": required},
            )
            for token in tokens
        ]

    warm = issue()[:100] * 5
    check(warm)()
    fresh = [issue() for _ in range(ROUNDS)]
    # In turn, so that all of them meet the same machine.
    seen, new, other = [], [], []
    for tokens in fresh:
        other.append(best([decode(tokens)], TOKENS))
        new.append(best([check(tokens)], TOKENS))
        seen.append(best([check(warm)], TOKENS))
    pyjwt = min(other)
    print(f"PyJWT        {pyjwt:8.2f} us")
    print(f"seen before  {min(seen):8.2f} us, {pyjwt / min(seen):6.1f} times faster (bar: 20)")
    print(f"new          {min(new):8.2f} us, {min(new) / pyjwt:6.3f} of its time (bar: 1.15)")


if __name__ == "__main__":
    main()
