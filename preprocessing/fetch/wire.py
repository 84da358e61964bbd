"""Names, addresses and sockets of the shield: what is connected to, and that it ends in time."""

import io
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

CONNECT_S = 10.0  # per address


class Failed(Exception):
    """The web's doing: an outcome, and text that anyone may have written."""

    def __init__(self, outcome: str, detail: str, status: int = 0, again: bool = False, wait_s: float = 0.0) -> None:
        self.outcome, self.detail, self.status = outcome, detail, status
        self.again, self.wait_s = again, wait_s  # whether it may be different in a moment, and when at the earliest


class Deadline:
    """The end of one file's time, moved by what its servers are not to blame for."""

    def __init__(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds

    def left(self) -> float:
        left = self.ends - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline of this file passed")
        return left

    @contextmanager
    def holding(self, turn: "threading.Lock | threading.BoundedSemaphore") -> Iterator[None]:
        """Waits for the turn, which does not count."""
        began = time.monotonic()
        with turn:
            self.ends += time.monotonic() - began
            yield


class Target(NamedTuple):
    scheme: str
    host: str  # as the DNS knows it; an IPv6 address without brackets
    port: int
    path: str  # with the query

    @property
    def name(self) -> str:
        """HOST:PORT."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def origin(self) -> str:
        default = ":443" if self.scheme == "https" else ":80"
        return f"{self.scheme}://{self.name.removesuffix(default)}"

    @property
    def url(self) -> str:
        return self.origin + self.path


def target_of(url: str, base: str = "") -> Target:
    """``url``, from ``base`` if it is relative, percent-encoded where it must be. Raises Failed."""
    try:
        parts = urlsplit(urljoin(base, url.strip()))
        if parts.scheme not in ("http", "https"):
            raise Failed("refused: scheme", f"{parts.scheme or 'no scheme'}: only http and https are fetched")
        host, port = parts.hostname or "", parts.port
        host = str(ipaddress.IPv6Address(host)) if ":" in host else host.encode("idna").decode().lower()
        if not re.fullmatch(r"[a-z0-9_.:-]+", host):
            raise ValueError("no host that can be looked up")
        signs = "/%:;=@!$&'()*+,~?"  # % too: what is encoded stays as it is
        path = quote(parts.path or "/", safe=signs.strip("?")) + (parts.query and "?" + quote(parts.query, safe=signs))
    except ValueError as error:
        raise Failed("refused: url", str(error)) from error
    return Target(parts.scheme, host, (443 if parts.scheme == "https" else 80) if port is None else port, path)


class Wire:
    """A connected socket as http.client uses it, whose every read and write ends by the deadline: the socket's own
    timeout starts anew with each byte of a server that drips. Its owner closes it.
    """

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self.sock, self.deadline = sock, deadline
        self.timeout_s = 0.0

    def arm(self) -> None:
        left = self.deadline.left()
        if abs(left - self.timeout_s) > 0.1:  # to set it is a system call
            self.sock.settimeout(left)
            self.timeout_s = left

    def sendall(self, data: bytes) -> None:
        self.arm()
        self.sock.sendall(data)

    def makefile(self, mode: str = "rb") -> io.BufferedReader:
        return io.BufferedReader(_Reader(self), 1 << 16)

    def close(self) -> None:
        pass


class _Reader(io.RawIOBase):
    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.wire.arm()
        return self.wire.sock.recv_into(buffer)


@cache
def tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def look_up(target: Target, deadline: Deadline) -> list[Any]:
    """In a thread, because the resolver cannot be told when to stop."""
    found: Future[list[Any]] = Future()

    def ask() -> None:
        try:
            found.set_result(socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return found.result(deadline.left())
    except TimeoutError as error:
        raise Failed("dns", "the resolver did not answer") from error
    except (OSError, UnicodeError) as error:
        again = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        raise Failed("dns", str(error), again=again) from error


def dial(target: Target, addresses: list[Any], trusted: bool, deadline: Deadline) -> socket.socket:
    """Connects to the first that answers of the addresses that are public, or of all if the target is ``trusted``.

    Never looks a name up: what was checked is what is connected to, and a second look-up could answer otherwise.
    """
    failure: Exception = Failed("dns", "no address")
    for family, kind, protocol, _, address in addresses:
        if not trusted and not is_public(address[0]):
            failure = Failed("refused: address", f"{target.name} is {address[0]}, which is not public")
            continue
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(min(deadline.left(), CONNECT_S))
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            failure = error
    raise failure


def is_public(address: str) -> bool:
    """Whether an IP address, or the IPv4 address within it that would be reached, belongs to the public internet."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped or ip in ipaddress.IPv6Network("64:ff9b::/96"):  # NAT64, RFC 6052
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip.sixtofour and not is_public(str(ip.sixtofour)):
            return False
        if ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved
