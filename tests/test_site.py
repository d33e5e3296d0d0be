"""The documentation builds without a warning, and nothing in it leads nowhere or comes from elsewhere."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

pytest.importorskip("sphinx", reason="the extra `docs` is not installed")


def test_the_site_is_built_and_whole(tmp_path: Path) -> None:
    """An undocumented public name, a broken reference or an unknown citation is a warning of Sphinx, and so an error."""
    site = tmp_path / "site"
    build = ["-m", "sphinx", "-W", "--keep-going", "-q", "-d", tmp_path / "doctrees", "docs", site]
    for command in (build, [ROOT / "benchmarks" / "site_check.py", site]):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "no broken links" in done.stdout
    for page in ("index", "tutorial", "reports", "command-line", "references", "api/attacks", "methods/ancra"):
        assert (site / f"{page}.html").is_file()
