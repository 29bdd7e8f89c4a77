"""Refuses every connection that leaves this machine, in the tests and, through PYTHONPATH, in each Python they start.

What was refused is written down too: code under test may catch the error, and the test is to fail all the same.
"""

import ipaddress
import os
import socket
from collections.abc import Callable
from typing import Any


class OutsideConnection(RuntimeError):
    """Not an OSError: clients catch those and try again."""


def is_local(host: str | bytes | None) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def refuse(place: str) -> None:
    with open(os.environ["MYLLM_TESTS_REFUSED"], "a", encoding="utf-8") as file:
        file.write(f"{place}\n")
    raise OutsideConnection(f"a test reached out to {place}; tests reach this machine alone")


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
