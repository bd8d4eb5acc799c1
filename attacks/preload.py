"""What attacks load, or import when first used: for processes that are forked from one that has it all."""

import contextlib

from attacks.base import every
from fedproxy_secure.errors import FedProxyError
from fedproxy_secure.llm import demo_llm_folder, load_llm

with contextlib.suppress(ImportError):  # the extra `attacks` may not be installed
    import sklearn.linear_model
    import sklearn.pipeline  # noqa: F401
import peft  # noqa: F401
import scipy.optimize
import scipy.stats  # noqa: F401

with contextlib.suppress(FedProxyError):  # a broken entry point: whoever asks for it is told
    every()
load_llm(demo_llm_folder(), device="cpu")
