"""Models that torch and Keras made and trained themselves, converted: the same logits, scored here.

    pytest -m slow tests/export/conversion/test_frameworks.py

needs torch and Keras 3 in the environment.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from charjax.cli.main import main
from charjax.inference.load import load_trained
from tests.export.tiny import network_logits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("keras_on_jax"),
    pytest.mark.filterwarnings("ignore"),  # of other packages
]
CHARACTERS = "\n abcdefghijklmnopqrstuvwxyz"
MODELS = [
    (cell, layers, embed) for cell in ("gru", "lstm", "rnn") for layers, embed in ((1, 8), (3, 0))
]


def text_of(length: int) -> str:
    draw = np.random.default_rng(3)
    return "".join(CHARACTERS[i] for i in draw.integers(0, len(CHARACTERS), length))


def converted(file: Path, source: str, vocabulary: object):
    """The model that `charjax convert` makes of a file."""
    file.with_name("v.json").write_text(json.dumps(vocabulary))
    line = ["convert", file, f"--from={source}", f"--vocabulary={file.with_name('v.json')}"]
    assert main([*map(str, line), f"--out={file}.run"]) == 0
    return load_trained(Path(f"{file}.run"), which="best")


def assert_same_logits(trained, ids: np.ndarray, logits: np.ndarray) -> None:
    """Over 1,000 characters, to 1e-5."""
    assert ids.shape == (1, 1000)
    np.testing.assert_allclose(network_logits(trained, ids), logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("cell", "layers", "embed"), MODELS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_torch_module_has_the_same_logits(cell, layers, embed, suffix, tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    vocab, hidden = len(CHARACTERS), 32

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            if embed:
                self.encoder = torch.nn.Embedding(vocab, embed)
            make = getattr(torch.nn, cell.upper())
            self.rnn = make(embed or vocab, hidden, num_layers=layers, batch_first=True)
            self.fc = torch.nn.Linear(hidden, vocab)

        def forward(self, ids):
            x = self.encoder(ids) if embed else torch.nn.functional.one_hot(ids, vocab).float()
            return self.fc(self.rnn(x)[0])

    net, ids = Net(), np.random.default_rng(0).integers(0, vocab, (1, 1000))
    with torch.no_grad():
        logits = net(torch.from_numpy(ids)).numpy()
    file = tmp_path / f"net{suffix}"
    if suffix == ".pt":
        torch.save({"epoch": 3, "model_state_dict": net.state_dict()}, file)
    else:
        from safetensors.torch import save_file

        save_file(net.state_dict(), file)
    trained = converted(file, "torch", list(CHARACTERS))
    assert trained.config.model.embed == embed
    assert_same_logits(trained, ids, logits)


@pytest.mark.parametrize(("cell", "layers", "embed"), MODELS)
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_a_keras_model_has_the_same_logits(cell, layers, embed, suffix, tmp_path):
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    vocab = len(CHARACTERS)
    make = {"gru": keras.layers.GRU, "lstm": keras.layers.LSTM, "rnn": keras.layers.SimpleRNN}[cell]
    first = [keras.Input((None, vocab))]
    if embed:
        first = [keras.Input((None,), dtype="int32"), keras.layers.Embedding(vocab, embed)]
    recurrent = [make(32, return_sequences=True, bias_initializer="normal") for _ in range(layers)]
    model = keras.Sequential([*first, *recurrent, keras.layers.Dense(vocab)])
    ids = np.random.default_rng(0).integers(0, vocab, (1, 1000))
    logits = model.predict(ids if embed else np.eye(vocab, dtype="f")[ids], verbose=0)
    file = tmp_path / f"model{suffix}"
    (model.save if suffix == ".keras" else model.save_weights)(file)
    trained = converted(file, "keras", list(CHARACTERS))
    assert trained.config.model.embed == embed
    assert_same_logits(trained, ids, logits)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("name", ["GRUCell", "LSTMCell", "SimpleRNNCell"])
def test_a_keras_rnn_of_cells_between_layers_of_noise_has_the_same_logits(name, number, tmp_path):
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    vocab, layers = len(CHARACTERS), keras.layers
    cells = [getattr(layers, name)(32, bias_initializer="normal") for _ in range(number)]
    model = keras.Sequential(
        [
            *(keras.Input((None,), dtype="int32"), layers.Embedding(vocab, 8)),
            *(layers.GaussianNoise(0.1), layers.GaussianDropout(0.1)),
            layers.RNN(cells if number > 1 else cells[0], return_sequences=True),
            *(layers.ActivityRegularization(0.1), layers.Dense(vocab)),
        ]
    )
    ids = np.random.default_rng(0).integers(0, vocab, (1, 1000))
    model.save(tmp_path / "model.keras")
    trained = converted(tmp_path / "model.keras", "keras", list(CHARACTERS))
    assert trained.config.model.layers == number
    assert_same_logits(trained, ids, model.predict(ids, verbose=0))


@pytest.mark.parametrize(("embed", "hidden", "steps"), [(16, 48, 20), (256, 1024, 1)])
def test_the_gru_tutorial_is_trained_there_and_trained_on_here(embed, hidden, steps, tmp_path):
    """TensorFlow's "Text generation with an RNN": Embedding, GRU with state, Dense, by subclassing.

    Its ids are those of `StringLookup`, whose first token is [UNK].
    """
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    vocabulary = ["[UNK]", *CHARACTERS]
    size = len(vocabulary)

    class MyModel(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding = keras.layers.Embedding(size, embed)
            self.gru = keras.layers.GRU(hidden, return_sequences=True, return_state=True)
            self.dense = keras.layers.Dense(size)

        def call(self, inputs, states=None, return_state=False, training=False):
            x = self.embedding(inputs, training=training)
            x, states = self.gru(x, initial_state=states, training=training)
            x = self.dense(x, training=training)
            return (x, states) if return_state else x

    text = "the cat sat on the mat and saw some tea\n" * 200
    ids = np.array([vocabulary.index(c) for c in text[:6400]]).reshape(-1, 100)
    model = MyModel()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss)
    for _ in range(steps):
        model.train_on_batch(ids[:, :-1], ids[:, 1:])
    model.save_weights(tmp_path / "m.weights.h5")
    trained = converted(tmp_path / "m.weights.h5", "keras", vocabulary)
    assert trained.vocab.unk_id == size - 1
    one = np.concatenate(ids)[None, :1000]
    logits = np.asarray(model.predict(one, verbose=0))
    ours = network_logits(trained, (one - 1) % size)  # [UNK] is the last token here
    np.testing.assert_allclose(np.roll(ours, 1, axis=2), logits, atol=1e-5, rtol=0)

    # Scored by the command, to 1e-5 of Keras' loss.
    (tmp_path / "text.txt").write_text(text[:1000])
    log_p = np.asarray(jax.nn.log_softmax(logits[0, :-1].astype(np.float64)))
    theirs = -np.mean(log_p[np.arange(999), one[0, 1:]])
    assert abs(score_of(tmp_path / "m.weights.h5.run", tmp_path / "text.txt") - theirs) < 1e-5

    # And trained on.
    (tmp_path / "long.txt").write_text(text)
    config = Path(__file__).parents[3] / "configs" / "quickstart.py"
    flags = [
        *(f"--config={config}", f"--init_from={tmp_path}/m.weights.h5.run"),
        *(f"--workdir={tmp_path}/on", f"--config.data.path={tmp_path}/long.txt"),
        *(f"--config.model.embed={embed}", f"--config.model.hidden={hidden}"),
        *("--config.train.max_steps=20", "--config.data.unk=True", "--config.sample.num_chars=0"),
    ]
    assert main(["train", *flags]) == 0
    assert score_of(tmp_path / "on", tmp_path / "text.txt") < theirs - 0.1


def score_of(workdir: Path, file: Path) -> float:
    from charjax.inference.scoring.score import read_file, score_text
    from charjax.runtime.display import no_progress

    trained = load_trained(workdir, which="best")
    ids = read_file(trained, str(file), unknown="error")
    return score_text(trained, ids, no_progress).nats_per_char
