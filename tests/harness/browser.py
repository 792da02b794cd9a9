"""A real Chromium, without a window, for one page at a time."""

import html
import json
import re
import shutil
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class PageServer:
    """Serves one page on a port of its own."""

    def __init__(self, page: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write(page.encode())

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def result_of(script: str, host: str = "localhost") -> Any:
    """Run the body of an async function in a page of `http://HOST:PORT`; return what it returns.

    Every host name leads to this machine. Raises AssertionError where the page did not finish.
    """
    assert CHROMIUM is not None
    page = f"""<!doctype html><title>test</title><pre id="result"></pre><script>
    (async () => {{ {script} }})()
      .catch((error) => ({{ error: String(error) }}))
      .then((result) => JSON.stringify({{ result: result ?? null }}))
      .then((text) => {{ document.getElementById("result").textContent = text; }});
    </script>"""
    with PageServer(page) as server, tempfile.TemporaryDirectory() as profile:
        dom = _dom(f"http://{host}:{server.port}/", Path(profile))
    found = re.search(r'<pre id="result">(.+?)</pre>', dom, re.DOTALL)
    assert found, dom
    return json.loads(html.unescape(found.group(1)))["result"]


def _dom(url: str, profile: Path) -> str:
    command = [
        str(CHROMIUM),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * 127.0.0.1",
        f"--user-data-dir={profile}",
        # In the page's time: it passes while nothing is awaited from the network.
        "--virtual-time-budget=20000",
        "--dump-dom",
        url,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout
