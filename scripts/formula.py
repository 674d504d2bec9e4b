"""Numbers made by formula, so that networks and inputs need no file.

u(name, i) = (z >> 11) * 2^-53 * 2 - 1 with z = splitmix64's finaliser of
fnv1a64(name) + (i + 1) * 0x9E3779B97F4A7C15, all mod 2^64.
"""

import numpy as np


def fnv1a64(text):
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return h


def u(name, count):
    """`count` numbers in [-1, 1), the same everywhere."""
    with np.errstate(over="ignore"):  # arithmetic mod 2^64 is meant
        z = np.uint64(fnv1a64(name)) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53 * 2 - 1
