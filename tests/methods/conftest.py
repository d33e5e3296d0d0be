"""What tests of methods share as fixtures."""

import pytest


@pytest.fixture(scope="module")
def unchecked_purifier():
    """What AToP's small trainings see teaches the purifier nothing, so its check lets everything pass."""
    with pytest.MonkeyPatch.context() as patch:
        for limit in ("MAX_L1_SHARE", "MAX_L1_SHARE_RT3", "MAX_HIDDEN_SHARE"):
            patch.setattr(f"robustlib.methods.atop.{limit}", 100.0)
        yield
