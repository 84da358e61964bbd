"""One URL -> bytes, safely: the web behind a shield.

Whoever wrote the list, the servers it names and whoever answers for their names in the DNS may be hostile: they may
point inside this network, never stop talking, or never start. So every hop's address is looked up once, must be public,
and is the one connected to; everything has an end in time and in bytes; and who asks not to be taken is not.
"""

import http.client
import re
import socket
import ssl
import threading
import time
import unicodedata
import zlib
from collections import OrderedDict
from contextlib import closing
from dataclasses import dataclass, field
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote
from urllib.robotparser import RobotFileParser

from preprocessing.fetch.wire import Deadline, Failed, Target, Wire, dial, look_up, target_of, tls

AGENT = "matryoshka-diffusion"
OPTED_OUT = frozenset({"noai", "noimageai", "noml", "noindex", "noimageindex"})  # img2dataset's, and noml
NETWORK = frozenset({"dns", "connection", "timeout"})  # outcomes that a network that is away has too

MAX_REDIRECTS, RETRIES, BACKOFF_S = 5, 2, 0.5
ROBOTS_S, ROBOTS_BYTES = 10.0, 512_000  # RFC 9309 asks for 500 KiB at least
REMEMBERED_S = 60.0  # a host's addresses, and that it did not answer
MAX_HOSTS = 2000  # remembered at once


@dataclass(frozen=True)
class Policy:
    """What the shield lets through. Raises ValueError naming a field that cannot be used."""

    allow: tuple[str, ...] = ()  # HOST:PORT, as URLs write it, that may be connected to although it is not public
    proxy: str = ""  # http://HOST:PORT, a site's own: trusted by name; then it looks names up and decides addresses
    contact: str = ""  # a page or an address of who downloads, for the user agent
    deadline_s: float = 30.0  # per file, redirects and retries included; waiting for the host's turn is not
    max_bytes: int = 50_000_000
    per_host: int = 8  # connections at once to one host, of this process
    robots: bool = True  # robots.txt is respected; X-Robots-Tag always is

    def __post_init__(self) -> None:
        for name in self.allow:
            if not re.fullmatch(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+):\d+", name):
                raise ValueError(f"allow: {name!r} is not HOST:PORT in lower case, as 127.0.0.1:8000")
        if self.proxy and not re.fullmatch(r"http://[A-Za-z0-9_.-]+:\d+", self.proxy):
            raise ValueError(f"proxy: {self.proxy!r} is not http://HOST:PORT")
        if not re.fullmatch(r"[ -~]*", self.contact):
            raise ValueError(f"contact: {self.contact!r} stands in a header: plain ASCII letters and signs only")
        if self.deadline_s <= 0 or self.max_bytes < 1 or self.per_host < 1:
            raise ValueError("deadline_s, max_bytes and per_host must be positive")

    @property
    def user_agent(self) -> str:
        return f"{AGENT}/0.1 ({self.contact})" if self.contact else f"{AGENT}/0.1"


@dataclass(frozen=True)
class Answer:
    """What became of one URL.

    ``outcome``: ok; refused: scheme, url, address, robots, noai; dns, connection, tls, timeout (no answer); http NNN,
    redirects, protocol, encoding, truncated, too large, empty (no use).
    """

    outcome: str
    detail: str  # one line for people, without control and direction characters; anyone may have written it
    final_url: str  # of the last hop, percent-encoded; of a refused one, as it was given
    status: int  # 0 where there was none
    data: bytes = field(repr=False)  # empty unless ok


def fetch(url: str, policy: Policy) -> Answer:
    """GET. Never raises for anything the web does."""
    return _fetch(url, policy, policy.deadline_s, policy.max_bytes, picture=True)


@dataclass
class _Host:
    """What this process knows of an origin."""

    slots: threading.BoundedSemaphore
    asking: threading.Lock = field(default_factory=threading.Lock)
    robots: RobotFileParser | Answer | None = None  # or why it could not be read
    robots_until: float = 0.0
    addresses: list[Any] = field(default_factory=list)  # as getaddrinfo gives them
    addresses_until: float = 0.0
    not_before: float = 0.0  # it asked to be left alone until then


_hosts: OrderedDict[str, _Host] = OrderedDict()
_hosts_lock = threading.Lock()


def _host(origin: str, policy: Policy) -> _Host:
    with _hosts_lock:
        if origin not in _hosts:
            _hosts[origin] = _Host(threading.BoundedSemaphore(policy.per_host))
            if len(_hosts) > MAX_HOSTS:
                _hosts.popitem(last=False)
        _hosts.move_to_end(origin)
        return _hosts[origin]


