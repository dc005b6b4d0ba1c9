"""Writes the version of the code into a wheel; everything else is in pyproject.toml."""

import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithVersion(build_py):
    """Adds train/records/code_version.txt, which an installed wheel reads (`train.records.provenance`)."""

    def run(self) -> None:
        """Build, then write the commit; a tree without git keeps the file that it brought."""
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)  # of an earlier build: its removed modules would go in
        super().run()
        if self.editable_mode:
            return
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        target = Path(self.build_lib) / "train" / "records" / "code_version.txt"
        if done.returncode == 0:
            target.write_text(done.stdout)


setup(cmdclass={"build_py": BuildWithVersion})
