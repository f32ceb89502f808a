r"""Two-class data sets for Bayesian logistic regression, split into a training and a held-out part.

All but German credit come with scikit-learn, which downloads nothing::

    train, test = load("breast_cancer", seed=0)
    target = Target.from_model(logistic_regression, *train)
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CREDIT = Path(__file__).parents[2] / "data" / "german_credit.csv"

Table = tuple[np.ndarray, np.ndarray]
Part = tuple[Tensor, Tensor]


def german_credit() -> Table:
    """Bad credit risks against good ones: 1000 × 24."""
    table = np.loadtxt(CREDIT, delimiter=",", skiprows=1)
    return table[:, :-1], table[:, -1] == 1


def breast_cancer() -> Table:
    """Benign against malignant tumours: 569 × 30."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return x, y == 1


def wine() -> Table:
    """The first cultivar against the two others: 178 × 13."""
    from sklearn.datasets import load_wine

    x, y = load_wine(return_X_y=True)
    return x, y == 0


def iris() -> Table:
    """Iris virginica against the two others, the split that is not linearly separable: 150 × 4."""
    from sklearn.datasets import load_iris

    x, y = load_iris(return_X_y=True)
    return x, y == 2


def digits() -> Table:
    """Handwritten odd digits against even ones: 1797 × 64, some of them constant."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return x, y % 2 == 1


TABLES: dict[str, Callable[[], Table]] = {
    table.__name__: table for table in (german_credit, breast_cancer, wine, iris, digits)
}


def load(name: str, seed: int = 0, train_fraction: float = 0.8) -> tuple[Part, Part]:
    """The training and the held-out part, ``(X, y)`` each, in the default dtype.

    ``X`` is a column of ones beside the predictors, standardised by the training part's mean and
    deviation; predictors that are constant there are left out. ``y`` is 0 or 1.

    Arguments:
        name: One of :data:`TABLES`.
        seed: Of the random split, independent of torch's and numpy's global state.
        train_fraction: How much of the data is trained on.
    """
    x, y = TABLES[name]()
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = np.split(order, [round(train_fraction * len(x))])
    mean, deviation = x[train].mean(0), x[train].std(0)
    varies = deviation > 0
    x = (x - mean)[:, varies] / deviation[varies]
    x = np.column_stack([np.ones(len(x)), x])

    def part(rows: np.ndarray) -> Part:
        dtype = torch.get_default_dtype()
        return torch.as_tensor(x[rows], dtype=dtype), torch.as_tensor(y[rows], dtype=dtype)

    return part(train), part(test)
