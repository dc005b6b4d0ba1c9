"""Messages are listed by a script, and none is longer than two lines of a terminal."""

import pytest

from scripts.list_messages import Message, all_messages, main, messages_of

LONGEST = 240  # two lines of 120 characters
FOUND = all_messages()


def test_each_way_of_saying_something_is_listed():
    source = """
raise StudyError(f"--n-trials must be at least 1; received {n}")
log.info("trial %d: value %.4f", number, value)
print("wrote " + name)
parser.add_argument("--seed", help="seed of the sampler" if a else "seed")
count("no message")
parser.error("--gpu and --cpu exclude each other")
"""
    assert list(messages_of(source, "a.py")) == [
        Message("error", "a.py", 2, "--n-trials must be at least 1; received …"),
        Message("log", "a.py", 3, "trial %d: value %.4f"),
        Message("print", "a.py", 4, "wrote "),
        Message("help", "a.py", 5, "seed of the sampler | seed"),
        Message("error", "a.py", 7, "--gpu and --cpu exclude each other"),
    ]


def test_the_script_prints_every_message_of_a_kind(capsys):
    assert main(["--kind", "error"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 500
    assert all("[error]" in line for line in lines if ".py:" in line)


@pytest.mark.parametrize("kind", ["error", "log"])
def test_no_message_is_longer_than_two_lines(kind):
    chosen = [message for message in FOUND if message.kind == kind]
    assert len(chosen) > 100
    long = [message for message in chosen if len(message.text) > LONGEST or message.text.strip().count("\n") > 1]
    assert long == []
