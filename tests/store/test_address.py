"""Database URLs: whatever form a password is given in, it is not shown."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from train.records.errors import StudyError
from train.store.address import absolute_url, command_text, connect_args, shown_url

SECRET = "Geheim77"
HERE = Path("/")


def test_a_server_is_shown_with_its_user_host_and_database():
    url = absolute_url("postgresql+psycopg://me:pw@host:5433/db?sslmode=require", HERE)
    assert shown_url(url) == "postgresql+psycopg://me:***@host:5433/db?***"
    assert shown_url(absolute_url("sqlite:///a/b.db", HERE)) == "/a/b.db"


def test_a_password_among_the_options_is_used_and_not_shown():
    url = absolute_url(f"postgresql://me@host/db?pass%77ord={SECRET}&sslmode=require", HERE)
    assert url.password == SECRET
    assert dict(url.query) == {"sslmode": "require"}
    assert SECRET not in shown_url(url)


@pytest.mark.parametrize(("form", "user"), [("me@host/db?", "me"), ("host/db?user=me&", "me"), ("host/db?", None)])
def test_a_password_among_the_options_reaches_the_driver(form, user):
    url = absolute_url(f"postgresql+psycopg://{form}password={SECRET}", HERE)
    again = make_url(url.render_as_string(hide_password=False))  # as Optuna reads it
    assert again.translate_connect_args(username="user") == {"host": "host", "database": "db", "password": SECRET} | (
        {"user": user} if user else {}
    )


def test_every_connection_of_a_server_uses_utc_and_keeps_the_options_of_its_user():
    url = absolute_url("postgresql+psycopg://me@host/db?options=-c%20search_path%3Dmine", HERE)
    options = connect_args(url)["options"]
    assert "-c timezone=UTC" in options
    assert options.endswith("-c search_path=mine")


def test_a_command_can_be_pasted_again_but_for_its_secrets():
    argv = ["python", "x y.py", "--storage", f"postgresql://me:{SECRET}@host/db", "--n-trials", "3"]
    assert command_text(argv) == "python 'x y.py' --storage postgresql://me:***@host/db --n-trials 3"
    assert command_text(["a", "sqlite:////x/y.db"]) == "a sqlite:////x/y.db"


MARKS = st.text(alphabet=":@/?#&=%+ [];,'\"$*x", max_size=6)
FORMS = (
    "{scheme}://{user}:{password}@{host}/db",
    "{scheme}://{user}:{quoted}@{host}/db?sslmode=require",
    "{scheme}://{user}@{host}/db?password={quoted}",
    "{scheme}://{host}/db?user={user}&pass%77ord={quoted}&application_name=x",
    "{scheme}://{host}/db?sslpassword={quoted}",
    "{scheme}://:{password}@{host}:5432/db",
    "{scheme}:/{user}:{password}@{host}/db",
    "{user}:{password}@{host}/db",
    "host={host} user={user} password={password}",
)


@pytest.mark.parametrize("form", FORMS)
@given(before=MARKS, after=MARKS, user=st.sampled_from(["me", "me@realm", ""]), scheme=st.sampled_from(
    ["postgresql", "postgresql+psycopg", "postgres", "mysql", "nonsense", "POSTGRESQL"]))  # fmt: skip
def test_no_form_of_a_password_is_shown(form, before, after, user, scheme):
    password = f"{before}{SECRET}{after}"
    given_url = form.format(scheme=scheme, user=user, password=password, quoted=quote(password, safe=""), host="host")
    try:
        url = absolute_url(given_url, HERE)
    except StudyError as error:
        shown = [str(error)]
    else:
        shown = [shown_url(url), command_text(["--storage", given_url]), command_text([f"--storage={given_url}"])]
    assert not [text for text in shown if SECRET in text]
