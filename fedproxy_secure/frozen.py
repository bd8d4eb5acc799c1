"""Imported last by a server of processes: what is loaded by then is left out of garbage collection.

Otherwise the first collection of every process forked from it writes to, and thereby copies, the pages of
torch and all else.
"""

import gc

gc.collect()
gc.freeze()
