"""Make optuna-dashboard's pages usable with a screen reader, a keyboard and a telephone.

optuna-dashboard has no option for this. A style sheet and a script are added to its HTML page. They name controls,
headings and regions, increase the contrast and let wide rows wrap. Neither changes the content or behavior of a page.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

# The security policy of the page allows files of this server only, no inline scripts.
FILES = {"/accessible.css": "text/css", "/accessible.js": "text/javascript"}
END_OF_HEAD = b"</head>"
LINKS = b'<link rel="stylesheet" href="/accessible.css"/><script defer src="/accessible.js"></script>'
OF_A_STORED_PAGE = ("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_NONE_MATCH")  # a browser may have stored the page without LINKS


def accessible(app: WSGIApplication) -> WSGIApplication:
    """Wrap optuna-dashboard's application to serve `FILES` and to link them in the head of its HTML page."""

    def wrapped(request: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = request.get("PATH_INFO", "")
        if path in FILES:
            content = (files("train.watch") / path[1:]).read_bytes()
            kind = ("Content-Type", f"{FILES[path]}; charset=UTF-8")
            start_response("200 OK", [kind, ("Content-Length", str(len(content)))])
            return [content]
        if request.get("REQUEST_METHOD") != "GET" or not path.startswith("/dashboard"):
            return app(request, start_response)
        asked = {name: value for name, value in request.items() if name not in OF_A_STORED_PAGE}
        return _with_links(app, asked, start_response)

    return wrapped


def _with_links(app: WSGIApplication, request: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    started: list[Any] = []

    def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
        started[:] = [status, headers]

    body = app(request, start)
    page = b"".join(body).replace(END_OF_HEAD, LINKS + END_OF_HEAD, 1)
    close = getattr(body, "close", None)
    if close is not None:
        close()
    status, headers = started
    kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
    start_response(status, [*kept, ("Content-Length", str(len(page)))])
    return [page]
