"""What runs the same function over many tasks: this process, processes of this machine, or Apache Beam."""

import collections.abc
import concurrent.futures
import contextlib
import io
import itertools
import multiprocessing
import multiprocessing.connection
import os
import threading
from typing import TypeVar

from curia2_jax.errors import UserError

T = TypeVar("T")
# Runs function(*task) for every task, anywhere; what the function returns is lost, what it writes is not.
Runner = collections.abc.Callable[[collections.abc.Callable, list[tuple]], None]


class Pool:
    """Fresh processes (spawn), or this process when there are no workers."""

    def __init__(self, workers: int):
        self._workers = workers
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> "Pool":
        if self._workers:
            context = multiprocessing.get_context("spawn")
            self._pool = concurrent.futures.ProcessPoolExecutor(self._workers, context, _end_with_parent)
        return self

    def __exit__(self, *_) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def each(
        self, function: collections.abc.Callable[..., T], tasks: collections.abc.Iterable[tuple]
    ) -> collections.abc.Iterator[tuple[int, T]]:
        """(index of the task, result of function(*task)) as they get done; few tasks are handed out ahead.

        Raises:
          BrokenProcessPool: a process died.
        """
        if self._pool is None:
            for number, task in enumerate(tasks):
                yield number, function(*task)
            return
        waiting: dict[concurrent.futures.Future[T], int] = {}
        ahead = iter(enumerate(tasks))
        while True:
            for number, task in itertools.islice(ahead, 2 * self._workers - len(waiting)):
                waiting[self._pool.submit(function, *task)] = number
            if not waiting:
                return
            done, _ = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()


def _end_with_parent() -> None:
    """In a new process: leave when the one that started it is gone, however it went."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def beam(options: list[str]) -> Runner:
    """Apache Beam with the pipeline options given, DirectRunner by default.

    Tasks must be safe to repeat, because Beam repeats them; all workers must see the same files. What the job raises
    when it fails is Beam's.

    Raises:
      UserError: Beam is not installed, or does not take the options.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners.portability.portable_runner import PortableRunner
    except ImportError:
        raise UserError("--runner beam: apache_beam is not installed; write pip install 'curia2-jax[beam]'") from None
    for option in options:
        if not option.startswith("--"):  # Beam ignores it silently
            raise UserError(
                f"--beam-options: found {option!r}; write --name=value, several of them separated by commas"
            )
    said = io.StringIO()  # Beam's argument parser prints all that there is before it exits
    try:
        with contextlib.redirect_stderr(said):
            parsed = PipelineOptions(options)
            asked = parsed.get_all_options(retain_unknown_options=True).keys()
            pipeline = apache_beam.Pipeline(options=parsed)
    except SystemExit:
        raise UserError(f"--beam-options: {said.getvalue().strip().rpartition('error: ')[2]}") from None
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"--beam-options: {' '.join(str(error).split())}") from None
    unknown = asked - PipelineOptions([]).get_all_options().keys()
    # A job server has options of its own, which Python does not know.
    if unknown and not isinstance(pipeline.runner, PortableRunner):
        version = apache_beam.__version__
        raise UserError(f"--beam-options: found --{min(unknown)}; write an option that Apache Beam {version} knows")

    def run(function: collections.abc.Callable, tasks: list[tuple]) -> None:
        with pipeline:
            tasks_in = pipeline | apache_beam.Create(tasks)
            _ = tasks_in | apache_beam.Reshuffle() | apache_beam.MapTuple(function)

    return run
