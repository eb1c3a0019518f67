"""Python's search for garbage, put off where much is made and little thrown away: while modules are imported."""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_switch = threading.Lock()


@contextmanager
def uncollected() -> Iterator[None]:
    """Within it Python does not look for garbage: a fifth of importing torch, transformers or an architecture.

    Afterwards what there is counts as old. As new it would be looked through twice more before long, which takes as
    long again, and what was imported stays.
    """
    with _switch:  # a thread that left between the two lines would leave it off for good
        collects = gc.isenabled()
        gc.disable()
    try:
        yield
    finally:
        if collects:
            with _switch:
                if not gc.get_freeze_count():  # what somebody froze stays frozen
                    gc.freeze()
                    gc.unfreeze()  # to the oldest generation
                gc.enable()
