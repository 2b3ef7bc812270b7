"""The first weights of a run that continues from another model: `train.init_from`.

Rows of the embedding and columns of the output projection are moved by token; the layers between
are taken as they are. The optimizer starts anew.
"""

from __future__ import annotations

import hashlib
import logging
import math
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Float

from charjax.checkpoint.checkpoints import Checkpoints
from charjax.checkpoint.meta import CheckpointMeta, SourceMeta
from charjax.config import Config, ModelConfig
from charjax.data.dataset import Dataset
from charjax.data.vocab import Vocab
from charjax.errors import CheckpointError, InputError
from charjax.export.weights import named_weights
from charjax.inference.load import BUILTIN, TrainedModel, load_trained
from charjax.runtime.display import listed
from charjax.runtime.paths import expand_path
from charjax.train.step import TrainState
from charjax.types import PyTree
from charjax.workdir import Workdir

_logger = logging.getLogger(__name__)
_ARCHITECTURE = ("cell", "hidden", "layers", "embed")
_MAX_NEW_MASS = 1e-7  # of probability, that new tokens have at first, all together


class Initial(NamedTuple):
    """Where the first weights of a run come from.

    Attributes:
      source: for the run's metadata.
      trained: the model; None where the run has a checkpoint, which has its weights already.
    """

    source: SourceMeta
    trained: TrainedModel | None

    @property
    def vocab(self) -> Vocab:
        """The model's vocabulary."""
        return Vocab.from_json(self.source.vocabulary)


def read_initial(config: Config, workdir: Workdir, checkpoints: Checkpoints) -> Initial | None:
    """The model that `train.init_from` names; None without one.

    Of a run that has a checkpoint, what that says of the model, which is not read again.

    Raises:
      InputError: there is no such model, or it has another architecture or unit.
      CheckpointError: a checkpoint of the run cannot be read.
    """
    if checkpoints.steps():
        record = checkpoints.read_meta()
        where = f"{workdir.checkpoints / str(record.step)}"
        source = CheckpointMeta.from_json(record.meta, where).run.source
        return Initial(source, None) if source and source.vocabulary else None
    if not config.train.init_from:
        return None
    option = f"--init_from={config.train.init_from}"
    try:
        folder = Path(expand_path(config.train.init_from, "--init_from"))
        if folder == Path("builtin") and not folder.exists():
            folder = BUILTIN
        trained = load_trained(folder, which="best")
    except CheckpointError as error:
        raise InputError(f"{option}: {error}") from None
    _check_same_architecture(config, trained, option)
    digest = hashlib.sha256()
    for name, array in named_weights(trained.params).items():
        digest.update(f"{name} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    source = SourceMeta(
        kind="charjax",
        path=config.train.init_from,
        sha256=digest.hexdigest(),
        step=trained.step,
        vocabulary=trained.vocab.to_json(),
    )
    return Initial(source, trained)


def known_characters(initial: Initial | None, config: Config) -> tuple[str, ...]:
    """The characters that the vocabulary has beside those of the text."""
    is_kept = initial is not None and config.train.init_characters == "keep"
    return initial.vocab.characters if initial and is_kept else ()


def _check_same_architecture(config: Config, trained: TrainedModel, option: str) -> None:
    theirs, ours = trained.config.model, config.model
    wrong = [name for name in _ARCHITECTURE if getattr(theirs, name) != getattr(ours, name)]
    if wrong:
        is_now = ", ".join(f"{name}={getattr(theirs, name)}" for name in wrong)
        flags = " ".join(f"--config.model.{name}={getattr(theirs, name)}" for name in wrong)
        raise InputError(f"{option}: that model has {is_now}, not this config's; give {flags}")
    if trained.vocab.unit != config.data.unit:
        raise InputError(
            f"{option}: a token of that model is a {trained.vocab.unit}; give "
            f"--config.data.unit={trained.vocab.unit}"
        )


def start_from(
    state: TrainState, config: Config, initial: Initial | None, dataset: Dataset
) -> TrainState:
    """The state before the first step with the weights of another model, if there is one."""
    if initial is None:
        return state
    _logger.info(report(initial, dataset))
    params = initial_params(state.params, initial, dataset.vocab, config.model)
    return state._replace(
        params=params, ema=jax.tree.map(np.copy, params) if config.optim.ema else ()
    )


