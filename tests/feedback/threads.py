"""Several at once, for the tests of what is shared."""

from collections.abc import Callable
from threading import Thread


def in_threads(names: list[str], do: Callable[[str], None]) -> None:
    """Call ``do`` with each name, all at once; what one of them raises fails the test."""
    failures: list[BaseException] = []

    def run(name: str) -> None:
        try:
            do(name)
        except BaseException as error:
            failures.append(error)

    threads = [Thread(target=run, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
