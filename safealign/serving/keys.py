"""The bearer token that a server may ask for: read from the environment, compared in constant time, never logged."""

from __future__ import annotations

import hmac
import ipaddress
import os

from fastapi import Request

from safealign.errors import ConfigError
from safealign.serving.problems import ApiError


def key_of(variable: str | None) -> str | None:
    """The token in the environment variable of that name; None where no variable is named.

    Raises ConfigError when it is not set: a server that was meant to be closed must not start open.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"api_key_env={variable}: this environment variable is not set; export {variable}=… first")
    return key


def check_key(request: Request, key: str | None) -> None:
    """Raises ApiError (401) unless the request carries `Authorization: Bearer KEY`."""
    if key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # Headers arrive as latin-1; bytes compare whatever they hold.
    right = hmac.compare_digest(given.strip().encode("latin-1"), key.encode())
    if scheme.lower() != "bearer" or not right:
        raise ApiError(
            401,
            "this server needs its API key: send the header Authorization: Bearer KEY",
            code="invalid_api_key",
            outcome="unauthorized",
            headers={"WWW-Authenticate": "Bearer"},
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
