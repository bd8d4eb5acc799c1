"""Freeze what is loaded: the garbage collector leaves it alone from now on. Imported for this effect.

The server of processes (`fedproxy_secure.runtime.preload`) imports this module last. Otherwise the first
collection in every process forked from the server would write to the memory pages of torch and everything
else, and so copy them.
"""

import gc

gc.collect()
gc.freeze()
