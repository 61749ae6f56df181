"""What one version of the plugin says, and another one cannot read."""

import importlib


class OfAnotherVersion:
    """Pickled like any other message; whoever unpickles it meets a module that is not there (ModuleNotFoundError)."""

    def __reduce__(self):
        return importlib.import_module, ("no_such_module",)
