"""Loads resin's helper into a Python process that `resin watch` started, then the sitecustomize it hides."""

import os
import sys


def _load():
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") != here]
    try:
        if os.environ.get("RESIN_PRELOAD_DIR"):
            path = os.path.join(here, "resin_inprocess.py")
            with open(path, encoding="utf-8") as file:
                code = compile(file.read(), path, "exec")
            names: dict = {"__name__": "resin_inprocess", "__file__": path}
            exec(code, names)
            names["serve"](os.environ["RESIN_PRELOAD_DIR"])
    except Exception as error:  # the target must run whatever happens to its observer
        if os.environ.get("RESIN_PRELOAD_DEBUG"):
            sys.stderr.write(f"resin: helper not loaded: {error!r}\n")
    # The distribution or the user may have a sitecustomize of their own: run it as if we were not there.
    mine = sys.modules.pop("sitecustomize", None)
    try:
        import sitecustomize  # noqa: F401
    except ImportError:
        if mine is not None:
            sys.modules["sitecustomize"] = mine


_load()
