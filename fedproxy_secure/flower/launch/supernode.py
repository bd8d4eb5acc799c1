"""A SuperNode that runs only one app: the one that its site's own installation builds.

    python -m fedproxy_secure.flower.launch.supernode ...    # arguments of `flower-supernode`

The SuperLink says which app a node runs, and sends it. Flower's own `--trusted-entities` relies on signed
apps, but Flower's free SuperLink cannot pass signatures on. Here the site compares the app's bytes, and
what the SuperLink says of the run, with the app of its own installation.

Guarantees: no app but the one with the hash `app_sha256()` is unpacked, loaded or run, and no path is built
from what the SuperLink says of it. A message for any other app is dropped with one line in the log; the
node goes on. Started with `--isolation process`, the node unpacks no app at all; the worker beside it
(`launch.worker`) answers with the installation's own.
"""

from __future__ import annotations

import hashlib
import logging

from fedproxy_secure.flower.internals.supernode import AppRefused, OfferedApp, start_supernode
from fedproxy_secure.flower.launch.app import FAB_ID, FAB_VERSION, app_sha256
from fedproxy_secure.flower.launch.parent import end_with_parent
from fedproxy_secure.flower.launch.same_user import guarded_where_possible
from fedproxy_secure.runtime.quoting import quoted

log = logging.getLogger(__name__)
SERVER_APP = "flwr-serverapp"  # what Flower calls a run of a server app with client apps


def check_app(app: OfferedApp) -> None:
    """Raise `AppRefused` for any app but this installation's."""
    expected = (FAB_ID, FAB_VERSION, app_sha256(), SERVER_APP)
    offered = (app.fab_id, app.version, app.sha256, app.kind)
    if app.content is not None:
        offered = (*offered[:2], hashlib.sha256(app.content).hexdigest(), app.kind)
    if offered != expected:
        log.error(
            "the SuperLink offers the app %s: must be %s; the message is dropped",
            quoted(" ".join(map(str, offered))),
            " ".join(expected),
        )
        raise AppRefused


def main() -> None:
    """Start Flower's SuperNode with the check in its connection."""
    end_with_parent()
    start_supernode(check_app, guarded_where_possible)


if __name__ == "__main__":
    main()