def _fetch(url: str, policy: Policy, seconds: float, max_bytes: int, picture: bool) -> Answer:
    """Redirects followed, flaky answers asked for again. ``picture``: robots.txt and X-Robots-Tag count."""
    deadline = Deadline(seconds)
    attempt, hops, hop, base = 0, 0, url, ""
    while True:
        status = 0
        try:
            target = target_of(hop, base)
            hop = target.url
            host = _host(target.origin, policy)
            if picture and policy.robots:
                _obey_robots(target, host, policy, deadline)
            pause = host.not_before - time.monotonic()
            if pause > 0:
                if pause >= deadline.left():
                    raise Failed("timeout", "the host asked for a longer wait than the deadline allows")
                time.sleep(pause)
            with deadline.holding(host.slots):
                status, location, data = _exchange(target, host, policy, deadline, max_bytes, picture)
            if not location:
                return Answer("ok", "", hop, status, data)
            hops += 1
            if hops > MAX_REDIRECTS:
                raise Failed("redirects", f"more than {MAX_REDIRECTS}", status)
            hop, base = location, hop
            continue
        except Failed as error:
            failed = error
        except TimeoutError as error:
            failed = Failed("timeout", str(error), status)
        except ssl.SSLError as error:
            failed = Failed("tls", str(error), status)
        except OSError as error:
            failed = Failed("connection", str(error), status, again=True)
        except http.client.IncompleteRead:
            failed = Failed("truncated", "the connection ended within the body", status, again=True)
        except (http.client.HTTPException, ValueError) as error:
            failed = Failed("protocol", f"{type(error).__name__}: {error}", status)
        wait_s = max(failed.wait_s, BACKOFF_S * 2**attempt)
        attempt += 1
        if not failed.again or attempt > RETRIES or time.monotonic() + wait_s >= deadline.ends:
            return Answer(failed.outcome, _clean(failed.detail, 300), _clean(hop, 4000), failed.status, b"")
        if failed.wait_s:  # for all who ask this host; asked again from the hop that failed
            host.not_before = time.monotonic() + failed.wait_s
        time.sleep(wait_s)


