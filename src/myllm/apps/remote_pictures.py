"""Pictures at addresses in requests, downloaded only from public networks."""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore2

from myllm.apps.http_errors import ApiError, bad_request

MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
HEADERS = (("Accept", "image/*"), ("Accept-Encoding", "identity"), ("User-Agent", "myllm"))
# the rest of IPv6's space stands for this machine, local networks, or IPv4 addresses by another name
GLOBAL_UNICAST, IPV4_IN_IPV6 = ipaddress.IPv6Network("2000::/3"), ipaddress.IPv6Network("2002::/16")


class RemotePictures:
    """Downloads pictures, if that is allowed."""

    def __init__(self, is_allowed: bool, max_bytes: int, timeout: float) -> None:
        """timeout: seconds for a picture, redirects included."""
        self.is_allowed, self.max_bytes, self.timeout = is_allowed, max_bytes, timeout

    async def download(self, url: str, count: Callable[[int], None]) -> bytes:
        """Return the picture at an address. Raises ApiError if it is refused, too large or missing.

        count: called with the number of bytes of each part that arrives.
        """
        if not self.is_allowed:
            raise bad_request("this server downloads no pictures; send the picture itself as a data URI in base64")
        try:
            async with asyncio.timeout(self.timeout):
                return await self._download(url, count)
        except TimeoutError:
            raise _failed(f"did not arrive within {self.timeout:g} seconds") from None
        # ValueError: of a redirect to http://[ or to a host that cannot be a name, like a..b
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError, ValueError):
            raise _failed("cannot be downloaded") from None

    async def _download(self, url: str, count: Callable[[int], None]) -> bytes:
        for _ in range(1 + MAX_REDIRECTS):
            _check_url(url)
            # a new pool each time, so that each connection is checked
            async with (
                httpcore2.AsyncConnectionPool(network_backend=PublicNetwork()) as pool,
                pool.stream("GET", url, headers=HEADERS) as response,
            ):
                location = {name.lower(): value for name, value in response.headers}.get(b"location")
                if response.status in REDIRECTS and location is not None:
                    url = urljoin(url, location.decode("latin-1"))
                    continue
                if response.status != 200:
                    raise _failed(f"was answered with status {response.status}")
                content = bytearray()
                async for part in response.aiter_stream():
                    content += part
                    if len(content) > self.max_bytes:
                        raise ApiError(413, "too_large", f"a picture has more than {self.max_bytes:,} bytes")
                    count(len(part))
                return bytes(content)
        raise _failed(f"redirects more than {MAX_REDIRECTS} times")


class PublicNetwork(httpcore2.AnyIOBackend):
    """Connects to public addresses only: a name is looked up once, checked, and its address is connected to."""

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect. Raises ApiError if any address of the host is not public, or if it is this machine's."""
        entries = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in entries]
        if not all(map(is_public, addresses)) or is_this_machine(addresses[0]):
            raise bad_request("a picture's address is not public; this server downloads from public networks only")
        return await super().connect_tcp(addresses[0], port, timeout, local_address, socket_options)


def is_public(text: str) -> bool:
    """Return whether an IP address belongs to neither a private nor a special network, such as loopback."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and (address not in GLOBAL_UNICAST or address in IPV4_IN_IPV6):
        return False
    return address.is_global and not address.is_multicast


def is_this_machine(address: str) -> bool:
    """Return whether an IP address is this machine's: connections to it then come from the same address.

    Nothing is sent. Raises OSError if there is no route to the address.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as connection:
        connection.connect((address, 1))
        return bool(connection.getsockname()[0] == address)


def _check_url(url: str) -> None:
    """Raise ApiError for an address that is not of the web."""
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_good = is_good and url.isascii() and url.isprintable() and " " not in url and not parts.username
    except ValueError:
        is_good = False
    if not is_good:
        raise bad_request("a picture's address is not of the form https://host/path")


def _failed(what: str) -> ApiError:
    return ApiError(400, "bad_picture", f"the picture at the given address {what}")
