"""Introspects and revokes a token as a resource server in Python would.

Usage: oauth.py ISSUER NAME KEY TOKEN
"""

import os
import sys

os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"
import requests
from authlib.integrations.requests_client import OAuth2Session

issuer, name, key, token = sys.argv[1:]
metadata = requests.get(issuer + "/.well-known/oauth-authorization-server", timeout=10).json()
session = OAuth2Session(name, key, token_endpoint_auth_method="client_secret_basic")


def introspect(hint=None):
    answer = session.introspect_token(metadata["introspection_endpoint"], token=token, token_type_hint=hint)
    answer.raise_for_status()
    return answer.json()


before = introspect("access_token")
session.revoke_token(metadata["revocation_endpoint"], token=token).raise_for_status()
session.revoke_token(metadata["revocation_endpoint"], token="garbage").raise_for_status()
print(before["active"], before["sub"], introspect())
