"""The small shared package of the book *What Goes With What*: one module an idea, met in full in a chapter first.

Import it before PyTorch and LightGBM: the threads of these libraries read how they shall wait when they are loaded.
Left alone they wait by spinning, and beside one busy process a training step then takes twenty times as long; told
to sleep soon, less than twice (`make bench`). A value that the reader has set stays.

The C library is told to hand large arrays back to the system as soon as they are freed: it would keep some hundreds of
MB of them for later.
"""

import contextlib
import ctypes
import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # GNU's threads: look that often, then sleep
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # LLVM's and Intel's threads (macOS, conda): milliseconds

# oneDNN keeps kernels for every shape of batch; the last hundred are enough and save a third of a gigabyte.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "100")

with contextlib.suppress(OSError, AttributeError):  # glibc only
    _libc = ctypes.CDLL("libc.so.6")
    _libc.mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD: from 1 MB on, pages of its own
    _libc.mallopt(-1, 1 << 20)  # M_TRIM_THRESHOLD

__version__ = "0.1.0"
