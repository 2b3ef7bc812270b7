"""N-gram blocking: no passage of more than N characters is copied from the training text.

At every step the tokens are forbidden that would complete a passage of N + 1 characters of the
text. A hash table has them for each passage of N characters: the loop hashes the last N characters
of a row and looks them up once. No copy is missed. About once in 2**32 look-ups, a passage that is
not in the text has the hash of one that is, and tokens are forbidden in vain.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

from charjax.data.corpus import Corpus
from charjax.data.vocab import Vocab
from charjax.errors import InputError

_MAX_BYTES = 2 << 30  # of a table
_WORD = 32  # bits


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CopyTable:
    """For each passage of N characters of a text, the tokens that follow it there.

    Attributes:
      factors: of each position of a passage, for two independent hashes.
      starts: of each bucket, in `tags`; a bucket is the first bits of the first hash.
      tags: the second hash of each passage, by bucket, and padding for the last bucket.
      followers: one bit a token, of each passage; those of passage i in row i + 1.
      bucket_bits: the logarithm of the number of buckets.
      most: passages in the largest bucket.
    """

    factors: UInt32[Array, "2 length"]
    starts: Int[Array, " buckets"]
    tags: UInt32[Array, " padded"]
    followers: UInt32[Array, "rows words"]
    bucket_bits: int = field(metadata={"static": True})
    most: int = field(metadata={"static": True})

    @property
    def length(self) -> int:
        """N."""
        return self.factors.shape[1]

    def forbidden(
        self, recent: Int[Array, "batch length"], vocab_size: int
    ) -> Bool[Array, "batch vocab"]:
        """The tokens that would complete a copied passage.

        Args:
          recent: the last N tokens of each row; -1 before its first.
          vocab_size: tokens of the model.
        """
        values = (recent + 1).astype(jnp.uint32)
        hashed = jnp.sum(values[:, None] * self.factors[None], axis=2, dtype=jnp.uint32)
        bucket = (hashed[:, 0] >> (32 - self.bucket_bits)).astype(jnp.int32)
        index = self.starts[bucket][:, None] + jnp.arange(self.most)[None]
        in_bucket = index < self.starts[bucket + 1][:, None]
        is_passage = in_bucket & (self.tags[index] == hashed[:, 1:])
        row = jnp.sum(jnp.where(is_passage, index + 1, 0), axis=1)  # row 0 has no bit
        tokens = jnp.arange(vocab_size)
        words = self.followers[row][:, tokens // _WORD]
        return (words >> (tokens % _WORD).astype(jnp.uint32)[None]) & 1 == 1


# Compiled by itself, for a single look-up.
forbidden_tokens = jax.jit(CopyTable.forbidden, static_argnums=2)


def copy_table(corpus: Corpus, vocab: Vocab, length: int) -> CopyTable:
    """The table of a training text, for passages of `length` characters; seconds for a megabyte.

    Args:
      corpus: the text. Of a model of documents, a passage is part of one document.
      vocab: of the model.
      length: N, at least 1.

    Raises:
      InputError: the table would not fit into memory.
    """
    ids = vocab.encode_corpus(corpus.text, unknown="unk" if vocab.unk else "error")
    factors = np.random.default_rng(0).integers(0, 2**32, (2, length), np.uint32) | np.uint32(1)
    num_passages = max(0, len(ids) - length)
    bits = max(1, (2 * num_passages - 1).bit_length())
    hashes = _passage_hashes(ids, factors, num_passages)
    keys = (hashes[0] >> np.uint32(32 - bits)).astype(np.uint64) << np.uint64(32) | hashes[1]
    following = ids[length:].astype(np.int64)
    if vocab.boundary and num_passages:
        document = np.searchsorted(corpus.document_starts, np.arange(len(ids)), side="right")
        is_inside = document[:num_passages] == document[length:]
        keys, following = keys[is_inside], following[is_inside]
    distinct, passage = np.unique(keys, return_inverse=True)
    followers = _followers(passage, following, len(distinct), len(vocab))
    buckets = (distinct >> np.uint64(32)).astype(np.int64)
    starts = np.searchsorted(buckets, np.arange(2**bits + 1)).astype(np.int32)
    most = max(1, int(np.diff(starts).max()))
    tags = np.append(distinct.astype(np.uint32), np.zeros(most, np.uint32))
    return CopyTable(
        factors=jnp.asarray(factors),
        starts=jnp.asarray(starts),
        tags=jnp.asarray(tags),
        followers=jnp.asarray(followers),
        bucket_bits=bits,
        most=most,
    )


def _followers(
    passage: Int[np.ndarray, " n"], following: Int[np.ndarray, " n"], number: int, vocab_size: int
) -> UInt32[np.ndarray, "passages words"]:
    """The bits of the tokens that follow each passage; row 0 has none."""
    num_words = -(-vocab_size // _WORD)
    if 4 * num_words * number > _MAX_BYTES:
        raise InputError(
            f"--max_copy: needs a table of {4 * num_words * number >> 20:,} MB for this text and "
            f"vocabulary; at most {_MAX_BYTES >> 20:,} MB"
        )
    pairs = np.unique(passage.astype(np.int64) * vocab_size + following)
    rows, tokens = pairs // vocab_size + 1, pairs % vocab_size
    followers = np.zeros((number + 1, num_words), np.uint32)
    bits = np.uint32(1) << (tokens % _WORD).astype(np.uint32)
    np.bitwise_or.at(followers, (rows, tokens // _WORD), bits)
    return followers


def _passage_hashes(
    ids: Int[np.ndarray, " n"], factors: UInt32[np.ndarray, "2 length"], number: int
) -> UInt32[np.ndarray, "2 passages"]:
    """Both hashes of the passages that begin at positions 0, 1, ... of a text."""
    hashes = np.zeros((2, number), np.uint32)
    values = (ids + 1).astype(np.uint32)
    for position in range(factors.shape[1]):
        part = values[position : position + number]
        hashes += factors[:, position, None] * part
    return hashes
