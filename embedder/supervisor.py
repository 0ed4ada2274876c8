"""Keeps a model process running: notices the end of one, says so, starts the next."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import structlog
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError, incident
from embedder.metrics import Metrics
from embedder.settings import EmbedderSettings
from embedder.slab import Slab, SlabShape, shared_file
from embedder.spec import ModelSpec
from embedder.vital import GiveUp, vital
from embedder.worker_process import COMMAND, WorkerLostError, WorkerProcess

log = structlog.get_logger()

_AGAIN_S = (0.5, 30.0)
_SLOTS = 4  # rows of pixels, in batches: one in the model, one ready, for each lane

_START_S = 900.0  # a model that is loaded again may have to be converted again, but not downloaded

SayReady = Callable[[bool, str], Awaitable[None]]


class Supervisor:
    """The model process there is, and its successor when it is lost.

    Attributes:
        spec: the model; a successor has to be the same.
        slab: the pixels shared with it.
        max_batch: most pictures in a batch.
        least_batch: so many are in one however long it takes, if they wait.
    """

    spec: ModelSpec
    slab: Slab
    max_batch: int
    least_batch: int

    def __init__(
        self,
        settings: EmbedderSettings,
        say_ready: SayReady,
        give_up: GiveUp,
        metrics: Metrics,
        command: Sequence[str] = COMMAND,
    ) -> None:
        """Starts nothing yet.

        Args:
            settings: the embedder's.
            say_ready: told when the model is lost and when it is back.
            give_up: told if the model is looked after no more.
            metrics: told likewise.
            command: runs a model process.
        """
        self._settings, self._metrics, self._command = settings, metrics, command
        self._say_ready, self._give_up = say_ready, give_up
        self._shared = shared_file()
        self._worker: WorkerProcess | None = None
        self._up = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        """Whether there is a model to run things on."""
        return self._up.is_set() and self._worker is not None and not self._worker.lost.done()

    async def start(self) -> None:
        """Starts the first model process.

        Raises:
            LikenessError: it cannot load its model.
        """
        try:
            worker = await self._start(self._settings)
        except WorkerLostError:
            message = "the model process died while loading; its log lines above may say why (out of memory?)"
            raise LikenessError(error_pb2.REASON_INTERNAL, message) from None
        self.spec = worker.spec
        best = worker.spec.best_batch
        self.max_batch = self._settings.max_batch or best
        self.least_batch = self._settings.max_batch or (max(1, best // 2) if worker.spec.device == "cpu" else best)
        geometry = worker.spec.geometry
        self.slab = Slab(self._shared, SlabShape(_SLOTS * self.max_batch, geometry.height, geometry.width))
        self._take_on(worker)
        self._watching = vital(lambda: self._watch(worker), "watching the model process", self._give_up)

    async def worker(self) -> WorkerProcess:
        """The model process; waits, without limit, while there is none."""
        while not self.is_up or self._worker is None:
            self._up.clear()
            await self._up.wait()
        return self._worker

    def require_up(self) -> None:
        """Raises NOT_READY while there is no model."""
        if not self.is_up:
            message = "the model is being started again; try again in a moment, or at another replica"
            raise LikenessError(error_pb2.REASON_NOT_READY, message, retry_after_s=2.0)

    async def stop(self) -> None:
        """Ends the model process."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})
        if self._worker is not None:
            await self._worker.close()
        os.close(self._shared)

    async def _start(self, settings: EmbedderSettings) -> WorkerProcess:
        return await WorkerProcess.start(settings, self._shared, self._command)

    def _take_on(self, worker: WorkerProcess) -> None:
        worker.share(self.slab.shape)
        self._worker = worker
        self._up.set()
        self._metrics.model_up(True)
        log.info("model process", pid=worker.pid, model=self.spec.name, backend=self.spec.backend)

    async def _watch(self, worker: WorkerProcess) -> None:
        while True:
            why = await asyncio.shield(worker.lost)
            self._up.clear()
            self._metrics.model_up(False)
            self._metrics.model_restarted(why)
            log.error("the model process is lost; starting another", why=why, pid=worker.pid)
            await self._say_ready(False, f"the model process {why}")
            await worker.close()
            worker = await self._replacement()
            self._take_on(worker)
            await self._say_ready(True, "the model is back")

    async def _replacement(self) -> WorkerProcess:
        """Another one of the same model, run in the same way; tries, at growing intervals, until there is one."""
        wait_s, longest_s = _AGAIN_S
        # ``GetModel`` has told what it runs on, and callers count on the speed: a GPU that has gone is an error.
        how = {name: getattr(self.spec, name) for name in ("backend", "device", "precision")}
        pinned = settings = self._settings.model_copy(update=how)
        if self.spec.again:  # a second or two, where loading it through torch takes many
            settings = settings.model_copy(update={"model": self.spec.again, "pretrained": "", "preprocess_like": ""})
        while True:
            try:
                async with asyncio.timeout(_START_S):
                    worker = await self._start(settings)
                if _same(worker.spec, self.spec):
                    return worker
                log.error("the model, or what runs it, has changed since the start; restart the embedder to serve it")
                await worker.close()
            except (LikenessError, WorkerLostError, OSError) as error:  # no memory or no file handles, perhaps
                log.error("the model cannot be started again", error=str(error), again_in_s=wait_s)
            except Exception as error:  # a fault of ours may pass as well
                incident("the model cannot be started again", error)
            settings = pinned  # the converted copy may be gone, or another one's
            await asyncio.sleep(wait_s)
            wait_s = min(longest_s, 2 * wait_s)


def _same(one: ModelSpec, other: ModelSpec) -> bool:
    """Whether two processes run the same model in the same way: it may go by another name, or load in another way.

    Which model it is, its digest says. A converted copy is named by the settings that it was converted with.
    """
    return replace(one, name="", again="") == replace(other, name="", again="")
