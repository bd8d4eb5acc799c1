"""Whose training failed under client-level privacy is outside epsilon, so no log to pass on names them."""

from fedproxy_secure.config import parse_config
from fedproxy_secure.experiments.run import run
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.flower.engines import federate
from fedproxy_secure.protect.secure_sum.failures import failed_files, forget_failed, note_failed
from fedproxy_secure.runtime.files.names import AUDIT_LOG, PRIVACY
from tests.support.tiny import tiny_settings


def test_a_finished_seed_neither_keeps_nor_logs_whose_training_failed(tmp_path):
    config = parse_config(tiny_settings(tmp_path / "work", clients=3, federate={"rounds": 1}))
    seen = []

    def with_a_failure(job, proxy_folder, initial, *, run_folder=None, **others):
        state = federate(job, proxy_folder, initial, run_folder=run_folder, **others)
        ledgers = run_folder / PRIVACY
        noted = job.changed(privacy=job.privacy.model_copy(update={"ledger": str(ledgers)}))
        note_failed(noted, job.clients[0].name, 0, "TrainingError")
        seen.extend(failed_files(ledgers))
        return state

    run(config, tmp_path / "out", federate=with_a_failure)
    assert len(seen) == 1
    assert not seen[0].exists()
    assert seen[0].name not in (tmp_path / "out" / AUDIT_LOG).read_text()


def test_what_an_earlier_call_noted_is_forgotten_where_its_clients_keys_are_gone(tmp_path):
    config = parse_config(tiny_settings(tmp_path / "work", clients=3))
    job = FederationJob.from_config(config, seed=0)
    job = job.changed(privacy=job.privacy.model_copy(update={"ledger": str(tmp_path / "ledgers")}))
    note_failed(job, "c0", 3, "MemoryError")
    assert failed_files(tmp_path / "ledgers")
    forget_failed(job)
    assert not failed_files(tmp_path / "ledgers")
