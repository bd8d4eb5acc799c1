"""Processes that use one journal at once, or end in the middle of using it; started from a clean server."""

import multiprocessing
import os
import signal

from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.journal.rounds import Journal
from fedproxy_secure.journal.store import writing

PROCESSES = multiprocessing.get_context("forkserver")


def at_once(folder, plays):
    """Run each play, a list of calls, in a process of its own; what each raised, or nothing."""
    barrier, results = PROCESSES.Barrier(len(plays)), PROCESSES.Queue()
    workers = [
        PROCESSES.Process(target=_play, args=(number, folder, calls, barrier, results))
        for number, calls in enumerate(plays)
    ]
    for worker in workers:
        worker.start()
    found = dict(results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    return [found[i] for i in range(len(plays))]


def _play(number, folder, calls, barrier, results):
    journal = Journal(folder=folder, client="a")
    barrier.wait()
    try:
        for method, arguments, named in calls:
            getattr(journal, method)(*arguments, **named)
        results.put((number, ""))
    except ProtocolAborted as error:
        results.put((number, str(error)))


def exit_code_of(target, *arguments):
    """Run it in a process of its own."""
    worker = PROCESSES.Process(target=target, args=arguments)
    worker.start()
    worker.join()
    return worker.exitcode


def take_and_die(folder, step):
    """End by SIGKILL after a step was granted."""
    Journal(folder=folder, client="a").take(step)
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_writing(file):
    """End by SIGKILL within a transaction."""
    with writing(file) as database:
        database.execute("DELETE FROM rounds")
        os.kill(os.getpid(), signal.SIGKILL)
