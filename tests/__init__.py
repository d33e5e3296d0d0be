"""Tests mirror the package: tests/attacks/test_pgd.py asks robustlib/attacks/pgd.py."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
