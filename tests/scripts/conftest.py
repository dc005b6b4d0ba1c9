import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.launcher_clone import Clone, make_clone, processes_of


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Clone]:
    repository = make_clone(tmp_path / "a folder with blanks")
    yield repository
    for pid in processes_of(repository):
        os.kill(pid, signal.SIGKILL)
