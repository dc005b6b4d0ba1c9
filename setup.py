"""Build script that adds the code version to a wheel. All other settings are in pyproject.toml."""

import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithVersion(build_py):
    """Build command that adds train/records/code_version.txt, which `train.records.provenance` reads in a wheel."""

    def run(self) -> None:
        """Build the package, then write the commit. Without git, an existing version file is kept."""
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)  # an old build may contain removed modules
        super().run()
        if self.editable_mode:
            return
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        target = Path(self.build_lib) / "train" / "records" / "code_version.txt"
        if done.returncode == 0:
            target.write_text(done.stdout)


setup(cmdclass={"build_py": BuildWithVersion})
