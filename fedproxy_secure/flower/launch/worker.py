"""A site's worker: one process that answers all messages, with this installation's client app.

    python -m fedproxy_secure.flower.launch.worker ADDRESS SECRET_FILE POLICY

The SuperNode beside it takes messages from the SuperLink and hands them on. Model and records are loaded
once and stay, so that a step of a round takes milliseconds, not the seconds that a process needs to start.

Guarantees: no code that the SuperLink sent is unpacked or run. The policy is the one that the command
names, whatever the SuperNode, or a process in its place, says. Messages are answered one by one.
Nothing is sent to a process of another user that has taken the SuperNode's place, where the system tells
users apart (Linux with inet_diag).
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from fedproxy_secure.flower.client_app import app
from fedproxy_secure.flower.internals.worker import answer_tasks
from fedproxy_secure.flower.launch.parent import end_with_parent
from fedproxy_secure.flower.launch.same_user import (
    Address,
    is_served_by_this_user,
    users_are_known_or_warned_of,
)


def any_user(other: Address, own: Address) -> bool:
    """Accept every connection, where the system does not tell whose it is."""
    return True


def main() -> None:
    """Answer messages until this process is told to stop, or its parent ends."""
    address, secret_file, policy = sys.argv[1:]
    end_with_parent()
    with suppress(KeyboardInterrupt):  # raised by SIGINT, which tells it to stop
        answer_tasks(
            address,
            Path(secret_file).read_bytes(),
            app,
            {"policy": policy},
            is_own_users=is_served_by_this_user if users_are_known_or_warned_of() else any_user,
        )


if __name__ == "__main__":
    main()
