"""Show Django the media type of a form, and no other.

It decodes by whatever `charset` a client names, and reads parameters as e-mail has them, before
any of its own handlers is there to answer: `charset=rot13` or `x*=y''z` would end as a 500. Nothing
here needs them: bodies are JSON whatever they are called, and the back-office's forms are UTF-8.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

# As browsers write it. No multipart: there is nothing to upload, and Django would write what is to
# disk before it asks who sends it.
FORM = re.compile(r"application/x-www-form-urlencoded(?=\s*(?:;|$))", re.ASCII | re.IGNORECASE)
FORMS_BELOW = ("/admin/", "/portal/")


def has_forms(path: str) -> bool:
    """Tell whether an address belongs to pages with forms; every other body is JSON."""
    return path.startswith(FORMS_BELOW)


def sanitize_content_type(application: Application) -> Application:
    def shown(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        named = environ.get("CONTENT_TYPE", "") if has_forms(environ.get("PATH_INFO", "")) else ""
        form = FORM.match(named)
        environ["CONTENT_TYPE"] = form[0] if form else ""
        return application(environ, start_response)

    return shown
