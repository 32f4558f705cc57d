"""How a process ends that has used MLX."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """Ends the process with this very code, whatever its other threads do.

    MLX takes its stream threads down when the engine thread ends, a moment after Python has
    joined it. Where the interpreter's own end overtakes that, C++ aborts the process, and who
    watches it sees a crash.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
