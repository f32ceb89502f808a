"""Several processes that run one function as workers, in the place of torchrun."""

import multiprocessing
import os
import tempfile

import torch

import pyro_flowsamp
from pyro_flowsamp import WorkersOptions

LIMIT = 120  #: seconds after which processes that have not ended are killed


def run_workers(size, function, *args, start="fork", **options):
    """Returns what ``function(group, *args)`` returns on each rank inside of ``workers()``.

    An exception is returned in the place of a result, a None for a process that was killed. Forked
    processes have the mutations of the test that starts them, and models that cannot be pickled;
    ``start="spawn"`` starts processes that import everything themselves, by
    :func:`torch.multiprocessing.spawn`. They find each other by a FileStore.
    """
    context = multiprocessing.get_context(start)
    with tempfile.TemporaryDirectory() as folder:
        given = size, f"file://{folder}/store", function, args, options
        pipes = [context.Pipe(duplex=False) for _ in range(size)]
        senders = [sender for _, sender in pipes]
        if start == "spawn":
            started = torch.multiprocessing.spawn(_worker, (senders, *given), size, join=False)
            processes = started.processes
        else:
            processes = [
                context.Process(target=_worker, args=(rank, senders, *given))
                for rank in range(size)
            ]
            for process in processes:
                process.start()
        for sender in senders:
            sender.close()
        results = [_received(receiver) for receiver, _ in pipes]
        for process in processes:
            process.join(LIMIT)
            if process.is_alive():
                process.kill()
    return results


def _received(pipe):
    try:
        return pipe.recv() if pipe.poll(LIMIT) else None
    except EOFError:
        return None


def _worker(rank, senders, size, method, function, args, options):
    sender = senders[rank]
    for other in senders:  # else they would not be closed when their process is killed
        if other is not sender:
            other.close()
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK="0")
    torch.set_num_threads(1)
    settings = {"init_method": method, "timeout": 30.0, "answer_timeout": 1.0}
    shard = options.pop("shard", None)
    try:
        with pyro_flowsamp.workers(shard=shard, options=WorkersOptions(**settings | options)) as g:
            result = function(g, *args)
    except Exception as error:
        result = error
    sender.send(_plain(result))
    sender.close()


def _plain(value):
    """Tensors as arrays, which go through a pipe without shared memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy().copy()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
