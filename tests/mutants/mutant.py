"""Mutant: a code change that breaks the handling of one fault in docs/faults.md."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """Code that a test must notice.

    Attributes:
        test: the test of a row of docs/faults.md, as the row names it.
        broken: what the code does not do any more, for docs/mutants.md.
        file: from the root of the repository.
        old: text that is in the file once.
        new: what takes its place.
    """

    test: str
    broken: str
    file: str
    old: str
    new: str
