"""nginx in front of a gateway, configured with deploy/nginx.conf, as a subprocess."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

RECOMMENDED = Path(__file__).resolve().parents[2] / "deploy" / "nginx.conf"
START_TIMEOUT = 10.0
# Timeouts are shortened to this.
SHORT = "2s"
SHORTENED = ("client_header_timeout", "client_body_timeout", "send_timeout")

NAME = "localhost"
# Files of the recommended one, and of the test.
CERTIFICATE = {
    "/etc/letsencrypt/live/llm.example.com/fullchain.pem": "certificate.pem",
    "/etc/letsencrypt/live/llm.example.com/privkey.pem": "key.pem",
}

MAIN = """
{user}
daemon off;
worker_processes 1;
worker_rlimit_nofile 8192;
pid {home}/nginx.pid;
error_log {home}/error.log warn;
events {{ worker_connections 4096; }}
http {{
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    include {home}/gateway.conf;
}}
"""


def program() -> str | None:
    """Return the path of nginx, which may be missing from PATH."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


MISSING = "" if program() else "nginx is not installed (Debian: apt-get install nginx-light)"


class Nginx:
    """Use as a context manager; `url` leads through nginx to the gateway on port `gateway`."""

    def __init__(self, gateway: int, *, tls: bool = False) -> None:
        self._gateway = gateway
        self._tls = tls
        self.port = _free_port()
        self.url = f"http{'s' if tls else ''}://{NAME if tls else '127.0.0.1'}:{self.port}"

    @property
    def certificate(self) -> Path:
        """Return the certificate that a client must trust."""
        return self._home / "certificate.pem"

    def __enter__(self) -> Self:
        self._home = Path(tempfile.mkdtemp(prefix="nginx-"))
        (self._home / "gateway.conf").write_text(self._adapted(RECOMMENDED.read_text()))
        # As root, its workers would change to a user who may not read this directory.
        user = "user root;" if os.getuid() == 0 else ""
        main = self._home / "nginx.conf"
        main.write_text(MAIN.format(home=self._home, user=user))
        self._process = subprocess.Popen(
            [program() or "nginx", "-p", str(self._home), "-c", str(main)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._await()
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        shutil.rmtree(self._home, ignore_errors=True)

    def log(self) -> str:
        """Return the error log and the access log."""
        return "".join(path.read_text(errors="replace") for path in self._home.glob("*.log"))

    def _adapted(self, text: str) -> str:
        """Return deploy/nginx.conf with the test's addresses, paths and timeouts."""
        text = _swap(text, "server 127.0.0.1:8000;", f"server 127.0.0.1:{self._gateway};")
        text = _swap(text, "listen 80;", f"listen 127.0.0.1:{_free_port()};")
        if self._tls:
            self._certify()
        else:
            text = _swap(text, "listen 443 ssl http2 ", "listen 443 ")
        text = _swap(text, "listen 443 ", f"listen 127.0.0.1:{self.port} ")
        text = text.replace("server_name llm.example.com;", f"server_name {NAME};")
        for path, file in CERTIFICATE.items():
            text = _swap(text, path, f"{self._home}/{file}") if self._tls else _without(text, path)
        text = _swap(text, "/var/log/nginx/gateway.log", f"{self._home}/access.log")
        for name in SHORTENED:
            text, found = re.subn(rf"\b{name} \d+s;", f"{name} {SHORT};", text)
            assert found == 1, name
        return text

    def _certify(self) -> None:
        """Create a self-signed certificate for localhost."""
        make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1"
        files = ["-keyout", str(self._home / "key.pem"), "-out", str(self.certificate)]
        names = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
        command = ["openssl", *make.split(), *files, *names]
        subprocess.run(command, check=True, capture_output=True, timeout=30)

    def _await(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            time.sleep(0.02)
        self._process.kill()
        raise RuntimeError(f"nginx did not start:\n{self.log()[-2000:]}")


def _swap(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{old!r} does not stand once in {RECOMMENDED.name}"
    return text.replace(old, new)


def _without(text: str, path: str) -> str:
    """Remove the line that names a path."""
    [line] = [line for line in text.splitlines(keepends=True) if path in line]
    return text.replace(line, "")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
