"""Verifies an access token with the published keys, as a resource server in Python would.

Usage: verify.py ISSUER AUDIENCE TOKEN
"""

import sys

import jwt

issuer, audience, token = sys.argv[1:]
keys = jwt.PyJWKClient(issuer + "/.well-known/jwks.json")


def verify(token, **changes):
    expected = {"issuer": issuer, "audience": audience, **changes}
    if jwt.get_unverified_header(token)["typ"] != "at+jwt":
        raise jwt.InvalidTokenError("another kind of token")
    key = keys.get_signing_key_from_jwt(token)
    required = ["iss", "aud", "exp", "iat", "sub", "jti", "client_id"]
    return jwt.decode(token, key, algorithms=["EdDSA", "ES256", "RS256"], options={"require": required}, **expected)


print(jwt.get_unverified_header(token)["alg"], verify(token)["sub"])
head, payload, signature = token.split(".")
forged = ".".join([head, payload, ("B" if signature[0] == "A" else "A") + signature[1:]])
for wrong, changes in [(forged, {}), (token, {"audience": "other"}), (token, {"issuer": "https://other"})]:
    try:
        verify(wrong, **changes)
    except jwt.InvalidTokenError:
        continue
    sys.exit("the library accepted a token that it must refuse")
