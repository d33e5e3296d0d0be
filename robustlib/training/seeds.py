"""Seeds derived from names, so that no random state needs to be saved."""

import hashlib


def derive_seed(*parts: object) -> int:
    """A 63-bit seed for a purpose, e.g. derive_seed(0, "pgd_at", 3, "data"); other parts, unrelated numbers."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
