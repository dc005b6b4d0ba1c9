"""What optuna-dashboard's pages get: two links in the HTML page, and nothing else changes."""

from __future__ import annotations

import io
import re
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import optuna_dashboard
import pytest

from train.watch.accessible import FILES, LINKS, accessible

PAGE = b"<html><head><title>x</title></head><body></body></html>"


class Body(io.BytesIO):
    """A body whose end is noticed."""


def answer(path: str, method: str = "GET", **given: str) -> tuple[str, dict[str, str], bytes, dict]:
    """Status, headers and body of the wrapped application, and the request that the inner one received."""
    seen, started, body = {}, [], Body(PAGE)

    def app(request, start_response):
        seen.update(request)
        headers = [("Content-Type", "text/html"), ("Content-Length", str(len(PAGE))), ("Etag", "e")]
        start_response("200 OK", headers)
        return body

    request = {"PATH_INFO": path, "REQUEST_METHOD": method, **given}
    setup_testing_defaults(request)
    found = b"".join(accessible(app)(request, lambda status, headers: started.extend((status, headers))))
    if path.startswith("/dashboard") and method == "GET":
        assert body.closed
    return started[0], dict(started[1]), found, seen


@pytest.mark.parametrize("path", ["/dashboard", "/dashboard/studies/1"])
def test_a_page_gets_the_links_in_its_head(path):
    status, headers, body, _ = answer(path)
    assert status == "200 OK"
    assert body == PAGE.replace(b"</head>", LINKS + b"</head>")
    assert headers == {"Content-Type": "text/html", "Content-Length": str(len(body)), "Etag": "e"}


@pytest.mark.parametrize(("path", "method"), [("/api/studies", "GET"), ("/dashboard", "HEAD"), ("/static/x.js", "GET")])
def test_everything_else_passes_unchanged(path, method):
    _, headers, body, seen = answer(path, method, HTTP_IF_NONE_MATCH="e")
    assert body == PAGE
    assert headers["Content-Length"] == str(len(PAGE))
    assert seen["HTTP_IF_NONE_MATCH"] == "e"


def test_a_page_that_a_browser_stored_before_is_sent_again():
    *_, seen = answer("/dashboard", HTTP_IF_NONE_MATCH="e", HTTP_IF_MODIFIED_SINCE="Tue, 01 Dec 2026 00:00:00 GMT")
    assert not any(name.startswith("HTTP_IF") for name in seen)


@pytest.mark.parametrize(("path", "kind"), FILES.items())
def test_a_file_is_served_with_its_type_and_loads_nothing(path, kind):
    status, headers, body, seen = answer(path)
    assert (status, headers["Content-Type"]) == ("200 OK", f"{kind}; charset=UTF-8")
    assert headers["Content-Length"] == str(len(body))
    assert seen == {}
    assert not re.search(rb"https?:|@import|url\(|import\s", body)
    assert path.encode() in LINKS


def test_the_installed_dashboard_has_the_head_that_is_looked_for():
    page = Path(optuna_dashboard.__file__).with_name("index.html").read_bytes()
    assert page.count(b"</head>") == 1
