"""The gateway, recording every address that its Python code looks up or connects to.

CONTACTS: the file for these records, a line of JSON each. The audit hook is set first. It cannot be
removed, and sees every package that uses Python's sockets. It does not see connections of C
libraries, of which only PostgreSQL's driver makes any here.
"""

import json
import os
import sys
from typing import Any

EVENTS = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
    "socket.gethostbyaddr": 0,
    "subprocess.Popen": 0,
    "os.system": 0,
    "os.exec": 0,
    "os.posix_spawn": 0,
}
_file = os.open(os.environ["CONTACTS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def note(event: str, values: tuple[Any, ...]) -> None:
    if event in EVENTS:
        # For a look-up the port too.
        address = values[:2] if event == "socket.getaddrinfo" else values[EVENTS[event]]
        os.write(_file, (json.dumps([event, address], default=str) + "\n").encode())


sys.addaudithook(note)

from config.wsgi import application  # noqa: E402  # The hook must see its imports, too.

__all__ = ["application"]
