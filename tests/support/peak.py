"""The memory that a computation takes, as the system sees it."""

import ctypes
import gc
import threading
import time
from pathlib import Path

import pytest

LIBC = ctypes.CDLL(None)


class Peak:
    """The largest memory of this process that is not a file's, beyond that at the beginning."""

    def __enter__(self):
        gc.collect()
        LIBC.malloc_trim(0)  # else memory that earlier tests have freed would be used again
        self.first, self.ended, self.largest = self.now(), threading.Event(), 0
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    @staticmethod
    def now():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    def watch(self):
        while not self.ended.is_set():
            self.largest = max(self.largest, self.now() - self.first)
            time.sleep(0.002)

    def __exit__(self, *error):
        self.ended.set()
        self.thread.join()


#: the system does not tell the memory of a process
unknown = pytest.mark.skipif(not hasattr(LIBC, "malloc_trim"), reason="the memory is not known")
