"""Pre-training of Vision Transformers on CT and MRI slices with the Curia-2 recipe."""

import importlib.metadata


def __getattr__(name: str) -> str:
    """`__version__`, of pyproject.toml: asked for only when it is wanted, since a checkout need not be installed."""
    if name == "__version__":
        return importlib.metadata.version("curia2-jax")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
