# %% [markdown]
# # From the TensorFlow tutorial to charjax
#
# If you know *Text generation with an RNN* from TensorFlow's tutorials, this notebook goes the same way with charjax:
# the same text, the same windows, the same model and optimizer. Beside each step it says what charjax does in its place.

# %% [markdown]
# ## Install
#
# `SOURCE` is the folder of charjax; `..` where this notebook is in its `notebooks/` folder. On Colab, upload that folder
# first and name it here, such as `/content/charjax`; for a GPU, `/content/charjax[cuda12]`.

# %%
import importlib.util
import subprocess
import sys

SOURCE = ".."
if importlib.util.find_spec("charjax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", SOURCE], check=True)

# %% [markdown]
# ## The device
#
# The tutorial's model has 1,024 units. On a CPU this notebook uses 256 and fewer epochs, so that it takes minutes.

# %%
import jax

for device in jax.devices():
    print(f"{device.platform}: {device.device_kind}")
HAS_ACCELERATOR = jax.default_backend() != "cpu"
UNITS, EPOCHS = (1024, 20) if HAS_ACCELERATOR else (256, 5)

# %% [markdown]
# ## The setup
#
# What the tutorial builds from `tf.data`, `StringLookup`, `Embedding`, `GRU` and `Dense` is a config here. It has the
# tutorial's windows of 100 characters in batches of 64, and Adam as Keras has it. One thing differs: a tenth of the
# text is kept for validation. The tutorial has none, so it cannot tell when the model begins to learn the text by heart.

# %%
from charjax import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from charjax.config import SampleConfig

config = Config(
    data=DataConfig(
        corpus="shakespeare",
        offline="python_docs",  # where the text can be neither found nor downloaded
        unk=True,
        split=(0.9, 0.1, 0.0),
        batching="windows",
        batch_size=64,
        seq_len=100,
    ),
    model=ModelConfig(cell="gru", hidden=UNITS, embed=256, init="keras"),
    optim=OptimConfig(
        name="adam", learning_rate=1e-3, b2=0.999, eps=1e-7, eps_hat=True, clip_norm=0.0
    ),
    train=TrainConfig(max_epochs=EPOCHS, log_every=10),
    sample=SampleConfig(num_chars=0),  # no samples while it trains; see below
)

# %% [markdown]
# ## The text and its characters
#
# The vocabulary is the sorted characters of the text, and `[UNK]`, as in the tutorial. `encode` and `decode` take the
# place of the two lookup layers.

# %%
from charjax import load_dataset

dataset = load_dataset(config)
vocab = dataset.vocab
print(f"{dataset.corpus.name}: {len(dataset.corpus.text):,} characters, {len(vocab)} tokens")
print(dataset.corpus.text[:250])
print("'First Citizen' as ids:", vocab.encode("First Citizen").tolist())

# %% [markdown]
# ## Inputs and targets
#
# The target of each character is the one after it. In the tutorial `split_input_target` shifts each window by one. Here
# `dataset.batches` is a function of the step: `batches(0)` is always the same first batch, shuffled by the seed, so that
# a run that is stopped goes on with the very batch that comes next.

# %%
batch = dataset.batches(0)
print("shape:", batch.inputs.shape)
print("input: ", repr(vocab.decode(batch.inputs[0])[:60]))
print("target:", repr(vocab.decode(batch.targets[0])[:60]))

# %% [markdown]
# ## The model before training
#
# Logits for every character of every window, as `model(input_example_batch)` in the tutorial. Before training the mean
# loss is about the logarithm of the number of tokens: the model takes all of them for equally likely.

# %%
import math

from charjax import init_params, score

params = init_params(config.model, len(vocab), jax.random.key(0))
print(f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters")
untrained = score(config.model, params, dataset.splits.val.ids[:10_000])
print(f"loss {untrained.nats_per_char:.4f}; log({len(vocab)}) = {math.log(len(vocab)):.4f}")

# %% [markdown]
# ## Train
#
# In place of `compile`, `fit` and a checkpoint callback. The picture shows the training and the validation loss. The
# folder keeps the newest checkpoints and the best one, with everything that is needed to go on: interrupt the cell, run
# it again, and it continues to the same result.

# %%
from pathlib import Path

from charjax.train.loop import train

RUN = Path("runs/from_the_tensorflow_tutorial")
progress = train(config, RUN)

# %% [markdown]
# ## Generate text
#
# The tutorial's `OneStep` model predicts one character at a time in a Python loop, and bars `[UNK]` by a mask. Here the
# whole loop is compiled, `[UNK]` is never written, and the state is carried from character to character alike.

# %%
from charjax import Sampling, load_trained, sample_texts

trained = load_trained(RUN, which="best")
for temperature in (0.5, 0.8, 1.0):
    sampling = Sampling(temperature=temperature, seed=1)
    model, params = trained.config.model, trained.params
    (text,) = sample_texts(
        model, params, vocab, "ROMEO:", num_chars=400, num_samples=1, sampling=sampling
    )
    print(f"--- temperature {temperature} ---\nROMEO:{text}\n")

# %% [markdown]
# ## Score
#
# The tutorial judges the model by its training loss. This is the loss on text that it has not seen.

# %%
result = score(trained.config.model, trained.params, dataset.splits.val.ids)
print(f"{result.nats_per_char:.4f} nats, {result.bits_per_char:.4f} bits per character")
print(f"perplexity {result.perplexity:.2f} of {len(vocab)} tokens")

# %% [markdown]
# ## Export the generator
#
# In place of `tf.saved_model.save(one_step_model, ...)`: one page that runs in any browser. `charjax export
# --format=keras` writes weights that Keras loads.

# %%
from charjax.export.api import export_model

PAGE = Path("runs/from_the_tensorflow_tutorial.html")
export_model(trained, PAGE, format="html")
print(f"{PAGE}: {PAGE.stat().st_size / 1e6:.1f} MB; open it in a browser")

# %% [markdown]
# ## Better, in half the time
#
# The tutorial sets the state back to zero at every window. `batching="stream"` carries it on; with dropout, a
# learning-rate schedule and averaged weights the same size reaches a lower loss. `charjax train
# --config=tutorials/tf_gru:better` is that run.
