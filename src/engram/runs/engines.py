"""Where jobs are done: in this process, or on the workers of a Ray cluster. Jobs are independent of each other.

An engine makes a worker (loads a model, say) once per process and hands it job after job. Results come back in any
order; whoever asked for them keeps them, so a worker that dies loses nothing: its job is done again by a new one.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

from engram.errors import RunError, SettingError, did_you_mean, needs_extra

logger = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")
Worker = Callable[[Any], Any]
Build = Callable[[], Worker]
"""Makes a worker; called once in every process that works."""


@runtime_checkable
class Engine(Protocol):
    """What does jobs."""

    def run(self, build: Build, jobs: Iterable[Any]) -> Iterator[Any]:
        """Do the jobs with workers that `build` makes, and yield their results as they come.

        Raises:
            RunError: a job could not be done however often it was tried.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """One worker in this process; results come in the order of the jobs."""

    def run(self, build: Build, jobs: Iterable[Any]) -> Iterator[Any]:
        """Do the jobs one after another."""
        worker: Worker | None = None
        for job in jobs:
            worker = worker or build()
            yield worker(job)


@dataclass(slots=True, kw_only=True)
class Ray:
    """Workers of a Ray cluster, one process each.

    Args:
        address: of the cluster: "auto" for the one that this machine belongs to, "local" for a new one here that ends
            with the run, or "ray://host:port".
        workers: how many processes work at once.
        gpus_per_worker: how many GPUs each of them gets (fractions share one).
        cpus_per_worker: how many CPU cores each of them gets.
        attempts: how often a job is tried when workers die at it.

    Raises:
        SettingError: fewer than one worker or attempt.
    """

    address: str = "auto"
    workers: int = 1
    gpus_per_worker: float | int = 0
    cpus_per_worker: float | int = 1
    attempts: int = 3
    pids: list[int] = field(default_factory=list[int], init=False)
    """Process ids of the workers that were started."""

    def __post_init__(self) -> None:
        for name in ("workers", "attempts"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}={getattr(self, name)}; it must be 1 or more.")

    def run(self, build: Build, jobs: Iterable[Any]) -> Iterator[Any]:
        """Do the jobs on the cluster; a job whose worker died is done again by a new one."""
        ray = _ray()
        started = _connect(ray, self)
        try:
            yield from _Pool(ray, self, ray.put(build)).run(iter(jobs))
        finally:
            if started:
                ray.shutdown()


class _Host:
    """What runs in a worker's process: the worker, made once."""

    def __init__(self, build: Build) -> None:
        self._worker = build()

    def pid(self) -> int:
        return os.getpid()

    def do(self, job: Any) -> Any:
        return self._worker(job)


class _Pool:
    """A fixed number of actors with at most one job each, so that nothing waits behind a slow or dead one."""

    def __init__(self, ray: Any, engine: Ray, build: Any) -> None:
        self._ray, self._engine, self._build = ray, engine, build
        self._remote = ray.remote(num_cpus=engine.cpus_per_worker, num_gpus=engine.gpus_per_worker)(_Host)
        self._running: dict[Any, tuple[Any, Any, int]] = {}

    def _start(self) -> Any:
        actor = self._remote.remote(self._build)
        self._engine.pids.append(self._ray.get(actor.pid.remote()))
        return actor

    def _give(self, actor: Any, job: Any, attempt: int) -> None:
        self._running[actor.do.remote(job)] = (actor, job, attempt)

    def run(self, jobs: Iterator[Any]) -> Iterator[Any]:
        try:
            for job in _first(jobs, self._engine.workers):
                self._give(self._start(), job, 1)
            while self._running:
                (done, *_), _ = self._ray.wait(list(self._running), num_returns=1)
                actor, job, attempt = self._running.pop(done)
                try:
                    result = self._ray.get(done)
                except self._ray.exceptions.RayActorError as error:
                    self._again(job, attempt, error)
                    continue
                for following in _first(jobs, 1):
                    self._give(actor, following, 1)
                yield result
        finally:
            for actor, _, _ in self._running.values():
                self._ray.kill(actor)

    def _again(self, job: Any, attempt: int, error: Exception) -> None:
        if attempt >= self._engine.attempts:
            raise RunError(
                f"Workers died {attempt} times at the same job, the last one with: {error}. Is there enough memory "
                f"for one model per worker? Finished cases are kept; start the same command again to continue."
            ) from error
        logger.warning("a worker died (attempt %d of %d); its job starts again", attempt, self._engine.attempts)
        self._give(self._start(), job, attempt + 1)


def _first(jobs: Iterator[Any], count: int) -> list[Any]:
    return [job for _, job in zip(range(count), jobs, strict=False)]


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise needs_extra("The engine 'ray'", "ray") from error
    return ray


def _connect(ray: Any, engine: Ray) -> bool:
    """Connect to the cluster; say whether this call did it (and so has to disconnect)."""
    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "include_dashboard": None}
    if engine.address == "local":
        options |= {"num_cpus": max(1, round(engine.workers * engine.cpus_per_worker)), "include_dashboard": False}
    try:
        ray.init(address=engine.address, **{key: value for key, value in options.items() if value is not None})
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RunError(
            f"No Ray cluster at {engine.address!r}: {error}. Start one with `ray start --head`, or use address 'local'."
        ) from error
    return True


def engine_named(name: str | Engine, **options: Any) -> Engine:
    """Return an engine by its name: "local" or "ray" (which takes `Ray`'s options).

    Raises:
        SettingError: an unknown name, or options for an engine that takes none.
    """
    if not isinstance(name, str):
        return name
    engines: dict[str, Callable[..., Engine]] = {"local": Local, "ray": Ray}
    if name not in engines:
        raise SettingError(f"There is no engine {name!r}. {did_you_mean(name, engines)}")
    try:
        return engines[name](**options)
    except TypeError as error:
        raise SettingError(f"The engine {name!r} does not take these options: {', '.join(options)}.") from error
