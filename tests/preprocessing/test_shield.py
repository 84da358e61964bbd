"""What the shield lets through, against a server that misbehaves."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from hostile_server import HostileServer, free_port, picture
from preprocessing.fetch import shield, wire
from preprocessing.fetch.shield import Answer, Policy, fetch
from preprocessing.fetch.wire import is_public


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with HostileServer() as server:
        yield server


@pytest.fixture(scope="module")
def policy(server: HostileServer) -> Policy:
    return Policy(allow=(server.name,), contact="tests@example.org", deadline_s=3.0, max_bytes=1_000_000)


@pytest.mark.parametrize(
    ("path", "outcome"),
    [
        ("/status/404", "http 404"),
        ("/status/410", "http 410"),
        ("/status/403", "http 403"),
        ("/status/204", "http 204"),
        ("/status/799", "http other"),
        ("/hostile-reason", "http 404"),
        ("/wait-long/1", "http 429"),
        ("/loop", "redirects"),
        ("/chain/9", "redirects"),
        ("/to/" + quote("file:///etc/passwd"), "refused: scheme"),
        ("/to/" + quote("http://127.0.0.1:1/latest/meta-data"), "refused: address"),
        ("/to/" + quote("//[::ffff:127.0.0.1]:1/x"), "refused: address"),
        ("/to/" + quote("http://[/"), "refused: url"),
        ("/nonsense", "protocol"),
        ("/huge", "too large"),
        ("/endless", "too large"),
        ("/bomb", "too large"),
        ("/brotli", "encoding"),
        ("/empty", "empty"),
        ("/noai", "refused: noai"),
        ("/noai-ours", "refused: noai"),
        ("/private/1.jpg", "refused: robots"),
    ],
)
def test_what_is_final_is_asked_once(server: HostileServer, policy: Policy, path: str, outcome: str) -> None:
    before = server.hits.copy()
    began = time.monotonic()
    answer = fetch(server.url(path), policy)
    assert (answer.outcome, answer.data) == (outcome, b""), answer
    assert time.monotonic() - began < 1.5
    asked = {page: n - before[page] for page, n in server.hits.items() if page.startswith("/" + path.split("/")[1])}
    if outcome == "refused: robots":
        assert not any(asked.values()) and server.hits["/robots.txt"] == 1
    elif outcome != "redirects":
        assert sum(asked.values()) == 1, asked


@pytest.mark.parametrize("path", ["/truncated/1", "/chunked/1", "/half-gzip/1", "/hang-up/1", "/status/500"])
def test_what_may_be_a_hiccup_is_asked_again(
    server: HostileServer, policy: Policy, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shield, "BACKOFF_S", 0.05)
    answer = fetch(server.url(path), policy)
    expected = {"/hang-up/1": "connection", "/status/500": "http 500"}.get(path, "truncated")
    assert (answer.outcome, server.hits[path]) == (expected, 1 + shield.RETRIES)


@pytest.mark.parametrize("path", ["/silent", "/drip", "/slow-headers"])
def test_the_deadline_holds_against_servers_that_drip(server: HostileServer, path: str) -> None:
    began = time.monotonic()
    answer = fetch(server.url(path), Policy(allow=(server.name,), deadline_s=0.7))
    assert (answer.outcome, answer.data) == ("timeout", b"")
    assert 0.6 < time.monotonic() - began < 1.5


@pytest.mark.parametrize(
    "path", ["/good/1.jpg", "/flaky/1", "/gzip/1", "/noai-theirs", "/chain/3", "/good/ä b.jpg", "/good/%C3%A4%20b.jpg"]
)
def test_pictures_come(server: HostileServer, policy: Policy, path: str) -> None:
    answer = fetch(server.url(path), policy)
    final = {"/chain/3": "/good/end.jpg", "/good/ä b.jpg": "/good/%C3%A4%20b.jpg"}.get(path, path)
    assert answer == Answer("ok", "", server.url(final), 200, picture(final))


def test_bytes_are_not_judged_here(server: HostileServer, policy: Policy) -> None:
    assert fetch(server.url("/page.jpg"), policy).data == b"<html>no picture</html>"


def test_retry_after_is_waited_for(server: HostileServer, policy: Policy) -> None:
    began = time.monotonic()
    assert fetch(server.url("/wait/1"), policy).outcome == "ok"
    assert time.monotonic() - began > 1.0


def test_the_agent_says_who_it_is_and_asks_for_plain_bytes(server: HostileServer, policy: Policy) -> None:
    fetch(server.url("/good/agent.jpg?a=b c&d=%20"), policy)
    path, headers = server.asked[-1]
    assert path == "/good/agent.jpg?a=b%20c&d=%20"
    assert headers["User-Agent"] == "matryoshka-diffusion/0.1 (tests@example.org)"
    assert (headers["Host"], headers["Accept-Encoding"]) == (server.name, "identity")


def test_servers_text_is_one_clean_line(server: HostileServer, policy: Policy) -> None:
    answer = fetch(server.url("/hostile-reason"), policy)
    assert answer.detail == " [31m red  1m"
    refused = fetch("file:///\u202etxt.exe\n\x1b[2J", policy)
    assert (refused.outcome, refused.final_url) == ("refused: scheme", "file:/// txt.exe  [2J")


@pytest.mark.parametrize(
    ("url", "outcome"),
    [
        # The rows of schemes.tsv and private.tsv
        ("file:///dev/null", "refused: scheme"),
        ("ftp://127.0.0.1/x", "refused: scheme"),
        ("data:image/png;base64,AAAA", "refused: scheme"),
        ("//127.0.0.1/x", "refused: scheme"),
        ("http://127.0.0.1:1/é x.jpg", "refused: address"),
        ("http://127.0.0.1:1/x.jpg", "refused: address"),
        ("http://10.0.0.1/x.jpg", "refused: address"),
        ("http://169.254.169.254/x.jpg", "refused: address"),
        ("http://192.168.1.1/x.jpg", "refused: address"),
        ("http://[::1]:1/x.jpg", "refused: address"),
        ("http://0.0.0.0:1/x.jpg", "refused: address"),
        ("http://2130706433/x.jpg", "refused: address"),
        ("http://0x7f.1/x.jpg", "refused: address"),
        ("http://[::ffff:127.0.0.1]:1/x.jpg", "refused: address"),
        # and more of their kind
        ("http://localhost:1/x", "refused: address"),
        ("https://127.0.0.1/x", "refused: address"),
        ("http://good.example@127.0.0.1/x", "refused: address"),
        ("http://[64:ff9b::7f00:1]/x", "refused: address"),
        ("http://[2002:7f00:1::]/x", "refused: address"),
        ("", "refused: scheme"),
        ("http://", "refused: url"),
        ("http://a b/x", "refused: url"),
        ("http://[::1/x", "refused: url"),
        ("http://x:99999/", "refused: url"),
        ("http://%31%32%37.0.0.1/", "refused: url"),
        ("http://" + "a" * 80 + ".example/", "refused: url"),
        ("http://x.example/\ud800", "refused: url"),
    ],
)
def test_no_address_inside_is_reached_however_it_is_written(url: str, outcome: str) -> None:
    answer = fetch(url, Policy(deadline_s=2.0))
    assert (answer.outcome, answer.status, answer.data) == (outcome, 0, b""), answer


def test_public_addresses() -> None:
    assert all(map(is_public, ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]))
    private = [
        "224.0.0.1",
        "100.64.0.1",
        "255.255.255.255",
        "::",
        "::7f00:1",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "fd00::1",
    ]
    assert not any(map(is_public, private))


def test_the_address_that_was_checked_is_the_one_connected_to(
    server: HostileServer, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that answers differently each time: public first, then inside."""
    answers = iter(["8.8.8.8", "127.0.0.1", "127.0.0.1"])
    port = server.server.server_port
    connected = []

    def getaddrinfo(host: str, port: int, **_: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    def connect(sock: socket.socket, address: object) -> None:
        connected.append(address)
        raise ConnectionRefusedError("a stub")

    monkeypatch.setattr(wire.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(wire.socket.socket, "connect", connect)
    answer = fetch(f"http://rebinding.example:{port}/", Policy(deadline_s=0.4, robots=False))
    assert (answer.outcome, connected) == ("connection", [("8.8.8.8", port)])
    monkeypatch.setattr(shield, "REMEMBERED_S", 0.0)
    assert fetch(f"http://other.example:{port}/", Policy(robots=False)).outcome == "refused: address"


def test_the_environments_proxy_is_ignored_and_the_sites_own_is_used(
    server: HostileServer, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert fetch(server.url("/good/2.jpg"), policy).outcome == "ok"
    through = Policy(proxy=f"http://{server.name}")
    answer = fetch("http://pictures.example/good/3.jpg", through)
    assert answer == Answer("ok", "", "http://pictures.example/good/3.jpg", 200, picture("/good/3.jpg"))
    assert server.asked[-1][0] == "http://pictures.example/good/3.jpg"
    assert fetch(
        "https://pictures.example/good/3.jpg", Policy(proxy=f"http://{server.name}", deadline_s=0.4)
    ).detail == ("robots.txt: the proxy answered 403 Forbidden")
    assert server.asked[-1][0] == "pictures.example:443"


def certificate(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of a server called localhost, and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = signed.public_bytes(Encoding.PEM)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "server.pem").write_bytes(secret + pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem")
    return server, ssl.create_default_context(cadata=pem.decode())


def test_https(server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_server, of_client = certificate(tmp_path)
    with HostileServer(tls=of_server) as secure:
        port = secure.server.server_port
        allow = (f"localhost:{port}", f"127.0.0.1:{port}")
        policy = Policy(allow=allow, robots=False, deadline_s=2.0)
        assert fetch(f"https://localhost:{port}/good/1.jpg", policy).outcome == "tls"  # signed by nobody known
        monkeypatch.setattr(shield, "tls", lambda: of_client)
        assert fetch(f"https://localhost:{port}/good/1.jpg", policy).data == picture("/good/1.jpg")
        assert fetch(f"https://127.0.0.1:{port}/good/1.jpg", policy).outcome == "tls"  # of another name
        assert fetch(f"https://localhost:{port}/drip", replace(policy, deadline_s=0.5)).outcome == "timeout"
        assert fetch(f"https://localhost:{port}/truncated/2", policy).outcome == "truncated"
        through = Policy(proxy=f"http://{server.name}", deadline_s=2.0)
        answer = fetch(f"https://localhost:{port}/good/2.jpg", through)
        assert (answer.outcome, answer.data) == ("ok", picture("/good/2.jpg"))
        assert server.asked[-1][0] == f"localhost:{port}"


def test_a_host_is_asked_by_few_at_once_and_waiting_for_it_is_not_its_fault() -> None:
    with HostileServer() as server, ThreadPoolExecutor(12) as pool:
        policy = Policy(allow=(server.name,), per_host=2, deadline_s=0.5)
        answers = list(pool.map(lambda i: fetch(server.url(f"/slow/{i}"), policy), range(12)))  # 0.1 s each
        assert {answer.outcome for answer in answers} == {"ok"}
        assert server.busiest == 2
        assert server.hits["/robots.txt"] == 1


def test_a_server_that_cannot_give_its_robots_file_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with HostileServer() as server:
        monkeypatch.setattr(server, "_answer", lambda to, path: to.send_error(500 if path == "/robots.txt" else 404))
        assert fetch(server.url("/good/1"), Policy(allow=(server.name,), deadline_s=1.0)).outcome == "refused: robots"
        assert fetch(server.url("/good/1"), Policy(allow=(server.name,), robots=False)).outcome == "http 404"


def test_a_host_that_is_away_is_not_asked_for_each_of_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shield, "BACKOFF_S", 0.15)
    name = f"127.0.0.1:{free_port()}"
    policy = Policy(allow=(name,), deadline_s=2.0)
    assert fetch(f"http://{name}/1", policy).outcome == "connection"
    began = time.monotonic()
    assert {fetch(f"http://{name}/{i}", policy).outcome for i in range(20)} == {"connection"}
    assert time.monotonic() - began < 0.2


def test_a_resolver_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()
    monkeypatch.setattr(wire.socket, "getaddrinfo", lambda *_, **__: hang.wait(20))
    began = time.monotonic()
    assert fetch("http://hangs.example/", Policy(deadline_s=0.3, robots=False)).outcome == "dns"
    assert time.monotonic() - began < 1.0
    hang.set()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"allow": ("127.0.0.1",)}, "allow"),
        ({"proxy": "proxy:3128"}, "proxy"),
        ({"contact": "a\r\nX: y"}, "contact"),
        ({"per_host": 0}, "per_host"),
    ],
)
def test_a_policy_that_means_nothing_is_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Policy(**settings)  # type: ignore[arg-type]
