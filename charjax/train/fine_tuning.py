"""Fine-tuning: the first weights of a run come from another model, `train.init_from`.

The rows of the embedding and the columns of the output projection are matched by token, as the
vocabularies may differ; all other weights are copied. The optimizer starts without a state.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Collection
from typing import NamedTuple

import jax
import numpy as np
import optax

from charjax.checkpoint.meta import RunMeta, SourceMeta
from charjax.config import Config, ModelConfig
from charjax.data.dataset import Dataset
from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.export.weights import named_weights
from charjax.inference.load import TrainedModel, load_initial
from charjax.model.cells import CELLS
from charjax.runtime.display import code_points
from charjax.train.train_state import TrainState, state_from
from charjax.types import PyTree

_logger = logging.getLogger(__name__)
_ARCHITECTURE = ("cell", "hidden", "layers", "embed")
_MAX_NEW_MASS = 1e-7  # the probability of all new tokens together, before training


class InitialModel(NamedTuple):
    """The model that `train.init_from` names.

    Attributes:
      source: its description, for the run's metadata.
      trained: the model itself; None in a resumed run, whose checkpoint has the weights.
    """

    source: SourceMeta
    trained: TrainedModel | None

    @property
    def vocab(self) -> Vocab:
        """The vocabulary of the model, not of the run."""
        return Vocab.from_json(self.source.vocabulary)


def read_initial_model(config: Config, saved: RunMeta | None) -> InitialModel | None:
    """The model that `train.init_from` names; None if it names none.

    That of a resumed run is not read: the run has saved its description.

    Args:
      config: the run.
      saved: the run as it was saved; None for a new run.

    Raises:
      InputError: there is no such model, or it has another architecture or unit.
    """
    if saved:
        source = saved.source
        return InitialModel(source, None) if source and source.vocabulary else None
    if not config.train.init_from:
        return None
    option = f"--init_from={config.train.init_from}"
    trained = load_initial(config.train)
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
    return InitialModel(source, trained)


def _check_same_architecture(config: Config, trained: TrainedModel, option: str) -> None:
    theirs, ours = trained.config.model, config.model
    wrong = [name for name in _ARCHITECTURE if getattr(theirs, name) != getattr(ours, name)]
    if wrong:
        has = ", ".join(f"{name}={getattr(theirs, name)}" for name in wrong)
        flags = " ".join(f"--config.model.{name}={getattr(theirs, name)}" for name in wrong)
        raise InputError(f"{option}: that model has {has}, unlike this config; give {flags}")
    if trained.vocab.unit != config.data.unit:
        raise InputError(
            f"{option}: a token of that model is a {trained.vocab.unit}; give "
            f"--config.data.unit={trained.vocab.unit}"
        )


def start_from(
    state: TrainState,
    config: Config,
    optimizer: optax.GradientTransformation,
    initial: InitialModel | None,
    dataset: Dataset,
) -> TrainState:
    """The state before the first step, with the weights of the initial model if there is one."""
    if initial is None:
        return state
    _logger.info(describe_tokens(initial, dataset, config.optim.frozen))
    params = initial_params(state.params, initial, dataset.vocab, config.model)
    return state_from(config, params, optimizer)


def initial_params(
    random_params: PyTree, initial: InitialModel, vocab: Vocab, config: ModelConfig
) -> PyTree:
    """The weights of the initial model, rearranged for the vocabulary of the run.

    A new token, one that the model does not have, gets its embedding from `random_params` and, in
    the output projection, the mean column of the k known tokens. So its logit is their mean logit
    but for the bias, which is so low that all new tokens together have at most `_MAX_NEW_MASS` of
    the probability: by Jensen's inequality the log-sum-exp of the known logits is at least log k
    plus their mean, after any text. So the known tokens keep their probabilities. New tokens can
    be learned: where one is the target, its logit has the gradient -1, like any target of
    probability near 0.

    Args:
      random_params: the randomly initialized parameters of the run; numpy arrays.
      initial: the model that the weights come from.
      vocab: that of the run.
      config: the architecture.
    """
    assert initial.trained is not None
    old_params: PyTree = initial.trained.params
    old = token_ids(initial.vocab)
    known = [(i, old[token]) for token, i in token_ids(vocab).items() if token in old]
    known_ids, old_ids = (list(ids) for ids in zip(*known, strict=True)) if known else ([], [])
    params: PyTree = jax.tree.map(np.array, old_params)
    for path, axis in token_axes(config).items():
        by_token = np.moveaxis(np.array(_leaf(random_params, path)), axis, 0)
        by_token[known_ids] = np.moveaxis(_leaf(old_params, path), axis, 0)[old_ids]
        _leaf(params, path[:-1])[path[-1]] = np.ascontiguousarray(np.moveaxis(by_token, 0, axis))
    new_ids = np.setdiff1d(np.arange(len(vocab)), known_ids)
    if new_ids.size and known_ids:
        kernel, bias = params["output_kernel"], params["output_bias"]
        kernel[:, new_ids] = kernel[:, known_ids].mean(axis=1, dtype=np.float64, keepdims=True)
        mean = bias[known_ids].mean(dtype=np.float64)
        bias[new_ids] = mean + math.log(len(known_ids) * _MAX_NEW_MASS / new_ids.size)
    return params


def token_ids(vocab: Vocab) -> dict[str, int]:
    """{token: id}; the keys of the boundary and [UNK] are names longer than a character."""
    ids = {character: i for i, character in enumerate(vocab.characters)}
    special = {"the boundary": vocab.boundary_id, "[UNK]": vocab.unk_id}
    return ids | {name: i for name, i in special.items() if i is not None}


def token_axes(config: ModelConfig) -> dict[tuple[str, ...], int]:
    """{path of a parameter: its vocabulary axis}, for the parameters that have one."""
    axes: dict[tuple[str, ...], int] = {("output_kernel",): 1, ("output_bias",): 0}
    if config.embed:
        return {("embedding",): 0, **axes}
    for number in range(CELLS[config.cell].rounds):  # in turn [hidden, vocab] and [vocab, hidden]
        axes["layer_0", f"round_{number}_kernel"] = 1 - number % 2
    return {("layer_0", "kernel"): 0, **axes}


def _leaf(params: PyTree, path: tuple[str, ...]) -> PyTree:
    for key in path:
        params = params[key]
    return params


def scale_imported(
    optimizer: optax.GradientTransformation,
    config: Config,
    initial: InitialModel | None,
    vocab: Vocab,
) -> optax.GradientTransformation:
    """Multiplies the updates of the initial model's weights by `optim.imported_rate`.

    The weights of new tokens keep the full learning rate.
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

    rescale = optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))
    return optax.chain(optimizer, rescale)


def describe_tokens(initial: InitialModel, dataset: Dataset, frozen: Collection[str]) -> str:
    """The message about the initial model, and its known, new, kept and dropped tokens."""
    old, new = token_ids(initial.vocab), token_ids(dataset.vocab)
    in_text = set(dataset.corpus.characters)
    known = [token for token in new if token in old]
    is_stuck = known and "output" in frozen  # then the low bias of new tokens stays
    others = {
        "new, impossible while config.optim.freeze has output" if is_stuck else "new": [
            token for token in new if token not in old
        ],
        "kept, though the text lacks them": [
            token for token in known if len(token) == 1 and token not in in_text
        ],
        "dropped, which the text lacks": [token for token in old if token not in new],
    }
    counts = [f"{len(known)} known"]
    counts += [f"{len(them)} {kind} ({code_points(them)})" for kind, them in others.items() if them]
    source = initial.source
    return (
        f"init_from: {source.path}, step {source.step:,}, weights of SHA-256 "
        f"{source.sha256[:12]}; tokens: {'; '.join(counts)}; the optimizer starts without a state"
    )
