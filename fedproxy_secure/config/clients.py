"""Settings of the clients and their records: one by one, or as parts of one data set."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedproxy_secure.config.sections import OWN, Positive, Section


class RecordsConfig(Section):
    """A name, a task's template, and where records lie."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9_-]+$")
    task: Annotated[str, OWN]
    source: Annotated[str, OWN] = "demo"
    train_split: Annotated[str, OWN] = "train"
    test_split: Annotated[str, OWN] = "test"
    train_records: Annotated[Positive | None, OWN] = None
    test_records: Annotated[Positive | None, OWN] = None
    learn: Annotated[Literal["answer", "text"] | None, OWN] = None


class SplitConfig(Section):
    """How records are split over clients."""

    clients: Annotated[int, Field(ge=1, le=10_000)]
    alpha: Annotated[float, Field(ge=1e-3, le=1e6)] | None = None  # None: uniform
    seed: Annotated[int, Field(ge=0)] = 0
    min_records: Positive = 10  # training records of a client


class PartConfig(SplitConfig):
    """The part of a split that one client has: the one with this index; see `data.partition`."""

    index: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _is_a_part_of_the_split(self) -> PartConfig:
        if self.index >= self.clients:
            raise ValueError(f"index={self.index}: must be < clients={self.clients}")
        return self


class ClientConfig(RecordsConfig):
    """One client: its name, its task's template, and where its records lie.

    `source` is `demo` (the synthetic world's task called `task`), `real_things` (made-up records over real
    things, for a real LLM: `freight`, `museum`, `grocer` or `agency`), `hub:NAME[:SUBSET]` (the `datasets`
    library) or a file pattern with `{split}` in it, such as `{data}/tasks/sst2.{split}.jsonl`. A split may
    be a part of one, as `train[:-200]`; what is trained and what is tested on must have no row in common.

    `learn: text` trains on every token of a record, so the model may memorise its details; `learn: answer`
    trains on the answer alone. The default depends on the task: `text` for the synthetic world's notes
    (`discharge_note`, `bank_letter`, `claim_letter`, `petition`), `answer` for all other tasks.

    With `part` the client has one part of these records; `data.partition` makes such clients.

    All fields but `name` are local to the client: changing its records, their location or `learn` does not
    change what it agreed on with the server.
    """

    part: Annotated[PartConfig | None, OWN] = None


class PartitionConfig(SplitConfig, RecordsConfig):
    """One data set, split over `clients` clients called `part-0`, `part-1` and so on.

    When settings are read, the clients are written into `data.clients`, which must be left out or null.
    Keys such as `task` and `source` are those of a client. `train_records` and `test_records` count before
    the split.

    Every record is in exactly one client, and all clients have the same number of training records, give or
    take one: at least `min_records`, before any are set aside (`audit.holdout`). Without `alpha` they are
    drawn uniformly. With `alpha`, each client's mixture of labels is drawn from a Dirichlet distribution
    around that of all records (Hsu, Qi and Brown 2019, arXiv:1909.06335). The smaller `alpha`, the more
    clients differ: with 100 they are nearly alike, with 0.1 most have one or two labels. Records of a label
    can run out; the last clients get what is left. Test records are split as the training records of their
    label are, so that each client is tested on labels in the proportions in which it has them.

    The split follows from `seed`, not from `seeds` of the run: all of them train on the same clients.

    For simulation only: in a deployment every site has records of its own.
    """

    name: str = Field(default="part", min_length=1, pattern=r"^[A-Za-z0-9_-]+$")

    def parts(self) -> tuple[ClientConfig, ...]:
        """Return the clients; the numbers in their names have equally many digits."""
        records = {name: getattr(self, name) for name in RecordsConfig.model_fields}
        split = {name: getattr(self, name) for name in SplitConfig.model_fields}
        digits = len(str(self.clients - 1))
        return tuple(
            ClientConfig(
                **{**records, "name": f"{self.name}-{index:0{digits}}"},
                part=PartConfig(**split, index=index),
            )
            for index in range(self.clients)
        )


_DEMO = tuple(ClientConfig(name=n, task=n) for n in ("clinic", "bank", "insurer", "council"))


def _clients_by_default(data: dict[str, Any]) -> tuple[ClientConfig, ...]:
    partition = data.get("partition")
    return _DEMO if partition is None else partition.parts()


class DataConfig(Section):
    """The clients, the public text for calibration and fidelity, and the most tokens of a record."""

    root: Annotated[str | None, OWN] = None  # fills `{data}` in sources
    partition: PartitionConfig | None = None
    clients: tuple[ClientConfig, ...] = Field(default_factory=_clients_by_default)
    public_text: str = "demo"  # `demo`, `real_things` or a text file; `{data}` is filled in
    max_tokens: Annotated[int, Field(ge=8)] = 128

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out_with_a_partition(cls, values: Any) -> Any:
        # so that `--set` can change a partition in resolved settings, which name its clients
        if not isinstance(values, dict) or values.get("partition") is None:
            return values
        return {name: value for name, value in values.items() if (name, value) != ("clients", None)}

    @model_validator(mode="after")
    def _partition_makes_the_clients(self) -> DataConfig:
        # both are in resolved settings, and then agree
        if self.partition is not None and self.clients != self.partition.parts():
            raise ValueError(
                "clients: must be left out or null with data.partition, which makes them; to change the "
                "partition of resolved settings, set data.clients=null, too"
            )
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> DataConfig:
        names = [c.name for c in self.clients]
        if not names:
            raise ValueError("clients: must name at least one client")
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"clients: name {twice[0]!r} is used twice; names must differ")
        return self
