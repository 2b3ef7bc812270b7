"""The public names of charjax and the modules that they come from."""

from .checkpoint.checkpoints import Checkpoints as Checkpoints
from .config import Config as Config
from .config import DataConfig as DataConfig
from .config import ModelConfig as ModelConfig
from .config import OptimConfig as OptimConfig
from .config import TrainConfig as TrainConfig
from .data.batches import Batch as Batch
from .data.batches import make_batches as make_batches
from .data.batches import split as split
from .data.dataset import load_dataset as load_dataset
from .data.vocab import Vocab as Vocab
from .inference.evaluate import char_nats as char_nats
from .inference.evaluate import score as score
from .inference.load import load_trained as load_trained
from .inference.sampler import Sampler as Sampler
from .inference.sampler import sample as sample
from .inference.sampling import Sampling as Sampling
from .inference.texts import sample_texts as sample_texts
from .model.carry import initial_carry as initial_carry
from .model.network import CharRNN as CharRNN
from .model.network import init_params as init_params
from .runtime.dtypes import resolve_dtype as resolve_dtype
from .train.optimizer import make_optimizer as make_optimizer
from .train.step import TrainState as TrainState
from .train.step import init_state as init_state
from .train.step import make_step as make_step
