"""fmjax: foundation models in JAX, from one core to a TPU slice."""

__version__ = "0.1.0"


def __getattr__(name: str):
    """`fmjax.load` and `fmjax.evaluate`, imported when first used so that `import fmjax` stays fast.

    Both are modules of that name that can be called: importing a module `fmjax.load` makes it the package's attribute,
    so a function would be there or not depending on the order of imports.
    """
    if name in ("load", "evaluate"):
        import importlib

        return importlib.import_module(f"fmjax.{name}")
    raise AttributeError(f"module 'fmjax' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), "load", "evaluate"])
