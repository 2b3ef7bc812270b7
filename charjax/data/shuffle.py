"""Random permutations of windows and of documents, functions of count, seed and epoch."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Int, Int64

# Random streams, derived from the seed. Renumbering them would change the data order of old runs.
ORDER, OFFSET, DOCUMENTS = 0, 1, 2
# Up to so many windows `data.window_order=auto` takes a table of all of them, 16 MiB.
MAX_TABLE = 1 << 22
_ROUNDS = 6  # of the Feistel network


class TableOrder:
    """A permutation by a table of all numbers, shuffled by numpy; of one epoch at a time."""

    def __init__(self, count: int, seed: int) -> None:
        """Makes no table yet."""
        self._count, self._seed = count, seed
        self._table = functools.lru_cache(maxsize=1)(self._shuffled)

    def __call__(self, epoch: int, positions: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The numbers at these positions of the epoch's order."""
        numbers: np.ndarray = self._table(epoch)[positions].astype(np.int64)
        return numbers

    def _shuffled(self, epoch: int) -> np.ndarray:
        order = np.arange(self._count, dtype=np.int32)
        random_generator(self._seed, ORDER, epoch).shuffle(order)
        return order


class KeyedOrder:
    """A permutation by a Feistel network, which needs no table, whatever the count.

    The network permutes the numbers of 2k bits. A result that is not below the count is permuted
    again until it is (cycle walking), so that the numbers below the count are permuted too. See
    Black and Rogaway, Ciphers with Arbitrary Finite Domains (2002).
    """

    def __init__(self, count: int, seed: int) -> None:
        """Computes nothing."""
        self._count, self._seed = count, seed
        self._half_bits = max(1, -(-(count - 1).bit_length() // 2))

    def __call__(self, epoch: int, positions: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The numbers at these positions of the epoch's order."""
        generator = random_generator(self._seed, ORDER, epoch)
        keys = generator.integers(2**64, size=_ROUNDS, dtype=np.uint64)
        numbers = self._permute(positions.astype(np.uint64), keys)
        while (outside := numbers >= self._count).any():
            numbers[outside] = self._permute(numbers[outside], keys)
        result: np.ndarray = numbers.astype(np.int64)
        return result

    def _permute(self, numbers: np.ndarray, keys: np.ndarray) -> np.ndarray:
        bits, mask = np.uint64(self._half_bits), np.uint64((1 << self._half_bits) - 1)
        left, right = numbers >> bits, numbers & mask
        for key in keys:
            left, right = right, left ^ (mix(right + key) & mask)
        result: np.ndarray = (left << bits) | right
        return result


def make_order(name: str, count: int, seed: int) -> TableOrder | KeyedOrder:
    """The order that `data.window_order` names, for that many windows."""
    is_keyed = resolve_order(name, count) == "keyed"
    return KeyedOrder(count, seed) if is_keyed else TableOrder(count, seed)


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
