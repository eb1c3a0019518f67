"""Python's search for garbage, put off where much is made and little thrown away: while modules are imported."""

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_switch = threading.Lock()


@contextmanager
def uncollected() -> Iterator[None]:
    """Within it Python does not look for garbage: a fifth of importing torch, transformers or an architecture.

    Where something was imported, what there is counts as old afterwards. As new it would be looked through twice more
    before long, which takes as long again, and modules stay.
    """
    with _switch:  # a thread that left between the two lines would leave it off for good
        collects = gc.isenabled()
        gc.disable()
    modules = len(sys.modules)
    try:
        yield
    finally:
        if collects:
            with _switch:
                if len(sys.modules) > modules and not gc.get_freeze_count():  # what somebody froze stays frozen
                    gc.freeze()
                    gc.unfreeze()  # to the oldest generation
                gc.enable()
