"""What the undefended model writes itself, so that windows, recovery and usefulness have something to be trained on.

`python -m safealign.sampling +recipe=llama_lora` fills the cache ahead of training; training does the same when
something is missing. Texts go into the data cache only: never into a run directory, a log or the repository.
"""

from safealign.sampling.keeping import read_cache
from safealign.sampling.labelling import Labeller
from safealign.sampling.sampler import DEEP, DISTILLED, OWN_ANSWER, Sampler, spread
from safealign.sampling.settings import SamplingSettings

__all__ = ["DEEP", "DISTILLED", "OWN_ANSWER", "Labeller", "Sampler", "SamplingSettings", "read_cache", "spread"]
