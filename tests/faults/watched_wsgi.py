"""The gateway, with a note of every address that its Python code looks up or connects to.

CONTACTS: the file to which they are written, a line of JSON each. An audit hook cannot be taken
away again, and sees what any package does by way of Python's sockets; so it is set first. What a
library written in C does by itself is not seen: of ours only the driver of PostgreSQL's does.
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
        # Of a look-up the port as well, which is half of the address.
        address = values[:2] if event == "socket.getaddrinfo" else values[EVENTS[event]]
        os.write(_file, (json.dumps([event, address], default=str) + "\n").encode())


sys.addaudithook(note)

from config.wsgi import application  # noqa: E402  # The hook must see its imports, too.

__all__ = ["application"]
