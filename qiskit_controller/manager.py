"""Wiring: configuration, client, caches, queue, reconcilers, leader election, endpoints.

Every replica runs the informers and answers probes, so that the next leader starts with
warm caches; only the leader takes keys from the queue. A replica that loses the lease stops
its workers and ends with an error, to be started afresh.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager

import attrs
import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

from qiskit_controller.alerts import Alerts
from qiskit_controller.kube.client import Client
from qiskit_controller.kube.controller import Controller, Reconcile
from qiskit_controller.kube.events import EventRecorder
from qiskit_controller.kube.health import (
    HealthServer,
    informer_hears,
    informer_synced,
    queue_moves,
)
from qiskit_controller.kube.informer import Informer
from qiskit_controller.kube.leaderelection import LeaderElector
from qiskit_controller.kube.queue import WorkQueue
from qiskit_controller.reconcilers.qiskitbackend.reconciler import (
    QiskitBackendReconciler,
    backends_informer,
)
from qiskit_controller.reconcilers.qiskitbudget.ledger import Ledger
from qiskit_controller.reconcilers.qiskitbudget.reconciler import (
    QiskitBudgetReconciler,
    budgets_informer,
)
from qiskit_controller.reconcilers.qiskitjob.manifests import Settings
from qiskit_controller.reconcilers.qiskitjob.market import Selecting
from qiskit_controller.reconcilers.qiskitjob.reconciler import Caches, QiskitJobReconciler
from qiskit_controller.reconcilers.qiskitjob.sessions import Sessions
from qiskit_controller.reconcilers.qiskitjob.tracing import JobTracer, Sender
from qiskit_controller.reconcilers.qiskitsession.reconciler import (
    QiskitSessionReconciler,
    sessions_informer,
)
from qiskit_controller.scheduling.prices import Tariff, shipped
from qiskit_controller.telemetry import metrics, otlp

log = structlog.get_logger(__name__)

NAME = "qiskit-controller"
# A reconcile is a few requests of at most 30 s each; one that lasts longer hangs.
_STUCK_SECONDS = 300.0
# What is under way when the process is told to stop may finish first.
_DRAIN_SECONDS = 3.0
# Budgets, backends and sessions are few beside jobs.
_FEW_WORKERS = 2
# What has not been told to a collector may still be, for so long.
_LAST_WORDS_SECONDS = 2.0


@attrs.frozen(kw_only=True)
class Options:
    """How this process is set up; times in seconds.

    Attributes:
        namespace: where the lease is.
        settings: for the pods of jobs.
        tariff: what providers bill.
        alert_webhook: URL that budgets' alerts are posted to.
        workers: reconciles at a time.
        health_port, metrics_port: 0 takes any free port.
        host: the address to listen on; None for all.
    """

    namespace: str
    settings: Settings
    tariff: Tariff = attrs.field(factory=lambda: Tariff(shipped()))
    alert_webhook: str | None = None
    kubeconfig: str | None = None
    workers: int = 8
    host: str | None = None
    health_port: int = 8081
    metrics_port: int = 8080
    lease_duration: float = 15.0
    renew_deadline: float = 10.0
    retry_period: float = 2.0
    sync_timeout: float = 60.0


class Manager:
    """One replica of the controller."""

    def __init__(
        self,
        options: Options,
        client: Client,
        registry: CollectorRegistry,
        spans: Sender | None = None,
    ) -> None:
        self._options = options
        identity = f"{socket.gethostname()}_{os.getpid()}_{os.urandom(4).hex()}"
        self._caches = Caches.create(client)
        self._budgets = budgets_informer(client)
        self._backends = backends_informer(client)
        self._sessions = sessions_informer(client)
        self._events = EventRecorder(client, NAME, identity)
        job_metrics = metrics.JobMetrics(registry)
        registry.register(metrics.JobsByPhase(self._caches.jobs.list))
        registry.register(metrics.Budgets(self._budgets.list))
        registry.register(metrics.BackendsUp(self._backends.list))
        registry.register(metrics.SessionsByPhase(self._sessions.list))
        ledger = Ledger(client, self._budgets)
        selecting = Selecting(client, self._backends, ledger, options.tariff)
        for informer in self._informers():
            informer.metrics = metrics.WatchMetrics(registry, informer.resource.plural)
        jobs = QiskitJobReconciler(
            client=client,
            caches=self._caches,
            events=self._events,
            settings=options.settings,
            selecting=selecting,
            sessions=Sessions(client, self._sessions),
            on_written=job_metrics.written,
            tracer=JobTracer(spans) if spans is not None else None,
        )
        budgets = QiskitBudgetReconciler(
            client,
            ledger,
            self._caches.jobs,
            self._events,
            on_alert=Alerts(options.alert_webhook).send,
        )
        backends = QiskitBackendReconciler(
            client,
            self._backends,
            self._caches.kubernetes_jobs,
            self._caches.pods,
            self._events,
            options.settings,
        )
        sessions = QiskitSessionReconciler(
            client,
            self._sessions,
            self._caches.jobs,
            self._caches.kubernetes_jobs,
            self._caches.pods,
            self._events,
            options.settings,
        )
        self._queues: dict[str, WorkQueue[str]] = {}
        self._controllers: list[Controller] = []
        queue_families = metrics.QueueFamilies(registry)
        reconcile_families = metrics.ReconcileFamilies(registry)

        def controller(name: str, reconcile: Reconcile, workers: int) -> WorkQueue[str]:
            queue_metrics = metrics.QueueMetrics(registry, name, queue_families)
            queue: WorkQueue[str] = WorkQueue(metrics=queue_metrics)
            queue_metrics.watch(queue.unfinished_seconds, queue.longest_running_seconds)
            self._queues[name] = queue
            counted = metrics.ReconcileMetrics(registry, name, reconcile_families)
            self._controllers.append(Controller(name, queue, reconcile, workers, metrics=counted))
            return queue

        queue = controller("qiskitjob", jobs.reconcile, options.workers)
        self._caches.feed(queue)
        selecting.feed(queue, self._caches.jobs)
        budgets.feed(controller("qiskitbudget", budgets.reconcile, _FEW_WORKERS))
        backends.feed(controller("qiskitbackend", backends.reconcile, _FEW_WORKERS))
        sessions.feed(controller("qiskitsession", sessions.reconcile, _FEW_WORKERS), queue)
        self._elector = LeaderElector(
            client,
            options.namespace,
            NAME,
            identity,
            options.lease_duration,
            options.renew_deadline,
            options.retry_period,
            metrics=metrics.LeaderMetrics(registry, NAME),
        )
        self.health = HealthServer(host=options.host, port=options.health_port)
        for name, queue in self._queues.items():
            self.health.add_liveness(f"workers-{name}", queue_moves(queue, _STUCK_SECONDS))
        for informer in self._informers():
            plural = informer.resource.plural
            self.health.add_readiness(f"informer-{plural}", informer_synced(informer))
            self.health.add_liveness(f"informer-{plural}", informer_hears(informer))
        self.metrics = HealthServer(host=options.host, port=options.metrics_port)
        self.metrics.add_get("/metrics", _Exposition(registry).handle)

    async def run(self, stop: Awaitable[object]) -> None:
        """Serve until `stop` is done.

        Raises:
            LeadershipLost: the lease could not be renewed; the workers have stopped.
            TimeoutError: the caches could not be filled.
        """
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.health)
            await stack.enter_async_context(self.metrics)
            stack.push_async_callback(self._events.aclose)
            work = asyncio.create_task(self._serve(), name="manager")
            stopping = asyncio.ensure_future(stop)
            try:
                await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    work.result()
                log.info("stopping")
            finally:
                stopping.cancel()
                work.cancel()
                await asyncio.wait({work})

    async def _serve(self) -> None:
        informers = [
            asyncio.create_task(each.run(), name=f"informer-{each.resource.plural}")
            for each in self._informers()
        ]
        try:
            for informer in self._informers():
                await informer.wait_synced(self._options.sync_timeout)
            log.info("caches synced", jobs=len(self._caches.jobs))
            await self._elector.run(self._lead)
        finally:
            for task in informers:
                task.cancel()
            await asyncio.wait(informers)

    async def _lead(self) -> None:
        workers = asyncio.create_task(self._work(), name="workers")
        try:
            await asyncio.shield(workers)
        except asyncio.CancelledError:
            # Between two writes is a fine place to stop, but the end of a reconcile is a
            # better one, and near.
            drains = (each.shut_down_with_drain(_DRAIN_SECONDS) for each in self._queues.values())
            await asyncio.gather(*drains)
            raise
        finally:
            workers.cancel()
            await asyncio.wait({workers})

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for controller in self._controllers:
                tasks.create_task(controller.run(), name=f"workers-{controller.name}")

    def _informers(self) -> tuple[Informer, ...]:
        return (*self._caches.all(), self._budgets, self._backends, self._sessions)


class _Exposition:
    """Answers GET /metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    async def handle(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})


async def serve(options: Options) -> None:
    """Run one replica until SIGTERM or SIGINT; see :meth:`Manager.run`."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    request_metrics = metrics.RequestMetrics(registry)
    async with (
        _telemetry(registry) as spans,
        await Client.connect(
            options.kubeconfig, user_agent=NAME, metrics=request_metrics
        ) as client,
    ):
        await Manager(options, client, registry, spans).run(stop.wait())


@asynccontextmanager
async def _telemetry(registry: CollectorRegistry) -> AsyncIterator[Sender | None]:
    """What the environment asks for, and is imported for nobody else: where spans go, if they
    do, and metrics that are pushed."""
    spans = pushing = None
    if otlp.configured("TRACES"):
        spans = otlp.SpanSender(NAME)
    if otlp.configured("METRICS"):
        from qiskit_controller.telemetry.otlp_metrics import push

        pushing = asyncio.create_task(push(registry, NAME), name="push-metrics")
    try:
        yield spans
    finally:
        if pushing is not None:
            pushing.cancel()
            await asyncio.wait({pushing}, timeout=_LAST_WORDS_SECONDS)
        if spans is not None:
            await asyncio.to_thread(spans.close, _LAST_WORDS_SECONDS)
