"""What a method starts from, and the steps that methods share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path
from typing import TypeVar

from torch import nn

from fedproxy_secure.audit.witness import Witness
from fedproxy_secure.compress.proxy import Proxy, save_model
from fedproxy_secure.config import Config, PlugBackConfig
from fedproxy_secure.crypto.key_file import read_key
from fedproxy_secure.crypto.primitives import derive
from fedproxy_secure.data.encode import encode_records
from fedproxy_secure.data.records import Task, records_sha256
from fedproxy_secure.data.sources import public_text_sha256
from fedproxy_secure.data.tasks import load_tasks, warn_of_trained_tests
from fedproxy_secure.errors import ConfigError, RunFolderError
from fedproxy_secure.experiments.method import STEP_PASSES, trained_steps
from fedproxy_secure.experiments.results import MethodResult, Score
from fedproxy_secure.experiments.stages import (
    Materials,
    evaluate,
    exact_proxy,
    make_fused_llm,
    make_proxy,
    prepare,
    tune,
    windows_by_use,
)
from fedproxy_secure.federate.client_policy import check_keys
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.training import train
from fedproxy_secure.models.adapters import attach, tensor_sizes
from fedproxy_secure.models.llm import (
    MODEL_FILES,
    check_weights,
    llm_sha256,
    load_tokenizer,
    parameter_count,
    pick_device,
)
from fedproxy_secure.models.memory import free_memory
from fedproxy_secure.protect.base import protection_of
from fedproxy_secure.runtime.files.names import MANIFEST
from fedproxy_secure.runtime.progress import NoProgress, Progress, Weighed
from fedproxy_secure.runtime.randomness import stream

Item = TypeVar("Item")


def check_inputs(config: Config, out: Path) -> None:
    """Check that every input of a new run exists and can be read, apart from the model's weights.

    Keys, device, tokenizer, public text and records are read once to check them. This happens before the
    first file is written, because from then on the folder is bound to its settings, and a misspelt path
    could no longer be corrected. Test records that are also trained on are logged. If a run has already
    begun in `out`, nothing is read here: `check_same_inputs` then compares.

    Raises `ModelError`, `DataError` or `ConfigError` as `prepare` does.
    """
    if (out / MANIFEST).exists():
        return
    if config.audit.signing_key is not None:
        read_key(Path(config.audit.signing_key))
    check_keys(FederationJob.from_config(config, seed=config.seeds[0]), policies=False)
    pick_device(config.model.device)
    check_weights(config.model.path)
    tokenizer = load_tokenizer(config.model.path)
    warn_of_trained_tests(config, load_tasks(config.data, audit=config.audit, seed=config.seeds[0]))
    windows_by_use(config, tokenizer)


def check_same_inputs(config: Config, witness: Witness, tasks: Sequence[Task]) -> None:
    """Log what a new run reads; in a run that goes on, check that it is what the run began with.

    The log has hashes of records, LLM and public text, keyed with the signer's key and the run's number. So
    it may be passed on: from a hash nobody else can tell which records it stands for, nor whether two runs
    read the same.

    `tasks`: of all clients, including records set aside for an evaluation.

    Raises `RunFolderError` if an input differs; `DataError` or `ModelError` if one cannot be read.
    """
    found = {
        "set of records": records_sha256(tasks),
        "LLM": llm_sha256(config.model.path),
        "public text": public_text_sha256(config.data.public_text, root=config.data.root),
    }
    infos = {name: f"inputs of run {witness.run}|{name}|{sha256}" for name, sha256 in found.items()}
    keyed = {name: derive(witness.log.key, info=i.encode()).reveal().hex() for name, i in infos.items()}
    logged = witness.once("inputs", keyed)
    for name, sha256 in keyed.items():
        if logged.get(name) != sha256:
            counts = f" (all of {', '.join(MODEL_FILES)} in its folder count)" if name == "LLM" else ""
            raise RunFolderError(
                f"{witness.folder}: began with another {name} than now{counts}; put that back, or choose "
                "another --out"
            )


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The owner's LLM, every client's records, and how to train, fuse and evaluate with one seed.

    Args:
        folder: where models that clients load are written; it is deleted after the method has ended.
        ratio: share of the LLM that its proxy lacks; None for a method that needs no proxy.
        progress: gets every stage, and as `WORK` how much of the cell is done.
        healing: the folder of the healing of the settings' proxy, finished or not; None: heal anew.
        on_proxy: called with the settings' proxy as clients get it, before it is tuned.
    """

    config: Config
    materials: Materials
    seed: int
    ratio: float | None
    folder: Path
    progress: Progress = field(default_factory=NoProgress)
    healing: Path | None = None
    on_proxy: Callable[[Materials, Proxy], None] | None = None

    @classmethod
    def load(
        cls,
        config: Config,
        *,
        seed: int,
        ratio: float | None,
        folder: Path,
        progress: Progress | None = None,
        healing: Path | None = None,
        on_proxy: Callable[[Materials, Proxy], None] | None = None,
    ) -> Inputs:
        """Load the inputs that the settings name; raises `ModelError` or `DataError` if that fails."""
        return cls(
            config=config,
            materials=prepare(config, seed=seed),
            seed=seed,
            ratio=ratio,
            folder=folder,
            progress=progress or NoProgress(),
            healing=healing,
            on_proxy=on_proxy,
        )

    @property
    def remove_ratio(self) -> float:
        """The share of the LLM that its proxy lacks; raises `ConfigError` without one."""
        if self.ratio is None:
            raise ConfigError("this method: needs a remove ratio; set needs_ratio=True on it")
        return self.ratio

    @property
    def llm(self) -> nn.Module:
        """The owner's LLM."""
        return self.materials.llm

    def proxy(self) -> Proxy:
        """Return the proxy of the settings' compression at the remove ratio."""
        proxy = make_proxy(
            self.config,
            self.materials,
            seed=self.seed,
            remove_ratio=self.remove_ratio,
            folder=self.healing,
            progress=self.progress,
        )
        if self.on_proxy is not None:
            self.on_proxy(self.materials, proxy)
        return proxy

    def exact_proxy(self) -> Proxy:
        """Return the proxy of exact copies by the settings' importance, for any compression."""
        copies = self.config.compress.model_copy(update={"kind": "drop_blocks", "options": {}})
        config = self.config.model_copy(update={"compress": copies})
        proxy = exact_proxy(
            config, self.materials, seed=self.seed, remove_ratio=self.remove_ratio
        ).finished()
        if self.on_proxy is not None and copies == self.config.compress and not config.heal.heals:
            self.on_proxy(self.materials, proxy)  # equals the settings' proxy
        return proxy

    def federate(
        self, model: nn.Module, settings: Config, *, blocks: tuple[int, ...] | None = None
    ) -> tuple[nn.Module, int]:
        """Tune `model` (changed in place) with all clients under these settings.

        Args:
            settings: as `Method.federation` returns them.
            blocks: which of the model's blocks get an adapter; None: those of the settings.

        Returns the model with its tuned adapter, and the payload that one client sends in one round, bytes.
        """
        from fedproxy_secure.flower.client_app import forget_clients

        job = FederationJob.from_config(settings, seed=self.seed, blocks=blocks)
        place = self.folder / "model"
        save_model(model, self.materials.tokenizer, place)
        records = settings.federate.rounds * job.clients_a_round * settings.local.steps
        display = self._weighed(model, records * settings.local.batch_size * STEP_PASSES)
        tuned = tune(job, model, place, progress=display)
        forget_clients()  # with their copy of the model
        free_memory()
        return tuned, protection_of(job.protect).upload_bytes(job, tensor_sizes(tuned))

    def train_pooled(self, model: nn.Module) -> nn.Module:
        """Tune an adapter on all tasks' records together, for as many steps as a federation takes.

        With only one client's task (`each_task`), it takes that client's share of the steps, at least one.

        Every task has the same share of the sequences, as in a federation, where every client takes the
        same number of steps. Otherwise the task with the most records would dominate what the model learns,
        and a comparison with federated tuning would compare two mixtures. `model` is changed in place.
        """
        config, tasks = self.config, self.materials.tasks
        steps = max(1, trained_steps(config) * len(tasks) // len(config.data.clients))
        name = "training" if len(tasks) > 1 else f"training: {tasks[0].name}"
        display = self._weighed(model, steps * config.local.batch_size * STEP_PASSES)
        tuned = attach(model, config.adapter, seed=self.seed)
        display.start(name, steps)
        tokenizer, max_tokens = self.materials.tokenizer, config.data.max_tokens
        train(
            tuned,
            in_equal_shares(
                [encode_records(t.train, tokenizer, max_tokens=max_tokens).items for t in tasks]
            ),
            steps=steps,
            local=config.local,
            pad_id=tokenizer.pad_token_id,
            rng=stream(self.seed, "centralised", *(t.name for t in tasks)),
            subject="centralised training",
            checkpointing=config.model.checkpointing,
            on_step=lambda _: display.advance(name),
        )
        display.done(name)
        free_memory()
        return tuned

    def evaluate(self, model: nn.Module) -> Mapping[str, Score]:
        """Return the score on every client's test records, by task: accuracy, or on free text the loss."""
        scores: dict[str, Score] = {}
        for client in self.each_task():
            display = self._weighed(model, sum(len(task.test) for task in client.materials.tasks))
            scores |= evaluate(model, client.materials, self.config, progress=display)
        return scores

    def plugged_back(
        self, proxy: Proxy, tuned: nn.Module, *, upload_bytes: int = 0, scale: float | None = None
    ) -> MethodResult:
        """Evaluate the tuned proxy and the fused LLM.

        Args:
            scale: the difference's factor, without alignment; None: as the section `plug_back` says.
        """
        scores, config = self.evaluate(tuned), self.config
        if scale is not None:
            config = config.model_copy(update={"plug_back": PlugBackConfig(scale=scale)})
        fused = make_fused_llm(config, self.materials, proxy, tuned, progress=self.progress)
        free_memory()  # the differences, which are as large as the proxy
        return MethodResult(
            tuned=scores,
            fused=self.evaluate(fused.llm),
            upload_bytes=upload_bytes,
            scale=fused.search.scale if fused.search.tried else None,
            aligned_windows=fused.aligned_windows,
        )

    def each_task(self) -> list[Inputs]:
        """Return, for each client, the same inputs with only its task."""
        return [
            replace(self, materials=replace(self.materials, tasks=(task,))) for task in self.materials.tasks
        ]

    def _weighed(self, model: nn.Module, records: float) -> Weighed:
        """Return the progress of a stage that runs `records` forward passes of `model`, one record each."""
        size = parameter_count(model) / parameter_count(self.llm)
        return Weighed(shown=self.progress, units=records * size)


def in_equal_shares(parts: Sequence[Sequence[Item]]) -> list[Item]:
    """Join lists, repeating each from its start until it is as long as the longest.

    A shuffled pass over the result takes equally many items from every list. Lists must not be empty.
    """
    longest = max(map(len, parts))
    return [item for part in parts for item in islice(cycle(part), longest)]
