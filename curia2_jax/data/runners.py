"""What runs the same function over many tasks: this process, processes of this machine, or Apache Beam."""

import collections.abc
import concurrent.futures
import itertools
import multiprocessing
import multiprocessing.connection
import os
import threading

from curia2_jax.errors import UserError

Runner = collections.abc.Callable[[collections.abc.Callable, list[tuple]], list]


class Pool:
    """Fresh processes (spawn), or this process when there is one worker."""

    def __init__(self, workers: int, own_process: bool = False):
        self._workers = workers
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None
        self._separate = own_process or workers > 1

    def __enter__(self) -> "Pool":
        if self._separate:
            context = multiprocessing.get_context("spawn")
            self._pool = concurrent.futures.ProcessPoolExecutor(self._workers, context, _end_with_parent)
        return self

    def __exit__(self, *_) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def each(
        self, function: collections.abc.Callable, tasks: list[tuple]
    ) -> collections.abc.Iterator[tuple[int, object]]:
        """(index of the task, result of function(*task)) as they get done; few tasks are handed out ahead.

        Raises BrokenProcessPool when a process dies.
        """
        if self._pool is None:
            for number, task in enumerate(tasks):
                yield number, function(*task)
            return
        waiting, ahead = {}, iter(enumerate(tasks))
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
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def beam(options: list[str]) -> Runner:
    """Apache Beam with the pipeline options given, DirectRunner by default. Raises UserError when it is not installed.

    Tasks must be safe to repeat, because Beam repeats them; all workers must see the same files.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError("--runner beam: apache_beam is not installed; write pip install 'curia2-jax[beam]'") from None

    def run(function: collections.abc.Callable, tasks: list[tuple]) -> list:
        with apache_beam.Pipeline(options=PipelineOptions(options)) as pipeline:
            tasks_in = pipeline | apache_beam.Create(tasks)
            _ = tasks_in | apache_beam.Reshuffle() | apache_beam.MapTuple(function)
        return [function(*task) for task in tasks]  # finished by now: this only asks for the results

    return run
