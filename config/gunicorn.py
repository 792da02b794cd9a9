"""gunicorn's configuration, each setting with its reason."""

import logging
import os
import resource
import socket
import struct
import subprocess
import sys
from typing import Any

from config import environment, pauses
from config.bodies import CLIENT_SECONDS
from gateway.upstream.cancellation import disconnect_monitor

# Files of the gateway (the SQLite database, the journal) are readable only by its user.
os.umask(0o077)

_env = environment.read()
_server = environment.read_server(_env)

_host = f"[{_server.host}]" if ":" in _server.host else _server.host
bind = f"{_host}:{_server.port}"

# Two processes, so that a busy interpreter or a crash does not stop the service. The number of
# threads is the number of concurrent responses; an idle thread costs a few kilobytes.
workers = _server.workers
threads = _server.threads

# For the heartbeat of the worker's main thread. It does not limit responses.
timeout = 30
# After SIGTERM, the gateway ends its streams when DRAIN_SECONDS have passed. This is longer, so
# that no worker is killed with SIGKILL.
graceful_timeout = int(_server.drain_seconds) + 5
keepalive = 5
# Recycling a worker with a long stream in it would stop service for the length of the stream.
max_requests = 0
# No control socket.
control_socket_disable = True
# Most connections are idle; each one uses a file descriptor. A worker accepts no more than these.
worker_connections = 8192
# The same parser on every machine, whatever else is installed.
http_parser = "python"
# No header may change the path: gunicorn would trust SCRIPT_NAME from this host, which bypasses a
# proxy's rule for /admin/.
forwarder_headers = ""
# The heartbeat file is in memory: with a slow disk, a worker would look dead.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None

# No query strings and no headers: neither keys nor prompts reach a log.
accesslog = "-" if _server.access_log else None
access_log_format = '%(t)s "%(m)s %(U)s" %(s)s %(B)s %(L)ss %({x-request-id}o)s'

# Logs the path as it was sent.
logger_class = "config.access_log.Log"

# The unsent bytes that the kernel buffers for a slow client. By default it buffers megabytes, and
# wakes a writer only when a third of them is sent. A client that reads slowly but steadily would
# seem to read nothing for CLIENT_SECONDS, and be disconnected.
UNSENT_BYTES = 16_384

# Each response needs two file descriptors, for the client and for the model server. The usual limit
# of 1,024 would be reached before the threads are in use, and gunicorn's worker ends when it is.
OPEN_FILES = 65_536

# The stack is synchronous (REST framework, knox, requests). Under ASGI, Django would buffer a
# synchronous stream completely before it sends the first byte.
worker_class = "config.worker.Worker"


def on_starting(server: Any) -> None:
    """Check the settings, and do not start if one is invalid.

    The check runs in a subprocess: workers inherit the modules that the master imports, so a reload
    would not load new code.
    """
    checked = subprocess.run(
        [sys.executable, "manage.py", "check", "--deploy"], stdout=subprocess.DEVNULL
    )
    if checked.returncode:
        sys.exit(3)
    pauses.spare_workers_after(server)
    for line in environment.old_names(_env):
        server.log.warning("%s It listens on %s.", line, bind)


def post_fork(server: Any, worker: Any) -> None:
    allow_open_files()
    seconds, rest = divmod(CLIENT_SECONDS, 1)
    limit = struct.pack("ll", int(seconds), int(rest * 1_000_000))
    for listener in worker.sockets:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            listener.sock.setsockopt(socket.SOL_SOCKET, option, limit)
        listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        if hasattr(socket, "TCP_DEFER_ACCEPT"):
            # A connection is accepted with its first data, or after a second. So the worker that
            # accepts it has a free thread when the data arrives.
            listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)


def allow_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def post_worker_init(worker: Any) -> None:
    """Start the periodic work: a worker does not fork."""
    from config import background

    background.start()
    disconnect_monitor.drain_when(lambda: not worker.alive)
    logging.getLogger("gunicorn.error").addFilter(shorten)


def pre_request(worker: Any, request: Any) -> None:
    worker.head_is_whole(request)


def shorten(record: logging.LogRecord) -> bool:
    """Log a client's fault in one line, without the data it sent."""
    if record.exc_info and isinstance(record.exc_info[1], BlockingIOError | TimeoutError):
        record.exc_info = None
        record.msg, record.args = (
            "A client was too slow to send or to read, and was disconnected.",
            (),
        )
        record.levelno, record.levelname = logging.INFO, "INFO"
    if str(record.msg).startswith("Invalid request from"):
        # gunicorn quotes the malformed request, which may contain a key.
        record.msg = record.msg.partition(": ")[0]
    return True
