"""The small shared package of the book *What Goes With What*: one module an idea, met in full in a chapter first.

Import it before PyTorch and LightGBM: the threads of these libraries read how they shall wait when they are loaded.
Left alone they wait by spinning, and beside one busy process a training step then takes twenty times as long; told
to sleep soon, less than twice (`make bench`). A value that the reader has set stays.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # GNU's threads: look that often, then sleep
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # LLVM's and Intel's threads (macOS, conda): milliseconds

__version__ = "0.2.0"
