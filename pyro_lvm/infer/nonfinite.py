"""The error of every inference whose loss stops being a number."""

__all__ = ["NonFiniteLoss"]


class NonFiniteLoss(ValueError):  # noqa: N818 - named by what is seen
    """A loss that is NaN or infinite; parameters are as they were before the step."""
