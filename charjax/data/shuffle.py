"""Random permutations of windows and of documents, functions of count, seed and epoch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Int, Int64

# Random streams, derived from the seed. Renumbering them would change the data order of old runs.
ORDER, OFFSET, DOCUMENTS = 0, 1, 2
# Up to so many windows `data.window_order=auto` takes a table of all of them, 16 MiB.
MAX_TABLE = 1 << 22
_ROUNDS = 6  # of the Feistel network

# The numbers at some positions of an epoch's order.
Order: TypeAlias = Callable[[int, Int64[np.ndarray, " n"]], Int64[np.ndarray, " n"]]


def make_order(name: str, count: int, seed: int) -> Order:
    """The order that `data.window_order` names, for that many windows."""
    if resolve_order(name, count) == "keyed":
        return functools.partial(keyed_order, count, seed)
    return table_order(count, seed)


def table_order(count: int, seed: int) -> Order:
    """A permutation by a table of all numbers, shuffled by numpy; of one epoch at a time."""

    @functools.lru_cache(maxsize=1)
    def shuffled(epoch: int) -> np.ndarray:
        table = np.arange(count, dtype=np.int32)
        random_generator(seed, ORDER, epoch).shuffle(table)
        return table

    return lambda epoch, positions: shuffled(epoch)[positions].astype(np.int64)


def keyed_order(
    count: int, seed: int, epoch: int, positions: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """A permutation by a Feistel network, which needs no table, whatever the count.

    The network permutes the numbers of 2k bits. A result that is not below the count is permuted
    again until it is (cycle walking), so that the numbers below the count are permuted too. See
    Black and Rogaway, Ciphers with Arbitrary Finite Domains (2002).
    """
    half_bits = max(1, -(-(count - 1).bit_length() // 2))
    generator = random_generator(seed, ORDER, epoch)
    keys = generator.integers(2**64, size=_ROUNDS, dtype=np.uint64)
    numbers = _permute(positions.astype(np.uint64), half_bits, keys)
    while (outside := numbers >= count).any():
        numbers[outside] = _permute(numbers[outside], half_bits, keys)
    return numbers.astype(np.int64)


def _permute(numbers: np.ndarray, half_bits: int, keys: np.ndarray) -> np.ndarray:
    bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = numbers >> bits, numbers & mask
    for key in keys:
        left, right = right, left ^ (mix(right + key) & mask)
    result: np.ndarray = (left << bits) | right
    return result


def resolve_order(name: str, count: int) -> str:
    """`data.window_order` with "auto" replaced: a table where it is small."""
    if name != "auto":
        return name
    return "table" if count <= MAX_TABLE else "keyed"


def random_order(count: int, seed: int) -> Int[np.ndarray, " count"]:
    """A permutation of 0 to count - 1, in which documents are shuffled before the split."""
    return random_generator(seed, DOCUMENTS, 0).permutation(count)


def mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64, a hash of 64 bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def random_generator(seed: int, stream: int, epoch: int) -> np.random.Generator:
    """The generator of a random stream in an epoch."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stream, epoch])))
