"""Load what attacks need, so that processes forked from this one start with all of it."""

import contextlib

from attacks.registry import every
from fedproxy_secure.errors import FedProxyError
from fedproxy_secure.models.llm import demo_llm_folder, load_llm

with contextlib.suppress(ImportError):  # the extra `attacks` may not be installed
    import sklearn.linear_model
    import sklearn.pipeline  # noqa: F401
import peft  # noqa: F401
import scipy.optimize
import scipy.stats  # noqa: F401

with contextlib.suppress(FedProxyError):  # a broken entry point is reported where it is used
    every()
load_llm(demo_llm_folder(), device="cpu")
