"""Whose turn it is in a session.

The QiskitSession's status names the QiskitJobs whose turn it is, and is written over the version
that was read; so two jobs never both see the same place free. A job that is named enters by
marking its own entry, before it is told to run. From then on it keeps its place, whatever becomes
of its pods, until it ends; one that has not entered loses it when it does not wait any more.

The next one's turn comes when all before it are in the provider's queue, so that they get there in
order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import attrs

from qiskit_controller.api.qiskitjob import Priority, SessionMode
from qiskit_controller.api.qiskitsession import SessionMember

# QiskitJobs that are in a session at a time. The jobs of a dedicated one run one after another at
# IBM as well, and its time is billed between them too: so there is always one in the queue. Those
# of a shared one IBM schedules.
PLACES: Mapping[SessionMode, int] = {"dedicated": 2, "shared": 5}
_RANKS: Mapping[Priority, int] = {"urgent": 0, "high": 1, "normal": 2, "low": 3}


@attrs.frozen(kw_only=True)
class JobSeen:
    """A QiskitJob that names the session.

    Attributes:
        waiting: its circuit is valid, and it waits for its turn.
        running: its circuit is being executed.
        submitted: the provider has its job.
        over: it has ended, or is gone.
        elsewhere: it runs in another place, so it needs this one no more.
        turned_away: when it ended because the session took it no more.
    """

    name: str
    uid: str
    created: datetime
    priority: Priority = "normal"
    waiting: bool = False
    running: bool = False
    submitted: bool = False
    over: bool = False
    elsewhere: bool = False
    turned_away: datetime | None = None


@attrs.frozen
class Turns:
    """Whose turn it is.

    Attributes:
        members: those whose turn it is.
        admitted: those of them whose turn it was not before.
        waiting: the others that wait, the next one first.
        finished: how many have left since the last look because they have ended.
    """

    members: tuple[SessionMember, ...]
    admitted: tuple[str, ...]
    waiting: tuple[JobSeen, ...]
    finished: int


def next_turns(
    before: Sequence[SessionMember], jobs: Iterable[JobSeen], mode: SessionMode, *, admits: bool
) -> Turns:
    """Whose turn it is now.

    Args:
        before: whose turn it was.
        jobs: all that name the session; a member that is missing here is gone.
        admits: whether the session takes jobs.
    """
    by_uid = {each.uid: each for each in jobs}
    members, finished = [], 0
    for member in before:
        job = by_uid.get(member.uid)
        if job is None or job.over:
            finished += member.entered
        elif not job.elsewhere and (member.entered or (admits and job.waiting)):
            members.append(member)
    inside = {each.uid for each in members}
    waiting = sorted((j for j in by_uid.values() if j.waiting and j.uid not in inside), key=order)
    in_order = all(by_uid[each.uid].submitted for each in members)
    free = 1 if admits and in_order and len(members) < PLACES[mode] else 0
    admitted = waiting[:free]
    members += [SessionMember(name=each.name, uid=each.uid) for each in admitted]
    return Turns(
        members=tuple(members),
        admitted=tuple(each.name for each in admitted),
        waiting=tuple(waiting[free:]),
        finished=finished,
    )


def order(job: JobSeen) -> tuple[int, datetime, str]:
    """Jobs go in by priority, then age, then name."""
    return _RANKS[job.priority], job.created, job.name
