"""A local HTTP server that misbehaves in every way the web does."""

import gzip
import select
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


def picture(name: str) -> bytes:
    """Stands for a picture: bytes are judged after they are downloaded."""
    return b"\xff\xd8" + name.encode() * 100


def free_port() -> int:
    """On which nobody listens for now."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return int(closed.getsockname()[1])


class HostileServer:
    """Use as ``with HostileServer() as server``. ``server.url("/good/1.jpg")``; ``server.hits`` counts paths."""

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.hits: Counter[str] = Counter()
        self.asked: list[tuple[str, dict[str, str]]] = []  # path, headers
        self.busy = self.busiest = 0  # requests for /slow at once
        self.stop = threading.Event()
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = urlsplit(self.path).path
                with outer.lock:
                    outer.hits[path] += 1
                    outer.asked.append((self.path, dict(self.headers)))
                outer._answer(self, path)
                self.close_connection = True

            def do_CONNECT(self) -> None:
                """As a proxy, to this machine only."""
                with outer.lock:
                    outer.asked.append((self.path, dict(self.headers)))
                host, port = self.path.split(":")
                if host != "localhost":
                    self.send_error(403)
                    return
                with socket.create_connection(("127.0.0.1", int(port))) as there:
                    self.send_response(200)
                    self.end_headers()
                    other = {self.connection: there, there: self.connection}
                    while True:
                        for end in select.select(list(other), [], [])[0]:
                            if not (data := end.recv(1 << 16)):
                                self.close_connection = True
                                return
                            other[end].sendall(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients that hang up are the point

        self.server = Server(("127.0.0.1", port), Handler)
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.name = f"127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "HostileServer":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self.server.shutdown()
        self.server.server_close()

    def url(self, path: str) -> str:
        return f"http://{self.name}{path}"

    def _answer(self, to: BaseHTTPRequestHandler, path: str) -> None:
        def send(status: int, body: bytes = b"", reason: str | None = None, **headers: str) -> None:
            to.send_response(status, reason)
            for name, value in {"Content_Length": str(len(body)), **headers}.items():
                if value:
                    to.send_header(name.replace("_", "-"), value)
            to.end_headers()
            to.wfile.write(body)

        def drip(begin: bytes) -> None:
            to.wfile.write(begin)
            while not self.stop.wait(0.2):
                to.wfile.write(b"x")

        def endless() -> None:
            send(200, Content_Length="")
            while not self.stop.is_set():
                to.wfile.write(bytes(1 << 16))

        def slow() -> None:
            with self.lock:
                self.busy += 1
                self.busiest = max(self.busiest, self.busy)
            self.stop.wait(0.1)
            with self.lock:
                self.busy -= 1
            send(200, picture(path))

        first = self.hits[path] == 1
        kind = path.split("/")[1]
        rest = path[len(kind) + 2 :]
        answers: dict[str, Callable[[], object]] = {
            "robots.txt": lambda: send(200, b"User-agent: *\nCrawl-delay: \xc2\xb2\nDisallow: /private/\n"),
            "good": lambda: send(200, picture(path)),
            "private": lambda: send(200, picture(path)),
            "page.jpg": lambda: send(200, b"<html>no picture</html>", Content_Type="text/html"),
            "status": lambda: send(int(rest)),
            "empty": lambda: send(200),
            "wait": lambda: send(429, Retry_After="1") if first else send(200, picture(path)),
            "wait-long": lambda: send(429, Retry_After="86400"),
            "flaky": lambda: send(503) if first else send(200, picture(path)),
            "chain": lambda: send(302, Location=f"/chain/{int(rest) - 1}" if int(rest) else "/good/end.jpg"),
            "loop": lambda: send(302, Location="/loop"),
            "to": lambda: send(302, Location=unquote(rest)),
            "truncated": lambda: send(200, b"half", Content_Length="1000"),
            "chunked": lambda: send(200, b"5\r\nhello\r\n", Content_Length="", Transfer_Encoding="chunked"),
            "hang-up": lambda: None,
            "silent": lambda: self.stop.wait(60),
            "drip": lambda: drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
            "slow-headers": lambda: drip(b"HTTP/1.1 200 OK\r\nX-Long: "),
            "nonsense": lambda: to.wfile.write(b"220 mail.example ESMTP\r\n\r\n"),
            "hostile-reason": lambda: send(404, reason="\x1b[31m red \x9b1m"),
            "huge": lambda: send(200, b"x", Content_Length="400000000"),
            "endless": endless,
            "gzip": lambda: send(200, gzip.compress(picture(path)), Content_Encoding="gzip"),
            "half-gzip": lambda: send(200, gzip.compress(picture(path))[:-9], Content_Encoding="gzip"),
            "bomb": lambda: send(200, gzip.compress(bytes(20_000_000)), Content_Encoding="gzip"),
            "brotli": lambda: send(200, b"?", Content_Encoding="br"),
            "noai": lambda: send(200, picture(path), X_Robots_Tag="max-snippet: 5, NoAI"),
            "noai-ours": lambda: send(200, picture(path), X_Robots_Tag="matryoshka-diffusion: noimageai"),
            "noai-theirs": lambda: send(200, picture(path), X_Robots_Tag="googlebot: noindex, noai"),
            "slow": slow,
        }
        answers.get(kind, lambda: send(404))()