def initial_params(drawn: PyTree, initial: Initial, vocab: Vocab, config: ModelConfig) -> PyTree:
    """The model's weights, with the vocabulary of a run.

    A token that the model does not know gets the embedding that was drawn, no weights of the
    projection, and a bias so low that all such tokens together have less than `_MAX_NEW_MASS` of
    the probability after any text: the known ones keep theirs. Where such a token is to be
    predicted, its logit still has the gradient -1, as that of any token of probability near 0.

    Args:
      drawn: parameters of the run, drawn at random; numpy arrays.
      initial: where the weights come from.
      vocab: of the run.
      config: the architecture.
    """
    assert initial.trained is not None
    theirs: PyTree = initial.trained.params
    old = token_ids(initial.vocab)
    known = [(new, old[token]) for token, new in token_ids(vocab).items() if token in old]
    here, there = (list(ids) for ids in zip(*known, strict=True)) if known else ([], [])
    params: PyTree = jax.tree.map(np.array, theirs)
    for path, axis in token_axes(config).items():
        moved = np.moveaxis(np.array(_leaf(drawn, path)), axis, 0)
        if path[0].startswith("output"):
            moved[:] = 0
        moved[here] = np.moveaxis(_leaf(theirs, path), axis, 0)[there]
        _leaf(params, path[:-1])[path[-1]] = np.ascontiguousarray(np.moveaxis(moved, 0, axis))
    new = np.setdiff1d(np.arange(len(vocab)), here)
    if new.size and here:
        kernel, bias = params["output_kernel"][:, here], params["output_bias"][here]
        lowest = _least_log_sum_exp(kernel, bias)
        params["output_bias"][new] = lowest + math.log(_MAX_NEW_MASS / new.size)
    return params


def _least_log_sum_exp(
    kernel: Float[np.ndarray, "hidden k"], bias: Float[np.ndarray, " k"]
) -> float:
    """A lower bound of the log-sum-exp of `h @ kernel + bias` for any h in [-1, 1].

    By Jensen's inequality it is at least log k plus the mean logit, which is an affine function
    of h.
    """
    mean_kernel = kernel.mean(axis=1, dtype=np.float64)
    return float(math.log(bias.size) + bias.mean(dtype=np.float64) - np.abs(mean_kernel).sum())


def token_ids(vocab: Vocab) -> dict[str, int]:
    """{token: id}; the names of the boundary and of [UNK] are no characters."""
    ids = {character: i for i, character in enumerate(vocab.characters)}
    special = {"the boundary": vocab.boundary_id, "[UNK]": vocab.unk_id}
    return ids | {name: i for name, i in special.items() if i is not None}


def token_axes(config: ModelConfig) -> dict[tuple[str, ...], int]:
    """{path of a parameter: the axis along which it has an entry for each token}."""
    table = ("embedding",) if config.embed else ("layer_0", "kernel")
    return {table: 0, ("output_kernel",): 1, ("output_bias",): 0}


def _leaf(params: PyTree, path: tuple[str, ...]) -> PyTree:
    for key in path:
        params = params[key]
    return params


def scale_imported(
    optimizer: optax.GradientTransformation, config: Config, initial: Initial | None, vocab: Vocab
) -> optax.GradientTransformation:
    """The optimizer with smaller or larger updates of the weights that were imported.

    The rows of tokens that the model did not know are updated as without it.
    """
    factor = config.optim.imported_rate
    if initial is None or factor in (0, 1):
        return optimizer
    old = token_ids(initial.vocab)
    is_known = np.array([token in old for token in token_ids(vocab)])
    by_token = np.where(is_known, np.float32(factor), np.float32(1))
    axes = token_axes(config.model)

    def scale(path: tuple[jax.tree_util.DictKey, ...], update: jax.Array) -> jax.Array:
        axis = axes.get(tuple(key.key for key in path))
        if axis is None:
            return update * factor
        return update * by_token.reshape([-1 if i == axis else 1 for i in range(update.ndim)])

    def rescale(updates: PyTree, params: PyTree = None) -> PyTree:
        del params
        return jax.tree_util.tree_map_with_path(scale, updates)

    return optax.chain(optimizer, optax.stateless(rescale))


def report(initial: Initial, dataset: Dataset) -> str:
    """What became of the tokens, for the user."""
    old, new = token_ids(initial.vocab), token_ids(dataset.vocab)
    in_text = set(dataset.corpus.text)
    tokens = {
        "known": [token for token in new if token in old],
        "new": [token for token in new if token not in old],
        "kept, though the text lacks them": [
            token for token in new if token in old and len(token) == 1 and token not in in_text
        ],
        "dropped, which the text lacks": [token for token in old if token not in new],
    }
    counts = [f"{len(tokens['known'])} known"]
    for what, some in list(tokens.items())[1:]:
        counts += [f"{len(some)} {what} ({_points(some)})"] if some else []
    source = initial.source
    return (
        f"init_from: {source.path}, step {source.step:,}, weights of SHA-256 "
        f"{source.sha256[:12]}; tokens: {'; '.join(counts)}; the optimizer starts anew"
    )


def _points(tokens: list[str]) -> str:
    return listed([f"U+{ord(t):04X}" if len(t) == 1 else t for t in tokens])
