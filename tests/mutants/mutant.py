"""Mutant: a code change that breaks the handling of one fault in docs/faults.md."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """Code change that a test must notice.

    Attributes:
        test: test of a row of docs/faults.md, as written in the row.
        broken: description of the broken behavior for docs/mutants.md.
        file: path from the root of the repository.
        old: text that occurs exactly once in the file.
        new: replacement of this text.
    """

    test: str
    broken: str
    file: str
    old: str
    new: str
