"""Times a step of each tutorial in its own framework, as its author set it up.

    python benchmarks/tutorials/frameworks.py NAME TEXT.json SECONDS

TEXT.json is a list of documents. The script imports nothing of charjax, so that it runs in
an environment that has Keras with TensorFlow, or torch, and nothing else. It prints one JSON
object: `step_s` (the median), `steps`, `losses` (the first three steps'), `parameters` and
`versions`.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

_WARM = 3  # steps before the clock starts

# embedding, cell, units, sequence length, whether the last batch may be partial
_WINDOWED = {
    "tf_lstm": (256, "LSTM", 1024, 100, False),
    "tf_gru": (256, "GRU", 1024, 100, False),
    "grimm": (256, "LSTM", 512, 50, True),
}


def main(name: str, text_file: str, seconds: str) -> None:
    """Times one tutorial."""
    documents = json.loads(Path(text_file).read_text(encoding="utf-8"))
    if name in _WINDOWED:
        result = _keras_windows(name, documents[0], float(seconds))
    elif name == "nietzsche":
        result = _keras_sliding(documents[0], float(seconds))
    else:
        result = _torch_documents(documents, float(seconds))
    print(json.dumps(result))


def _keras_windows(name: str, text: str, seconds: float) -> dict[str, Any]:
    """Embedding, one recurrent layer, dense; shuffled disjoint windows through tf.data."""
    import keras
    import numpy as np
    import tensorflow as tf

    embed, cell, units, length, partial = _WINDOWED[name]
    characters, ids = np.unique([*text], return_inverse=True)
    vocab_size = len(characters) + (name == "tf_gru")  # [UNK]
    stateful = {"stateful": True, "recurrent_initializer": "glorot_uniform"}
    options = stateful if name == "tf_lstm" else {}
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(None if partial else 64, None)),
            keras.layers.Embedding(vocab_size, embed),
            getattr(keras.layers, cell)(units, return_sequences=True, **options),
            keras.layers.Dense(vocab_size),
        ]
    )
    model.compile(
        optimizer="adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    windows = tf.data.Dataset.from_tensor_slices(ids.astype(np.int32)).batch(
        length + 1, drop_remainder=True
    )
    pairs = windows.map(lambda window: (window[:-1], window[1:]))
    dataset = pairs.shuffle(10_000).batch(64, drop_remainder=not partial)
    return _fit(model, (dataset.repeat(),), {"steps_per_epoch": 10**6}, seconds)


def _keras_sliding(text: str, seconds: float) -> dict[str, Any]:
    """One-hot windows of 60 with stride 3, the next character as target, all in memory."""
    import keras
    import numpy as np

    length, stride = 60, 3
    characters, ids = np.unique([*text], return_inverse=True)
    starts = np.arange(0, len(text) - length, stride)
    one_hot = np.eye(len(characters), dtype=bool)
    x, y = one_hot[ids[starts[:, None] + np.arange(length)]], one_hot[ids[starts + length]]
    model = keras.Sequential(
        [
            keras.Input((length, len(characters))),
            keras.layers.LSTM(128),
            keras.layers.Dense(len(characters), activation="softmax"),
        ]
    )
    model.compile(
        loss="categorical_crossentropy", optimizer=keras.optimizers.RMSprop(learning_rate=0.01)
    )
    return _fit(model, (x, y), {"batch_size": 128}, seconds)


def _fit(
    model: Any, data: tuple[Any, ...], options: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """`model.fit` until the seconds are over, with a clock as its callback."""
    import keras
    import tensorflow as tf

    marks: list[float] = []
    losses: list[float] = []

    def note(_batch: int, logs: Any) -> None:
        losses.append(float(logs["loss"]))
        marks.append(time.perf_counter())
        model.stop_training = len(marks) > _WARM + 3 and marks[-1] - marks[_WARM] > seconds

    clock = keras.callbacks.LambdaCallback(on_train_batch_end=note)
    model.fit(*data, epochs=10**6, verbose=0, callbacks=[clock], **options)
    versions = {"keras": keras.__version__, "tensorflow": tf.__version__}
    return _result(marks, losses, model.count_params(), versions)


def _torch_documents(documents: list[str], seconds: float) -> dict[str, Any]:
    """One batch per document, its windows of 100; a one-hot LSTM of 64 units.

    The reported `step_s` is that of charjax's batch: the seconds per window, times 128.
    """
    import torch

    length, characters = 100, dict.fromkeys("".join(documents))
    number = {character: i for i, character in enumerate(characters)}
    lstm = torch.nn.LSTM(len(characters), 64, batch_first=True)
    dense = torch.nn.Linear(64, len(characters))
    parameters = [*lstm.parameters(), *dense.parameters()]
    optimizer = torch.optim.Adam(parameters, 0.01)
    marks, losses, windows = [time.perf_counter()], [], []
    for document in documents:
        count = len(document) - length
        if count < 10:
            continue
        ids = [number[c] for c in document]
        inputs = torch.tensor([ids[i : i + length] for i in range(count)])
        targets = torch.tensor([ids[i + 1 : i + length + 1] for i in range(count)])
        optimizer.zero_grad()
        states, _ = lstm(torch.nn.functional.one_hot(inputs, len(characters)).float())
        logits = dense(states).view(-1, len(characters))
        loss = torch.nn.functional.cross_entropy(logits, targets.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        marks.append(time.perf_counter())
        windows.append(count)
        if len(marks) > _WARM + 3 and marks[-1] - marks[_WARM] > seconds:
            break
    size = sum(p.numel() for p in parameters)
    result = _result(marks, losses, size, {"torch": torch.__version__})
    per_window = (marks[-1] - marks[_WARM]) / sum(windows[_WARM:])
    return result | {"step_s": 128 * per_window}


def _result(
    marks: list[float], losses: list[float], parameters: int, versions: dict[str, str]
) -> dict[str, Any]:
    laps = [b - a for a, b in itertools.pairwise(marks[_WARM:])]
    return {
        "step_s": statistics.median(laps),
        "steps": len(laps),
        "losses": [round(loss, 4) for loss in losses[:3]],
        "parameters": parameters,
        "versions": versions,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
