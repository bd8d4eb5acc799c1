"""A SuperLink of an engine of one machine: it answers this user's processes alone, where the system tells.

python -m fedproxy_secure.flower.launch.local_superlink ...    # arguments of `flower-superlink`

Flower's own answers whoever reaches its port, also other users of the machine, and runs the code that they
submit.
"""

from __future__ import annotations

import sys

from fedproxy_secure.flower.internals.superlink import start_superlink
from fedproxy_secure.flower.launch.parent import end_with_parent
from fedproxy_secure.flower.launch.same_user import OnlyThisUser, are_users_known

if __name__ == "__main__":
    end_with_parent()
    start_superlink(OnlyThisUser if are_users_known() else None, lambda: sys.maxsize)
