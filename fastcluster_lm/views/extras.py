"""Which optional packages a view needs, and how to get them; it imports none."""

from importlib.util import find_spec

from fastcluster_lm.errors import UsageError


def require(package: str, *, extra: str, purpose: str) -> None:
    """Refuse a view whose package is not installed.

    Errors: UsageError naming the extra that brings it
    """
    if find_spec(package) is None:
        raise UsageError(
            f"{purpose}: expected the package {package}, found none; install it with: "
            f"pip install 'fastcluster-lm[{extra}]'"
        )
