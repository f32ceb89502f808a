"""The one import of zuko, which switches torch's validation of distributions off; undone here."""

from torch.distributions import Distribution

_validate = Distribution._validate_args

import zuko  # noqa: E402

Distribution.set_default_validate_args(_validate)

__all__ = ["zuko"]
