"""Text whose last byte is the last that may be read: the page behind it is closed, a touch of it ends the process."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import numpy.typing as npt

from hftlab.kernels.jit import address_of

__all__ = ["GuardedText"]

_PROT_NONE = 0


class GuardedText:
    """Memory for texts of up to `size` bytes, each laid directly before a closed page."""

    def __init__(self, size: int = 1 << 16) -> None:
        pages = -(-size // mmap.PAGESIZE)
        self._memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
        whole = np.frombuffer(self._memory, np.uint8)
        self._text = whole[: pages * mmap.PAGESIZE]
        self.end = address_of(self._text) + len(self._text)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(self.end), ctypes.c_size_t(mmap.PAGESIZE), _PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")

    def lay(self, text: bytes) -> npt.NDArray[np.uint8]:
        """Return an array that holds `text` and ends where the memory does."""
        place = self._text[len(self._text) - len(text) :]
        place[:] = np.frombuffer(text, np.uint8)
        return place
