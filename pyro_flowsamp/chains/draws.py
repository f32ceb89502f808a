"""Draws of many chains with their statistics, and summaries of them."""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer.mcmc.util import diagnostics, print_summary, select_samples
from torch import Tensor

from ..kernels.statistics import proposal_diagnostics
from ..target.density import Target
from ..target.site import Values
from ..validation import check_count
from .streaming import Empty, in_memory

__all__ = ["ChainDraws"]


FEWEST_DRAWS = 4  #: draws of a chain for which effective sample sizes and R-hat are defined


class ChainDraws:
    """The draws of a run, with the methods of :class:`pyro.infer.MCMC` that look at them.

    Attributes:
        statistics: Statistics of each draw, ``{name: (num_chains, num_samples)}``.
        unconstrained: The draws of the kept sites in R^d, ``(num_chains, num_samples, d)``.
        target: The posterior that they are drawn from; None before there are any.
        num_samples: Draws of each chain.

    Example:
        >>> import pyro
        >>> from pyro_flowsamp import IMH, VectorizedMCMC
        >>> pyro.set_rng_seed(0)
        >>> target = Target.from_energy(lambda x: 0.5 * (x - 3).square().sum(-1), 2)
        >>> run = VectorizedMCMC(IMH(target), 100, 1, num_chains=20, disable_progbar=True)
        >>> run.run()
        >>> isinstance(run, ChainDraws), run.get_samples(group_by_chain=True)["x"].shape
        (True, torch.Size([20, 100, 2]))
        >>> round(float(run.unconstrained.mean()), 1), run.num_samples
        (3.0, 100)
    """

    num_samples: int

    def __init__(self) -> None:
        self.statistics: dict[str, Tensor] = {}
        self.unconstrained = torch.empty(0)
        self.target: Target | None = None
        self._proposal: Any = None
        self._samples: Values | None = None
        self._empty: Empty = in_memory  # makes memory for what is computed of the draws

    @property
    def memory_for_draws(self) -> Empty:
        """Makes memory of the kind that the draws have: the machine's, or files."""
        return self._empty

    def get_samples(self, num_samples: int | None = None, group_by_chain: bool = False) -> Values:
        """Constrained draws ``{site: (draws, ...)}``, or ``(chains, draws, ...)`` by chain.

        They are those of latent sites, as in Pyro. Deterministic sites are made of them by Pyro's
        ``Predictive`` and by :func:`~pyro_flowsamp.to_arviz`.

        Arguments:
            num_samples: Resample this many with replacement.
            group_by_chain: Whether to keep the chain dimension.

        Raises:
            RuntimeError: There has been no run.
            ValueError: ``num_samples`` is no whole number, or below 1.
        """
        if self._samples is None:
            raise RuntimeError("there are no draws yet: call run(...) first")
        if num_samples is not None:
            num_samples = check_count("num_samples", num_samples)
            return select_samples(self._samples, num_samples, group_by_chain)
        return {k: v if group_by_chain else v.flatten(0, 1) for k, v in self._samples.items()}

    def diagnostics(self) -> dict[str, Any]:
        """Effective sample size and R-hat by site, acceptance rates, and the fit of the flow.

        Chains that have all missed the same mode have an R-hat of 1: read the importance ESS and
        Pareto k too. (A run that was pickled or copied has lost its flow and leaves these out.)

        Returns:
            A dictionary:

            - the name of each site: its ``n_eff`` and ``r_hat``, as Pyro computes them;
            - ``acceptance rate``: the share of accepted moves of each chain;
            - ``divergences``: for each chain, the draws whose trajectory diverged;
            - ``importance ess``: the effective sample size of the flow's own draws as an
              importance sample, as a share of their number; at several contexts the least one;
            - ``pareto k``: the shape of the tail of their weights, below 0.7 where averages by
              them can be trusted; at several contexts the largest one;
            - ``log q error``: the largest difference in nats between the log densities of
              sampling and of scoring, on 99.9 % of draws.

        Raises:
            ValueError: There are fewer than four draws a chain.
        """
        self._check_enough()
        by_site: dict[str, Any] = diagnostics(self._summarised())
        return {**by_site, **_of_chains(self.statistics), **self._flow_diagnostics()}

    def _summarised(self) -> Values:
        """Draws by chain of the sites that are not empty, which Pyro's summaries cannot treat."""
        draws = self.get_samples(group_by_chain=True)
        return {name: value for name, value in draws.items() if value.numel()}

    def _flow_diagnostics(self) -> dict[str, float]:
        if self._proposal is None or self.target is None:
            return {}
        return proposal_diagnostics(self._proposal, self.target)

    def _check_enough(self) -> None:
        if self.num_samples < FEWEST_DRAWS and self._samples is not None:
            raise ValueError(
                f"effective sample sizes and R-hat need {FEWEST_DRAWS} draws a chain, there are "
                f"{self.num_samples}: draw more by resume(...), or look at get_samples()"
            )

    def summary(self, prob: float = 0.9) -> None:
        """Prints Pyro's table of means, quantiles, effective sample sizes and R-hats.

        Raises:
            ValueError: There are fewer than four draws a chain.
        """
        self._check_enough()
        print_summary(self._summarised(), prob=prob)
        print(f"Number of divergences: {int(self.statistics['diverging'].sum())}")
        print(f"Acceptance rate: {float(self.statistics['accepted'].double().mean()):.3f}")
        print("  ".join(f"{name}: {value:.3g}" for name, value in self._flow_diagnostics().items()))


def _of_chains(statistics: dict[str, Tensor]) -> dict[str, Any]:
    """Divergences and acceptance rates of each chain, named as in Pyro's diagnostics."""
    diverging = statistics["diverging"]
    accepted = statistics["accepted"].double().mean(-1)
    return {
        "divergences": {
            f"chain {i}": row.nonzero()[:, 0].tolist() for i, row in enumerate(diverging)
        },
        "acceptance rate": {f"chain {i}": float(a) for i, a in enumerate(accepted)},
    }
