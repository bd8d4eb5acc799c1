"""Healing: bring a proxy closer to its LLM, on public text, before clients get it.

    fit.py      the last map of each block, fitted in closed form to the LLM's hidden states
    distil.py   `heal`: the fit, then steps of distillation (Hinton et al. 2015) of the blocks' weights
    precise.py  float32 numbers to step on, whatever the model's dtype
    state.py    an unfinished and a finished healing on disk

Dropping blocks damages a model, and tuning first repairs the damage: much of what clients would learn is
how to compensate for missing blocks. Lifted into the LLM, which misses no block, that part is noise. The
paper releases exact copies. Here the server heals the proxy first, so that clients learn their tasks only.

Only blocks are changed, all or those before a gap; embeddings, final norm and head stay the LLM's. The
changes of healing are never plugged back: the lifted difference holds only what clients learnt, so blocks
need not be exact copies.

Not guaranteed: that a healed proxy reveals less of the LLM. Its blocks are no longer copies, but its
predictions are closer. Both are measured: `verbatim_share`, `fidelity`, and extraction among the attacks.
"""

from fedproxy_secure.compress.healing.distil import HELD_OUT, Healed, heal

__all__ = ["HELD_OUT", "Healed", "heal"]
