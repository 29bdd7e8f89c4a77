"""Refuses connections that leave this machine, in the tests and, through PYTHONPATH, in each Python that they start.

The refused addresses are also written to a file, because code under test may catch the error.
"""

import ipaddress
import os
import socket
from collections.abc import Callable
from typing import Any


class OutsideConnection(RuntimeError):
    """Raised instead of connecting; not an OSError, because clients catch those and try again."""


def is_local(host: str | bytes | None) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def refuse(address: str) -> None:
    with open(os.environ["MYLLM_TESTS_REFUSED"], "a", encoding="utf-8") as file:
        file.write(f"{address}\n")
    raise OutsideConnection(f"a test connected to {address}; tests may only connect to this machine")


def guard_connect(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_local(address[0]):
            refuse(f"{address[0]}:{address[1]}")
        return connect(self, address)

    return guarded


def guard_lookup(getaddrinfo: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(host: str | bytes | None, port: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_local(host):
            refuse(f"{host}:{port}")
        return getaddrinfo(host, port, *args, **kwargs)

    return guarded


socket.socket.connect = guard_connect(socket.socket.connect)  # type: ignore[method-assign]
socket.socket.connect_ex = guard_connect(socket.socket.connect_ex)  # type: ignore[method-assign]
socket.getaddrinfo = guard_lookup(socket.getaddrinfo)
