"""A server app that asks for two masked vectors at once, and writes down what it could read."""

import json
from pathlib import Path

from flwr.serverapp import ServerApp

from fedproxy_secure.errors import FedProxyError
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import ServerState
from fedproxy_secure.flower.selftest.hostile import TwoInboxes
from fedproxy_secure.flower.server_app import FINAL, INITIAL, PROXY, control_folder, serve
from fedproxy_secure.runtime.files.names import JOB

READ = "read.json"
app = ServerApp()


@app.main()
def main(grid, context):
    """One run of the job; the last client is the victim."""
    control = control_folder()
    job = FederationJob.from_json((control / JOB).read_text())
    initial = ServerState.load(control / INITIAL)
    hostile = TwoInboxes(grid, job=job, sizes=initial.sizes.tolist(), victim=job.clients[-1].name)
    seen = {}
    try:
        serve(hostile, job, Path((control / PROXY).read_text()), initial)
        seen["ended"] = "normally"
    except FedProxyError as error:
        seen["ended"] = str(error)
    seen["twice"] = hostile.answered_twice()
    try:
        seen["read"] = hostile.victims_update().tolist()
    except FedProxyError as error:
        seen["stopped"] = str(error)
    (control / READ).write_text(json.dumps(seen))
    initial.save(control / FINAL)
