"""On import, exempt all loaded modules from garbage collection.

The server of processes (`fedproxy_secure.runtime.preload`) imports this module last. Otherwise the first
collection in every process forked from the server would write to the memory pages of all modules, such as
torch, and so copy them.
"""

import gc

gc.collect()
gc.freeze()
