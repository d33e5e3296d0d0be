"""What must hold on a GPU, on a pretended one, in a process of its own: torch counts devices once, at its first backward pass."""

import subprocess
import sys

from tests import ROOT


def test_all_that_a_pretended_gpu_can_show():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "tests/on_pretend_gpu.py",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
