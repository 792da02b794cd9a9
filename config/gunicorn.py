"""How gunicorn serves the gateway; each setting with its reason."""

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

# What this and its workers write (the database of SQLite, the journal) is its user's alone.
os.umask(0o077)

_env = environment.read()
_server = environment.read_server(_env)

_host = f"[{_server.host}]" if ":" in _server.host else _server.host
bind = f"{_host}:{_server.port}"

# Two processes, so that one busy interpreter or one crash is never the whole service. Threads are
# the number of answers at once that is sold; an idle one costs a few kilobytes.
workers = _server.workers
threads = _server.threads

# A sign of life from the worker's main thread, not a limit on answers, which stream for minutes.
timeout = 30
# After SIGTERM, streams are ended in good order when DRAIN_SECONDS have passed; this only has to be
# longer, so that nothing is left to SIGKILL.
graceful_timeout = int(_server.drain_seconds) + 5
keepalive = 5
# Recycling a worker with a long stream in it would stop service for the length of the stream.
max_requests = 0
# No socket that takes commands.
control_socket_disable = True
# Connections, most of them silent; each costs a file. Beyond them a worker accepts nobody.
worker_connections = 8192
# One parser, the same on every machine, whatever else is installed.
http_parser = "python"
# No header of a client or a proxy moves the path: from this host SCRIPT_NAME would be believed, and
# a proxy's rule for /admin/ stepped around.
forwarder_headers = ""
# The heartbeat file belongs in memory: a slow disk would look like a dead worker.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None

# No query strings and no headers: neither keys nor prompts reach a log.
accesslog = "-" if _server.access_log else None
access_log_format = '%(t)s "%(m)s %(U)s" %(s)s %(B)s %(L)ss %({x-request-id}o)s'

# An address as it was asked for, whatever stands in it.
logger_class = "config.access_log.Log"

# How much of an answer may wait in the kernel for a slow client, beyond what is on its way. Left to
# itself the kernel lets megabytes wait, and wakes a writer only when a third of them is gone: who
# reads steadily would seem to read nothing for CLIENT_SECONDS, and be cut.
UNSENT_BYTES = 16_384

# Each answer needs two files, its client's connection and the model server's; the usual limit of
# 1,024 would be met before the threads are, and gunicorn's worker does not survive meeting it.
OPEN_FILES = 65_536

# The stack is synchronous (REST framework, knox, requests), and Django under ASGI would gather a
# synchronous stream whole before sending its first byte.
worker_class = "config.worker.Worker"


def on_starting(server: Any) -> None:
    """Refuse to start with settings that cannot work, with one clear line for each.

    They are checked in a process of its own: what the master imports, its workers would inherit for
    ever, and a reload would not bring new code.
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
            # Accepted when something was said, or a second after: the worker that accepts has a
            # thread free, and would not when a silent one speaks later.
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
    """Log in one line what is a client's fault and none of ours, and nothing of what it sent."""
    if record.exc_info and isinstance(record.exc_info[1], BlockingIOError | TimeoutError):
        record.exc_info = None
        record.msg, record.args = "A client was too slow to send or to read, and was cut.", ()
        record.levelno, record.levelname = logging.INFO, "INFO"
    if str(record.msg).startswith("Invalid request from"):
        # What gunicorn quotes of a broken request may be a key.
        record.msg = record.msg.partition(": ")[0]
    return True
