"""A SuperNode for engines on one machine, beside a worker; it takes any app, because it unpacks none.

python -m fedproxy_secure.flower.launch.local_supernode ...    # arguments of `flower-supernode`
"""

from __future__ import annotations

from fedproxy_secure.flower.internals.supernode import start_supernode
from fedproxy_secure.flower.launch.parent import end_with_parent
from fedproxy_secure.flower.launch.same_user import guarded_where_possible

if __name__ == "__main__":
    end_with_parent()
    start_supernode(lambda app: None, guarded_where_possible)
