"""Bytes with something wrong in them."""

from __future__ import annotations

import random
from collections.abc import Sequence

LENGTHS = (1, 1, 2, 5, 40)


def broken(
    data: bytes,
    rng: random.Random,
    pieces: Sequence[bytes],
    *,
    most: int,
    within: int | None = None,
    lengths: Sequence[int] = LENGTHS,
) -> bytes:
    """Break bytes in one to `most` places, all of them in the first `within` bytes.

    At each place some bytes are left out or stand twice, one of the `pieces` is put in or takes their place, or a bit
    is another.
    """
    result = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at = rng.randrange(min(len(result), within or len(result)) + 1)
        end = min(at + rng.choice(lengths), len(result))
        match rng.randrange(5):
            case 0:
                del result[at:end]
            case 1:
                result[at:at] = rng.choice(pieces)
            case 2:
                result[at:end] = rng.choice(pieces)
            case 3:
                result[at:at] = result[at:end]
            case _ if end > at:
                result[at] ^= 1 << rng.randrange(8)
    return bytes(result)
