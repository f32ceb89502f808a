r"""Evaluation of a batch: in chunks that fit into memory, and by halves where a matrix fails.

For a gradient, autograd keeps intermediate results of every point: a gradient of a logistic
regression on 50 000 data keeps .8 MB for each. So a batch is evaluated in chunks, where it would
keep more than :data:`MEMORY_BUDGET` bytes at once. The size of the chunks follows from a count of
these bytes, which depends on the shapes of tensors only. It does not depend on how much memory is
free, and so results do not either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from traceback import clear_frames
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from ..distributed import batch_workers
from .batching import Density
from .compiling import NOT_ALLOWED, may_compile, warn_of_other_rounding
from .options import CompileMode, TracingOptions, check_compile
from .shared_batches import evaluated_by_all
from .site import Site, Values
from .tracing import TracedDensity, described_graphs, is_bad_matrix

__all__ = [
    "MEMORY_BUDGET",
    "ChunkedDensity",
    "EvaluationCounter",
    "PointsWithContext",
    "TracedEvaluation",
    "bytes_per_point",
    "finite_or_zero",
    "saved_bytes",
]

#: bytes that autograd may keep for the gradient of a batch at once
MEMORY_BUDGET = 512 * 2**20


@dataclass
class EvaluationCounter:
    """The evaluations of a target and of those made from it by ``at_contexts``.

    Example:
        >>> from pyro_flowsamp import Target
        >>> target = Target.from_energy(lambda x: torch.where(x > 0, x, torch.inf).sum(-1), 1)
        >>> _ = target.log_prob(torch.tensor([[1.0], [2.0], [-1.0]]))
        >>> target.counter.evaluations, int(target.counter.nonfinite)
        (3, 1)
    """

    nonfinite: Tensor
    evaluations: int = 0


class TracedEvaluation:
    """The base of targets: how many densities were evaluated, and by what means.

    Attributes:
        density: The density, evaluated in chunks.
        counter: Counts evaluations; targets made from one another have the same.
        sites: The blocks of coordinates, in order.
        log_prob: The log densities ``(N,)`` of points ``(N, d)``.
    """

    density: ChunkedDensity
    counter: EvaluationCounter
    sites: list[Site]
    log_prob: Callable[..., Tensor]

    @property
    def evaluations(self) -> int:
        """The number of densities that have been evaluated so far."""
        return self.counter.evaluations

    @property
    def nonfinite(self) -> Tensor:
        """The number of densities that were NaN or infinite, as a 0-d tensor on ``device``."""
        return self.counter.nonfinite

    @property
    def compile_mode(self) -> CompileMode:
        """Whether the density is traced and compiled; may be set.

        - "auto": traced after a number of calls, and compiled where the work so far is as large as
          that of a compilation (:class:`~pyro_flowsamp.TracingOptions`);
        - True: traced and compiled from the first call on;
        - False: neither.

        It belongs to the density, which a target shares with those that :meth:`at_contexts` makes.

        Raises:
            ValueError: It is set to anything else.
        """
        return self.density.density.compile_mode

    @compile_mode.setter
    def compile_mode(self, mode: CompileMode) -> None:
        self.density.density.compile_mode = check_compile(mode)

    @property
    def tracing(self) -> TracingOptions:
        """The options of tracing and compilation; may be set."""
        return self.density.density.options

    @tracing.setter
    def tracing(self, options: TracingOptions) -> None:
        self.density.density.options = options

    def restart_counts(self) -> None:
        """Lets tracing and compilation begin anew, so that a run does not depend on earlier ones.

        :func:`~pyro_flowsamp.sample`, guides and kernels do so where they begin.
        """
        self.density.density.restart()

    def tracing_state(self) -> dict[str, Any]:
        """The counts by which it is decided when the density is traced and compiled."""
        return self.density.density.state_dict()

    def load_tracing_state(self, state: dict[str, Any]) -> None:
        """Takes counts of :meth:`tracing_state`, so that graphs are used from the same call on.

        Warns:
            UserWarning: Graphs had been compiled, and nothing may be compiled now.
        """
        self.density.density.load_state_dict(state)
        if state.get("compiled since") and not may_compile():
            warn_of_other_rounding("density", NOT_ALLOWED)

    def described_graphs(self) -> list[str]:
        """The batches whose density is traced or compiled, and the counts at which that began."""
        return described_graphs(self.density.density)

    @contextmanager
    def untraced(self) -> Iterator[None]:
        """A context in which the density itself is evaluated, and nothing is counted."""
        mode, state, counter = self.compile_mode, self.tracing_state(), self.counter
        evaluations, nonfinite = counter.evaluations, counter.nonfinite
        self.compile_mode = False
        try:
            yield
        finally:
            self.compile_mode = mode
            self.density.density.load_state_dict(state)
            counter.evaluations, counter.nonfinite = evaluations, nonfinite

    @contextmanager
    def counted_apart(self) -> Iterator[EvaluationCounter]:
        """A context as :meth:`untraced`, whose evaluations are counted from zero."""
        with self.untraced():
            nonfinite = self.counter.nonfinite
            zero = torch.zeros((), dtype=nonfinite.dtype, device=nonfinite.device)
            self.counter.evaluations, self.counter.nonfinite = 0, zero
            yield self.counter

    @property
    def read_values(self) -> dict[str, Any]:
        """The values that an evaluation reads beside its points, by name."""
        passed = {"density", "counter", "starts", "model"}
        own = {name: value for name, value in vars(self).items() if name not in passed}
        return {**own, "density": self.density.density.density}

    @property
    def untraced_reason(self) -> str:
        """The reason why the density cannot be traced; empty where none is known."""
        return self.density.density.reason

    def potential_fn(self, values: Values) -> Tensor:
        r""":math:`-\log \tilde p` at one point, as a potential function of Pyro's HMC and NUTS.

        After :attr:`TracingOptions.calls <pyro_flowsamp.TracingOptions>` evaluations, or at once
        where :attr:`compile_mode` is True, it is several times as fast as the model's potential.

        Arguments:
            values: Unconstrained values ``{site: tensor}``.

        Returns:
            A 0-d tensor; infinite where the density is zero or NaN.

        Example:
            >>> import pyro
            >>> from pyro.infer import MCMC, NUTS
            >>> from pyro_flowsamp import Target
            >>> def model(y):
            ...     scale = pyro.sample("scale", pyro.distributions.LogNormal(0.0, 1.0))
            ...     pyro.sample("y", pyro.distributions.Normal(0.0, scale), obs=y)
            >>> target = Target.from_model(model, torch.tensor(1.0))
            >>> transforms = {site.name: site.transform.inv for site in target.sites}
            >>> kernel = NUTS(potential_fn=target.potential_fn, transforms=transforms)
            >>> start = target.unpack_unconstrained(target.initial_points(1)[0])
            >>> mcmc = MCMC(kernel, 5, 5, initial_params=start, disable_progbar=True)
            >>> mcmc.run()
            >>> mcmc.get_samples()["scale"].shape
            torch.Size([5])
        """
        x = torch.cat([values[site.name].reshape(1, -1) for site in self.sites], -1)
        return -self.log_prob(x).sum()


def finite_or_zero(grad: Tensor) -> Tensor:
    """A gradient, zero where it is NaN or infinite.

    Example:
        >>> finite_or_zero(torch.tensor([1.0, torch.nan, -torch.inf]))
        tensor([1., 0., 0.])
    """
    return torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)


class PointsWithContext(NamedTuple):
    """Some points of a batch.

    Attributes:
        x: The points ``(N, d)``.
        c: Their contexts ``(N, c)``, or None.

    Example:
        >>> density = ChunkedDensity(lambda x, c: x.sum(-1) + c.sum(-1))
        >>> density.split(torch.zeros(3, 2), torch.ones(3, 1))[0].c.shape
        torch.Size([3, 1])
    """

    x: Tensor
    c: Tensor | None


def bytes_per_point(density: Density, x: Tensor, c: Tensor | None) -> int:
    """The bytes that autograd keeps for the gradient at each point of a batch.

    This is the difference between the bytes that it keeps for a batch with each point twice and for
    the batch itself, so that data which all points share do not count.

    Arguments:
        density: A batched density.
        x: A few points ``(N, d)``.
        c: Their contexts ``(N, c)``, or None.

    Returns:
        The number of bytes; 0 where the density cannot be differentiated.

    Example:
        >>> bytes_per_point(lambda x, c: x.exp().sum(-1), torch.zeros(2, 5), None)  # keeps exp(x)
        20
    """

    def once(copies: int) -> int:
        points = x.detach().repeat(copies, 1).requires_grad_()
        return saved_bytes(lambda: density(points, None if c is None else c.repeat(copies, 1)))

    try:
        return max(0, (once(2) - once(1)) // len(x))
    except Exception:  # the density is evaluated later, and raises its error there
        return 0


def saved_bytes(compute: Callable[[], Any]) -> int:
    """The size of the storages that a computation keeps for its gradient.

    Arguments:
        compute: The computation.

    Example:
        >>> x = torch.zeros(5, requires_grad=True)
        >>> saved_bytes(lambda: x.exp().sum())  # keeps exp(x)
        20
    """
    kept: list[Tensor] = []  # keeps the storages, lest a later one take the place of an earlier

    def keep(tensor: Tensor) -> Any:
        kept.append(tensor.detach())

    with torch.enable_grad(), saved_tensors_hooks(keep, lambda nothing: nothing):
        compute()
    storages = {StorageWeakRef(s): s.nbytes() for s in (t.untyped_storage() for t in kept)}
    return sum(storages.values())


class ChunkedDensity:
    r"""A batched density that is evaluated in chunks where a batch would need too much memory.

    Where gradients may be asked for later, the intermediate results of a chunk are not kept. They
    are computed again in the backward pass, so that it costs one evaluation more. A caller that
    wants value and gradient at once saves it by going through the chunks of :meth:`split` itself.

    A matrix that cannot be factorised makes the evaluation of a whole batch fail. Such matrices are
    searched for by halves, and the density is zero there.

    Arguments:
        density: Maps points ``(N, d)`` and contexts ``(N, c)`` or None to log densities ``(N,)``.
        bytes_per_point: The bytes that autograd keeps for each point.

    Attributes:
        density: The density, which is traced once it has been evaluated often.

    Example:
        >>> density = ChunkedDensity(lambda x, c: x.sum(-1), MEMORY_BUDGET // 10)
        >>> [len(chunk.x) for chunk in density.split(torch.zeros(24, 2), None)]
        [8, 8, 8]
        >>> density(torch.ones(24, 2), None).sum()
        tensor(48.)
    """

    def __init__(self, density: Density, bytes_per_point: int = 0) -> None:
        if not isinstance(density, TracedDensity):
            density = TracedDensity(density)
        self.density: TracedDensity = density
        self.bytes_per_point = bytes_per_point

    @classmethod
    def measured(cls, density: Density, x: Tensor, c: Tensor | None) -> ChunkedDensity:
        """A density whose memory for each point is counted at some points."""
        return cls(density, bytes_per_point(density, x, c))

    def split(self, x: Tensor, c: Tensor | None) -> list[PointsWithContext]:
        """The chunks of a batch; of equal size, but for one."""
        most = max(1, MEMORY_BUDGET // max(1, self.bytes_per_point))
        if len(x) <= most:
            return [PointsWithContext(x, c)]
        size = -(-len(x) // -(-len(x) // most))
        contexts = [None] * -(-len(x) // size) if c is None else c.split(size)
        return [PointsWithContext(*chunk) for chunk in zip(x.split(size), contexts)]

    def __call__(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Log densities ``(N,)``."""
        group = batch_workers(len(x) * self.bytes_per_point)
        if group is not None and self.density.compile_mode is not True:
            with self.density.apart():  # a worker's blocks decide nothing
                return evaluated_by_all(group, self, x, c)
        chunks = self.split(x, c)
        if len(chunks) == 1:
            try:  # as :func:`_without_bad_matrices`, with a frame less in tracebacks of users
                return self.density(x, c)
            except RuntimeError as error:
                return _by_halves(error, self.density, x, c)
        density = self._recomputed if torch.is_grad_enabled() else self.density
        return torch.cat([_without_bad_matrices(density, *chunk) for chunk in chunks])

    def value_and_grad(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Log densities ``(N,)`` and gradients ``(N, d)`` of one chunk, detached.

        Returns:
            None where there is no graph, and where a matrix cannot be factorised.
        """
        try:
            return self.density.value_and_grad(x, c)
        except RuntimeError as error:
            if not is_bad_matrix(error):
                raise
            _clear_frames(error)
            return None

    def _recomputed(self, x: Tensor, c: Tensor | None) -> Tensor:
        # untraced: it must save the same tensors when it is computed again
        density = self.density.density
        return checkpoint(density, x, c, use_reentrant=False, preserve_rng_state=False)


def _without_bad_matrices(density: Density, x: Tensor, c: Tensor | None) -> Tensor:
    """The density, zero where a matrix cannot be factorised."""
    try:
        return density(x, c)
    except RuntimeError as error:
        return _by_halves(error, density, x, c)


def _clear_frames(error: BaseException | None) -> None:
    """Frees the tensors that the frames of an error and of its causes hold.

    A frame of Pyro holds the error that it raises, and the error its frames. Python finds such a
    circle only by and by, since it counts objects and not bytes: a search on a Gaussian process of
    a hundred points, where many matrices cannot be factorised, held 8 GB in circles.
    """
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _by_halves(error: RuntimeError, density: Density, x: Tensor, c: Tensor | None) -> Tensor:
    """The density after an error of a batch: that of its halves, where it is a bad matrix."""
    if not is_bad_matrix(error):
        raise error
    _clear_frames(error)
    if len(x) == 1:
        return torch.full_like(x[:, 0], -torch.inf)
    if isinstance(density, TracedDensity):  # graphs are for sizes that are asked for often
        density = density.density
    halves = [slice(None, len(x) // 2), slice(len(x) // 2, None)]
    parts = [(x[half], None if c is None else c[half]) for half in halves]
    return torch.cat([_without_bad_matrices(density, *part) for part in parts])
