"""Deviating servers, as grids that wrap a grid, to be played against installed clients.

`SnapshotGrid` delivers messages as Flower may: those that are pushed together see the same copy of a node's
state, and the state that each leaves is stored after its reply. (In our runs a SuperNode of Flower 1.41
answered the messages of one run one after another, but nothing promises that.) `TwoInboxes` is the attack
that this delivery makes possible against a client that counts its steps in that state.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedproxy_secure import wire
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.crypto.shamir import Combiner
from fedproxy_secure.errors import DataError, ProtocolAborted
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.flower.grid_around import GridAround
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.protect.secure_sum.terms import ring_plan
from fedproxy_secure.secagg.masking.keys import mask_key
from fedproxy_secure.secagg.masking.masks import add_masks
from fedproxy_secure.secagg.messages import Inbox, MaskedInput, Unmask
from fedproxy_secure.secagg.ring import RingPlan, add_packed, read_sum
from fedproxy_secure.secagg.terms import Terms


class SnapshotGrid(InProcessGrid):
    """The in-process grid with Flower's delivery: each message sees its node's state as it was pushed."""

    def __init__(self, app: ClientApp, nodes: int) -> None:
        super().__init__(app, nodes)
        self._snapshots: dict[str, RecordDict] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep messages, each with a copy of its node's state, and return their ids."""
        outgoing = list(messages)
        message_ids = list(super().push_messages(outgoing))
        for message in outgoing:
            state = self._contexts[message.metadata.dst_node_id].state
            self._snapshots[message.metadata.message_id] = copy.deepcopy(state)
        return message_ids

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        context = self._contexts[node]
        self._contexts[node] = Context(
            run_id=context.run_id,
            node_id=node,
            node_config=context.node_config,
            state=self._snapshots.pop(message.metadata.message_id),
            run_config=context.run_config,
        )
        return super()._answer(message)


class TwoInboxes(GridAround):
    """An attack that asks each client twice at once for its masked vector, once without the victim.

    One inbox holds the victim's shares and the other does not. The difference of a client's two answers is
    the mask that it shares with the victim. The round goes on with the honest answers and ends normally;
    its unmasking gives the victim's self mask. Then nothing hides the victim's vector.
    """

    def __init__(self, grid: Grid, *, job: FederationJob, sizes: Sequence[int], victim: str) -> None:
        super().__init__(grid)
        self._job, self._sizes, self._victim = job, sizes, victim
        self._terms: Terms | None = None
        self._second: set[str] = set()  # ids of the messages that no honest server sends
        self._with: dict[str, bytes] = {}  # masked vectors by client, for inboxes with the victim
        self._without: dict[str, bytes] = {}  # masked vectors by client, for inboxes without the victim
        self._refused: list[str] = []
        self._shares: dict[str, bytes] = {}  # shares of the victim's self mask, by the client that gave it

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send the server's messages, and a second inbox beside each inbox; return the server's ids."""
        honest = list(messages)
        for message in honest:
            if message.metadata.message_type == wire.TRAIN:
                proposed = wire.decode_terms(message.content)
                clients = len(proposed.cohort)
                plan = ring_plan(self._job, self._sizes, clip=proposed.clip, clients=clients)
                self._terms = proposed.with_plan(plan)
        second = [m for m in map(self._without_victim, honest) if m is not None]
        # the honest ones last, because the round goes on with the state that they leave at the clients
        ids = list(self._grid.push_messages([*second, *honest]))
        self._second.update(ids[: len(second)])
        return ids[len(second) :]

    def _without_victim(self, message: Message) -> Message | None:
        if message.metadata.message_type != wire.MASK:
            return None
        inbox = wire.decode_message(Inbox, message.content)
        at = inbox.senders.index(self._victim)
        if inbox.sealed[at] == b"":  # this is the victim's inbox, which has no shares from itself
            return None
        fewer = replace(
            inbox,
            senders=[s for i, s in enumerate(inbox.senders) if i != at],
            sealed=[s for i, s in enumerate(inbox.sealed) if i != at],
        )
        return Message(
            wire.encode_message(fewer),
            message.metadata.dst_node_id,
            wire.MASK,
            group_id=message.metadata.group_id,
            ttl=message.metadata.ttl,
        )

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Yield the replies to the server, and note those that the attack needs."""
        requested = list(message_ids)
        for reply in self._grid.pull_messages([*self._second, *requested]):
            extra = reply.metadata.reply_to_message_id in self._second
            self._note(reply, extra)
            if extra:
                self._second.discard(reply.metadata.reply_to_message_id)
            else:
                yield reply

    def _note(self, reply: Message, extra: bool) -> None:
        if reply.has_error():
            self._refused.append(str(reply.error.reason))
            return
        failure = wire.decode_failure(reply.content)
        if failure is not None:
            self._refused.append(failure[1])
            return
        kind = reply.metadata.message_type
        try:
            if kind == wire.MASK:
                masked = wire.decode_message(MaskedInput, reply.content)
                (self._without if extra else self._with)[masked.client] = masked.masked
            elif kind == wire.UNMASK:
                unmask = wire.decode_message(Unmask, reply.content)
                if self._victim in unmask.survivors:
                    at = unmask.survivors.index(self._victim)
                    self._shares[unmask.client] = unmask.self_shares[at]
        except DataError as error:
            self._refused.append(str(error))

    def answered_twice(self) -> list[str]:
        """Return the clients that gave their masked vector both times, sorted."""
        return sorted(set(self._with) & set(self._without))

    def victims_update(self) -> np.ndarray:
        """Return the victim's part of the sum of updates, float32 [d], read from its unmasked vector.

        Raises `ProtocolAborted` if the clients' answers did not give it away.
        """
        terms = self._terms
        if terms is None:
            raise ProtocolAborted("no round began")
        peers = sorted((set(self._with) | set(self._without)) - {self._victim})
        if self._victim not in self._with or self.answered_twice() != peers:
            reason = self._refused[0] if self._refused else "too few answers"
            raise ProtocolAborted(f"{len(self.answered_twice())} clients answered twice: {reason}")
        if len(self._shares) < terms.threshold:
            raise ProtocolAborted(f"{len(self._shares)} shares of the victim's self mask are not enough")
        plan = terms.plan
        words = _words(plan, self._with[self._victim])
        for peer in peers:
            pair_mask = _words(plan, self._with[peer]) - _words(plan, self._without[peer])
            # the two ends of a pair add the same mask with opposite signs
            words += pair_mask
        points = {terms.point_of(n): Secret(s) for n, s in self._shares.items()}
        chosen = dict(sorted(points.items())[: terms.threshold])
        self_mask = Combiner(sorted(chosen)).combine(chosen)
        add_masks(words, plus=[], minus=[mask_key(self_mask, terms.context())])
        return read_sum(plan, words & plan.word_type(2**plan.bits - 1))["update"]


def _words(plan: RingPlan, packed: bytes) -> np.ndarray:
    words = np.zeros(plan.words, dtype=plan.word_type)
    add_packed(plan, words, packed)
    return words
