"""Send rounds and measures to TensorBoard, MLflow, or Weights & Biases.

    tracking/tensorboard/   event files; `tensorboard --logdir runs`
    tracking/mlflow.db      unless MLFLOW_TRACKING_URI names a server (extra `mlflow`)
    tracking/wandb/         offline, for `wandb sync`, unless WANDB_MODE says online (extra `wandb`)

A tracker that is opened again for the same place goes on: TensorBoard reads several files as one, an MLflow
run is found by its tags, a W&B run by its id. Offline, each opening of a W&B run has its own folder.

A tracker that fails during a run gets no more numbers, and the run goes on. A tracker that cannot be opened
when the run starts ends the run before any work.

Guarantees: trackers get the numbers of a round's line that `ROUND_METRICS` names and the measures of the
report: means and counts over the clients of a round, never a vector, a key or a number of one client.
Nothing leaves the machine unless the environment asks for it; W&B is not told the host, the command or the
code. No error or warning quotes a library's own text, which may contain a server's address and password.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from fedproxy_secure.errors import ConfigError, RunFolderError
from fedproxy_secure.report.trilemma import Configuration
from fedproxy_secure.runtime.files.names import TRACKING

log = logging.getLogger(__name__)

# tracker -> the module it needs, and the distribution that has it
NEEDS: Mapping[str, tuple[str, str]] = {
    "tensorboard": ("tensorboardX", "fedproxy-secure"),
    "mlflow": ("mlflow", "fedproxy-secure[mlflow]"),
    "wandb": ("wandb", "fedproxy-secure[wandb]"),
}
ROUND_METRICS = frozenset(
    "loss clients heterogeneity conflict weight_min weight_max step_norm step_over_mean clip clipped "
    "vector_bytes seconds".split()
)


class Tracker(Protocol):
    """A place that takes numbers by name, step by step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values at `step` (>= 0)."""

    def close(self) -> None:
        """End tracking; all numbers are on disk, or sent, when this returns."""


@dataclass(frozen=True, kw_only=True)
class TrackedPlace:
    """Where numbers are recorded, and under which names.

    Args:
        folder: the run's folder.
        project: a name that many runs share, such as the settings' name.
        run: an identifier of the run.
        part: the name of a seed's folder, or `report`.
    """

    folder: Path
    project: str
    run: str
    part: str


def require(names: Sequence[str]) -> None:
    """Raise `ConfigError`, which names the extra, for a tracker that is not installed."""
    for name in names:
        module, source = NEEDS[name]
        if find_spec(module) is None:
            raise ConfigError(f"track={name}: is not installed; pip install '{source}'")


def open_tracker(names: Sequence[str], place: TrackedPlace, *, again: bool = False) -> Tracker:
    """Return one tracker for all of these names; opened again for the same place, it goes on.

    With `again`, after a part of the work is done, a tracker that cannot be opened is left out with a
    warning. Otherwise it raises `RunFolderError`, such as for a folder that cannot be written.
    """
    require(names)
    kinds: dict[str, Callable[[TrackedPlace], Tracker]] = {
        "tensorboard": TensorBoard,
        "mlflow": MLflow,
        "wandb": WeightsAndBiases,
    }
    opened: dict[str, Tracker] = {}
    for name in names:
        try:
            opened[name] = kinds[name](place)
        except Exception as error:  # a library, or a server far away, may raise anything
            if again:
                log.warning("track=%s: gets no more numbers, the run goes on: %s", name, _reason(error))
                continue
            Trackers(opened).close()
            raise RunFolderError(
                f"{place.folder / TRACKING}: track={name}: cannot be opened: {_reason(error)}; "
                "--set track=[] does without"
            ) from None
    return Trackers(opened)


def round_values(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a round's line of metrics that may be tracked."""
    return {f"round/{k}": float(v) for k, v in sorted(line.items()) if k in ROUND_METRICS and v is not None}


