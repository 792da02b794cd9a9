"""Show Django the media type of a form, and no other.

It decodes by whatever `charset` a client names, and reads parameters as e-mail has them, before
any of its own handlers is there to answer: `charset=rot13` or `x*=y''z` would end as a 500. Nothing
here needs them: bodies are JSON whatever they are called, and the back-office's forms are UTF-8.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

# As browsers write them; a boundary is what RFC 2046 allows.
FORM = re.compile(
    r"""application/x-www-form-urlencoded(?=\s*(?:;|$))
    |multipart/form-data;\s*boundary=[0-9A-Za-z'()+_,./:=?-]{1,70}\s*$""",
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)


def forms_only(application: Application) -> Application:
    def shown(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        form = FORM.match(environ.get("CONTENT_TYPE", ""))
        environ["CONTENT_TYPE"] = form[0] if form else ""
        return application(environ, start_response)

    return shown
