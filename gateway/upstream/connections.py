"""Connections to a model server: each call has its own, known to its Cancellation from the start.

Redirects, proxies and cookies are off. A connection of its own costs a call a round trip on the
same network. In return, no call meets a connection that the server closed while it was pooled, and
shutting one down cannot hit another call.
"""

from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from gateway.upstream.cancellation import Cancellation

HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": "ollama-gateway",
}


class Call(requests.PreparedRequest):
    """One HTTP request, and what its connection has to know: the Cancellation, and how many
    seconds the server may take up to its status line."""

    def __init__(self, cancellation: Cancellation, seconds: float) -> None:
        super().__init__()
        self.cancellation = cancellation
        self.seconds = seconds


def _attach(connection: HTTPConnection, call: Call) -> None:
    """Give a new connection to the Cancellation of its call, and set its time-out: `requests` would
    allow the sending of the whole prompt no more time than the connecting."""
    if connection.sock is not None:
        # Both: for TLS, urllib3 sets the socket's from the connection's once more.
        connection.timeout = call.seconds
        connection.sock.settimeout(call.seconds)
        call.cancellation.attach(connection.sock)


class _Connection(HTTPConnection):
    def __init__(self, *args: Any, call: Call, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._call = call

    def connect(self) -> None:
        super().connect()
        _attach(self, self._call)


class _TLSConnection(HTTPSConnection):
    def __init__(self, *args: Any, call: Call, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._call = call

    def connect(self) -> None:
        super().connect()
        _attach(self, self._call)


class _Pool(HTTPConnectionPool):
    """The one connection of a call."""

    ConnectionCls = _Connection

    def _put_conn(self, conn: Any) -> None:
        _close(conn)


class _TLSPool(HTTPSConnectionPool):
    """The one connection of a call, with TLS."""

    ConnectionCls = _TLSConnection

    def _put_conn(self, conn: Any) -> None:
        _close(conn)


def _close(connection: Any) -> None:
    """Close a connection instead of keeping it for a next call, which would not come."""
    if connection is not None:
        connection.close()


class _Adapter(HTTPAdapter):
    """Makes a pool for each call, which costs no more than looking one up. So the connection gets
    its call as an argument, and no thread-local has to carry it there."""

    def get_connection_with_tls_context(
        self, request: requests.PreparedRequest, verify: Any, proxies: Any = None, cert: Any = None
    ) -> HTTPConnectionPool:
        address, tls = self.build_connection_pool_key_attributes(request, verify, cert)
        if address["scheme"] == "https":
            return _TLSPool(address["host"], address["port"], call=request, **tls)
        return _Pool(address["host"], address["port"], call=request)


def new_session() -> requests.Session:
    session = requests.Session()
    # Else a .netrc entry would overwrite our headers, and HTTP_PROXY would send prompts elsewhere.
    session.trust_env = False
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(max_retries=0))
    return session


# Without pools, cookies and environment it holds nothing that threads or servers could share.
session = new_session()
