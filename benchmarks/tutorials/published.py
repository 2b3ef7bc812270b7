"""Sizes, losses and samples that the five tutorials publish."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tutorial:
    """One tutorial.

    Attributes:
      title: its title.
      framework: "keras" or "torch".
      parameters: as printed; 0: not printed.
      vocab_size: as printed.
      windows: per epoch, as printed; 0: not printed.
      losses: mean training loss of each printed epoch, nats per character.
      epoch_s: seconds per epoch on its author's GPU; 0: not printed.
      sample: the beginning of a text that it prints after its last epoch.
      temperature: of that text.
      differences: between its training and ours.
    """

    title: str
    framework: str
    parameters: int = 0
    vocab_size: int
    windows: int = 0
    losses: tuple[float, ...] = ()
    epoch_s: float = 0
    sample: str
    temperature: float = 1
    differences: str


_KERAS = (
    "The initial weights are drawn from Keras' distributions, with other random numbers, and "
    "windows are shuffled over the whole text, not through a buffer of 10,000."
)

TUTORIALS = {
    "tf_lstm": Tutorial(
        title="TensorFlow: text generation with an RNN, LSTM",
        framework="keras",
        parameters=5_330_241,
        vocab_size=65,
        losses=(2.5789, 1.8779, 1.6324, 1.5008, 1.4210, 1.3654, 1.3204, 1.2809, 1.2449, 1.2095),
        epoch_s=9,
        sample="ROMEO: ISALYH:\nThe greater wores!\nPersuach our friar,--kin with Lancaster and "
        "Lary\nBe very guard, a, reap the name of John and pale;",
        differences=_KERAS + " The tutorial's layer is stateful: each batch of shuffled windows "
        "starts from the carry of the batch before it, as with `data.stateful` here.",
    ),
    "tf_gru": Tutorial(
        title="TensorFlow: text generation with an RNN, GRU",
        framework="keras",
        parameters=4_022_850,
        vocab_size=66,
        losses=(
            *(2.7409, 2.0092, 1.7211, 1.5550, 1.4547, 1.3865, 1.3325, 1.2875, 1.2474, 1.2066),
            *(1.1678, 1.1270, 1.0842, 1.0388, 0.9909, 0.9409, 0.8887, 0.8373, 0.7849, 0.7371),
        ),
        epoch_s=5,
        sample="ROMEO:\nThis is not your comfort, when you see--\nHuntsmit, we have already, let "
        "us she so hard,\nMatters there well. Thou camallo, this night, you should her.",
        differences=_KERAS
        + " Keras' GRU has 2 * 1,024 parameters more: a second bias of the reset "
        "and the update gate, which is redundant.",
    ),
    "nietzsche": Tutorial(
        title="Deep Learning with Python: Nietzsche",
        framework="keras",
        vocab_size=57,
        windows=200_278,
        sample="the slowly ascending ranks and classes, in which,\nthrough former and superiority "
        "of the most desires of the spirit and soul the sense of the sense of the sense of the "
        "sense of the proper and the superstition of the most man should be one",
        temperature=0.2,
        differences="The tutorial reads the last 60 characters again for every character that it "
        "writes; charjax keeps the carry, so that a character depends on all the text before.",
    ),
    "grimm": Tutorial(
        title="Python Machine Learning: the brothers Grimm",
        framework="keras",
        parameters=1_628_742,
        vocab_size=70,
        losses=(
            *(2.9678, 2.2996, 2.0773, 1.9225, 1.8030, 1.7069, 1.6286, 1.5626, 1.5076, 1.4590),
            *(1.4158, 1.3789, 1.3429, 1.3118, 1.2823, 1.2536, 1.2270, 1.2000, 1.1744, 1.1505),
        ),
        epoch_s=1.2,
        sample="THE GOOSE-GIRL\n\n\nOnce upon a time conding to go to the beautiful clothes, and "
        "it heard they were not be into the house.",
        temperature=0.5,
        differences=_KERAS
        + " In the mean that Keras prints, the last batch of an epoch has the weight of "
        "its 33 windows; charjax averages over the steps.",
    ),
    "ag_news": Tutorial(
        title="AI for Beginners: headlines",
        framework="torch",
        vocab_size=82,
        sample="Today and a company and complete an all the land the restrational the as a "
        "security and has provers the pay to and a report",
        temperature=0.3,
        differences="The lesson takes each document's windows as one batch, in file order, and "
        "stops after 9,999 documents, a twelfth of the train part; ours are 128 windows of all "
        "documents, shuffled. torch's LSTM has two biases, of which one is redundant: 4 * 64 "
        "parameters more than ours.",
    ),
}