def measure_values(configuration: Configuration) -> dict[str, float]:
    """Return a configuration's measures, with the ends of their intervals where they have any."""
    values = {}
    for measure in configuration.measures:
        estimate, name = measure.estimate, f"{measure.axis}/{measure.key}"
        values[name] = estimate.value
        if estimate.interval is not None and estimate.nature == "sampled":
            low, high = estimate.interval
            values |= {f"{name}/low": low, f"{name}/high": high}
    return values


class Trackers:
    """Several trackers that get the same numbers; one that fails gets no more, and the run goes on."""

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._open = dict(trackers)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values with each tracker."""
        for name, tracker in list(self._open.items()):
            try:
                tracker.log(step, values)
            except Exception as error:  # a library, or a server far away, may raise anything
                del self._open[name]  # not closed, which would wait for an unreachable server again
                log.warning("track=%s: gets no more numbers, the run goes on: %s", name, _reason(error))

    def close(self) -> None:
        """Close each tracker."""
        while self._open:
            name, tracker = self._open.popitem()
            try:
                tracker.close()
            except Exception as error:
                log.warning("track=%s: may lack numbers: %s", name, _reason(error))


def _reason(error: Exception) -> str:
    """Return the kind of an error; its text may contain a password and is logged only at level debug."""
    log.debug("a tracker failed", exc_info=error)
    reason = error.strerror if isinstance(error, OSError) else None
    return reason or type(error).__name__


class TensorBoard:
    """An event file, written without TensorFlow or TensorBoard itself.

    tensorboardX's `SummaryWriter` is not used: it writes from a thread, so that a kill would lose events,
    and puts the host's name into the file's name.
    """

    def __init__(self, place: TrackedPlace) -> None:
        from tensorboardX.record_writer import RecordWriter

        folder = place.folder / TRACKING / "tensorboard" / place.part
        folder.mkdir(parents=True, exist_ok=True)
        self._file: Any = RecordWriter(str(folder / f"events.out.tfevents.{time.time_ns()}"))
        self._write(file_version="brain.Event:2")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one scalar for each value; they are in the file when this returns."""
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(step=step, summary=scalar(name, value))

    def close(self) -> None:
        """End the file."""
        self._file.close()

    def _write(self, **event: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._file.write(Event(wall_time=time.time(), **event).SerializeToString())
        self._file.flush()


class MLflow:
    """A run of the MLflow experiment named by the settings; found again by a tag."""

    def __init__(self, place: TrackedPlace) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before the import
        from mlflow import MlflowClient

        store = place.folder / TRACKING
        store.mkdir(parents=True, exist_ok=True)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(store / 'mlflow.db').resolve()}"
        self._client: Any = MlflowClient(tracking_uri=uri)
        existing = self._client.get_experiment_by_name(place.project)
        artefacts = (store / "mlflow").resolve().as_uri()
        experiment = (
            self._client.create_experiment(place.project, artifact_location=artefacts)
            if existing is None
            else existing.experiment_id
        )
        tags = {"fedproxy.run": place.run, "fedproxy.part": place.part}
        query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        runs = self._client.search_runs([experiment], query, max_results=1)
        run = runs[0] if runs else self._client.create_run(experiment, run_name=place.part, tags=tags)
        self._run: str = run.info.run_id
        self._client.update_run(self._run, status="RUNNING")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record one metric for each value."""
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._run)


class WeightsAndBiases:
    """A run of the W&B project named by the settings; offline unless the environment says otherwise."""

    def __init__(self, place: TrackedPlace) -> None:
        os.environ.setdefault("WANDB_MODE", "offline")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # before the import
        import wandb

        store = place.folder / TRACKING
        store.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(
            project=place.project,
            name=place.part,
            id=hashlib.sha256(f"{place.run}/{place.part}".encode()).hexdigest()[:16],
            dir=str(store),
            # offline there is no server to ask what the run has so far
            resume="allow" if os.environ["WANDB_MODE"] == "online" else None,
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                save_code=False,
                x_disable_meta=True,
                x_save_requirements=False,
                x_disable_stats=True,
            ),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record all values of a step together."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
