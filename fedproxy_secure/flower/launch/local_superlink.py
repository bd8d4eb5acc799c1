"""A SuperLink for engines on one machine; it answers only this user's processes, where the system tells.

python -m fedproxy_secure.flower.launch.local_superlink ...    # arguments of `flower-superlink`

Flower's own SuperLink answers whoever reaches its port, also other users of the machine, and runs the code
that they submit.
"""

from __future__ import annotations

from fedproxy_secure.flower.internals.superlink import start_superlink
from fedproxy_secure.flower.launch.parent import end_with_parent
from fedproxy_secure.flower.launch.same_user import OnlyThisUser, users_are_known_or_warned_of

if __name__ == "__main__":
    end_with_parent()
    start_superlink(OnlyThisUser if users_are_known_or_warned_of() else None, None)