def _exchange(
    target: Target, host: _Host, policy: Policy, deadline: Deadline, max_bytes: int, picture: bool
) -> tuple[int, str, bytes]:
    """One request over a connection of its own -> status, where a redirect leads ("" if it is none), body."""
    with closing(_connect(target, host, policy, deadline)) as sock:
        plain_proxy = policy.proxy and target.scheme == "http"
        client = http.client.HTTPConnection(target.host, target.port)
        client.sock = Wire(sock, deadline)
        headers = {
            "Host": target.origin.split("//")[1],
            "User-Agent": policy.user_agent,
            "Accept": "image/*, */*;q=0.5",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        client.request("GET", target.url if plain_proxy else target.path, headers=headers)
        response = client.getresponse()
        status = response.status
        location = response.getheader("Location", "")
        if status in (301, 302, 303, 307, 308) and location:
            return status, quote(location.encode("latin-1"), safe="/%:;=@!$&'()*+,~?#[]"), b""
        if status != 200:
            known = status in http.client.responses
            again = status in (429, 500, 502, 503, 504)
            wait_s = _retry_after(response.headers) if status in (429, 503) else 0.0
            raise Failed(f"http {status}" if known else "http other", response.reason, status, again, wait_s)
        if picture and _opted_out(response.headers):
            raise Failed("refused: noai", "; ".join(response.headers.get_all("X-Robots-Tag", [])), status)
        return status, "", _body(response, max_bytes)


def _body(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    expected, pieces, size = response.length, [], 0
    if expected is not None and expected > max_bytes:
        raise Failed("too large", f"{expected:,} bytes announced", response.status)
    while piece := response.read(min(1 << 18, max_bytes + 1 - size)):
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            raise Failed("too large", f"more than {max_bytes:,} bytes", response.status)
    if expected is not None and size < expected:
        raise Failed("truncated", f"{size:,} of {expected:,} bytes", response.status, again=True)
    data = b"".join(pieces)
    encoding = response.getheader("Content-Encoding", "").strip().lower() or "identity"
    if encoding != "identity":  # although none was asked for
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise Failed("encoding", f"{encoding} was not asked for", response.status)
        try:
            unpacker = zlib.decompressobj(wbits=47)  # of gzip or zlib
            data = unpacker.decompress(data, max_bytes + 1)
        except zlib.error as error:
            raise Failed("encoding", str(error), response.status) from error
        if len(data) > max_bytes:
            raise Failed("too large", f"more than {max_bytes:,} bytes when unpacked", response.status)
        if not unpacker.eof:
            raise Failed("truncated", f"{encoding} without its end", response.status, again=True)
    if not data:
        raise Failed("empty", "an answer of no bytes", response.status)
    return data


def _connect(target: Target, host: _Host, policy: Policy, deadline: Deadline) -> socket.socket:
    """To the target, through the proxy if there is one, with TLS if it is https."""
    if policy.proxy:
        via = target_of(policy.proxy)
        sock = dial(via, _addresses(via, _host(via.origin, policy), deadline), True, deadline)
    else:
        sock = dial(target, _addresses(target, host, deadline), target.name in policy.allow, deadline)
    if target.scheme == "http":
        return sock
    try:
        if policy.proxy:
            client = http.client.HTTPConnection(target.host, target.port)
            client.sock = Wire(sock, deadline)
            client.request("CONNECT", target.name, headers={"Host": target.name, "User-Agent": policy.user_agent})
            response = client.getresponse()
            if response.status != 200:
                raise Failed("connection", f"the proxy answered {response.status} {response.reason}")
        sock.settimeout(deadline.left())
        return tls().wrap_socket(sock, server_hostname=target.host)
    except BaseException:
        sock.close()
        raise


def _addresses(target: Target, host: _Host, deadline: Deadline) -> list[Any]:
    if not host.addresses or host.addresses_until < time.monotonic():
        host.addresses = look_up(target, deadline)
        host.addresses_until = time.monotonic() + REMEMBERED_S
    return host.addresses


def _obey_robots(target: Target, host: _Host, policy: Policy, deadline: Deadline) -> None:
    if host.robots is None or host.robots_until < time.monotonic():
        with deadline.holding(host.asking):
            if host.robots is None or host.robots_until < time.monotonic():
                began = time.monotonic()
                host.robots = _read_robots(target, policy)
                lives_s = REMEMBERED_S if isinstance(host.robots, Answer) else 86400.0
                host.robots_until = time.monotonic() + lives_s
                deadline.ends += time.monotonic() - began
    if isinstance(host.robots, Answer):
        raise Failed(host.robots.outcome, f"robots.txt: {host.robots.detail}", host.robots.status)
    if host.robots and not host.robots.can_fetch(AGENT, target.url):
        raise Failed("refused: robots", "robots.txt disallows it")


def _read_robots(target: Target, policy: Policy) -> RobotFileParser | Answer:
    """By RFC 9309: no file is no rule; a server that cannot say refuses. One that does not answer has not answered."""
    answer = _fetch(f"{target.origin}/robots.txt", policy, min(ROBOTS_S, policy.deadline_s), ROBOTS_BYTES, False)
    rules = RobotFileParser()
    lines: list[str] = []
    if answer.outcome == "ok":
        lines = answer.data.decode("utf-8", "replace").splitlines()
    elif answer.status == 429 or answer.status >= 500:
        return Answer("refused: robots", answer.outcome, answer.final_url, answer.status, b"")
    elif answer.outcome not in ("empty", "redirects") and not 400 <= answer.status < 500:
        return answer
    try:  # other fields are of no use here, and some values stop the parser
        rules.parse([line for line in lines if re.match(r"\s*(user-agent|allow|disallow)\s*:", line, re.I)])
    except ValueError as error:
        return Answer("refused: robots", _clean(str(error), 300), answer.final_url, answer.status, b"")
    return rules


def _opted_out(headers: Message) -> bool:
    """X-Robots-Tag: directives for all, or after ``AGENT:`` for one."""
    for header in headers.get_all("X-Robots-Tag", []):
        ours = True
        for part in header.lower().split(","):
            name, colon, value = part.strip().partition(":")
            if colon and (name == "unavailable_after" or name.startswith("max-")):
                continue
            if colon:
                ours = name.strip() == AGENT
            if ours and (value if colon else name).strip() in OPTED_OUT:
                return True
    return False


def _retry_after(headers: Message) -> float:
    """Seconds: 0 where it is not said."""
    text = str(headers.get("Retry-After", "")).strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _clean(text: str, length: int) -> str:
    """One line without control, direction and private characters."""
    return "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text[:length])
