"""The ``.npy`` files of the command line: rows read through a window, results completed before they get their name.

``numpy.load(mmap_mode="r")`` maps a whole file, which fails under an address-space limit and lets resident memory grow
with the file. ``RowFile`` maps only the rows asked for. ``ResultFile`` writes beside the final name and takes that name
when every byte is there.
"""

import contextlib
import errno
import io
import math
import mmap
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray


class Refused(Exception):
    """A file or an argument that cannot be worked with; the message is the one line that the user sees."""


def _window(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> NDArray[Any]:
    """Read-only array of the C-ordered data ``offset`` bytes into the file; unmapped with the last reference to it."""
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return np.empty(shape, dtype)
    # A page that the file no longer reaches would end the process with SIGBUS instead of an error.
    if os.fstat(file.fileno()).st_size < offset + size:
        raise OSError(errno.EIO, "the file became shorter while it was read", file.name)
    skipped = offset % mmap.ALLOCATIONGRANULARITY
    mapped = mmap.mmap(file.fileno(), skipped + size, access=mmap.ACCESS_READ, offset=offset - skipped)
    if hasattr(mmap, "MADV_WILLNEED"):  # read from disk in one go, not a fault at a time
        mapped.madvise(mmap.MADV_WILLNEED)
    return np.ndarray(shape, dtype, mapped, skipped)


def _read_header(file: IO[bytes], path: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether Fortran-ordered, and dtype, with the file left at its first data byte."""
    try:
        version = npy_format.read_magic(file)
        if version == (1, 0):
            shape, fortran_order, dtype = npy_format.read_array_header_1_0(file)
        elif version in ((2, 0), (3, 0)):  # 3.0 differs in the encoding of field names, and fields are refused anyway
            shape, fortran_order, dtype = npy_format.read_array_header_2_0(file)
        else:
            raise Refused(f"{path}: .npy format version {version[0]}.{version[1]} is not known")
    except ValueError:
        file.seek(0)
        if file.read(4) == b"PK\x03\x04":
            raise Refused(f"{path}: is an .npz archive or a zip file; save the array alone with numpy.save") from None
        raise Refused(f"{path}: is not an .npy file") from None
    if any(n < 0 for n in shape):
        raise Refused(f"{path}: is not an .npy file: its header gives the shape {shape}")
    return shape, fortran_order, dtype


class RowFile:
    """The rows of one ``.npy`` file of shape (..., K), whatever its size.

    Attributes
    ----------
    path : str
    shape : tuple of int
        As in the file; the last axis is the row.
    n_rows, row_length : int
    dtype : numpy.dtype
        ``uint16`` where the file holds bfloat16 and ``bfloat16`` is true.
    row_bytes : int
    """

    def __init__(self, path: str, *, bfloat16: bool = False) -> None:
        self.path = path
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 -- closed by __exit__
        except OSError as error:
            raise Refused(f"{path}: {error.strerror}") from None
        try:
            status = os.fstat(self._file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Refused(f"{path}: is not a regular file, which is needed to map it")
            self.shape, self._fortran_order, self.dtype = _read_header(self._file, path)
            self._start = self._file.tell()
            if self.dtype.hasobject:
                raise Refused(f"{path}: holds Python objects, which are not read; save numbers")
            if self.dtype == np.dtype("V2"):  # what numpy.save makes of ml_dtypes.bfloat16
                if not bfloat16:
                    raise Refused(f"{path}: holds 2-byte values of unknown type; if bfloat16, say --dtype bfloat16")
                self.dtype = np.dtype(np.uint16)
            if not self.shape:
                raise Refused(f"{path}: holds a single number; rows along the last axis are needed")
            *leading, self.row_length = self.shape
            self.n_rows = math.prod(leading)
            self.row_bytes = self.row_length * self.dtype.itemsize
            present = status.st_size - self._start
            if present < self.n_rows * self.row_bytes:
                raise Refused(
                    f"{path}: is truncated: an array of shape {self.shape} and type {self.dtype} takes"
                    f" {self.n_rows * self.row_bytes} bytes, {present} are there"
                )
            # An axis of length 1 has no order; two longer ones are needed to tell the orders apart.
            self._fortran_order = self._fortran_order and sum(n > 1 for n in self.shape) > 1
            if self._fortran_order and len(self.shape) > 2:
                raise Refused(
                    f"{path}: is stored in Fortran order, which is read for two axes only and it has"
                    f" {len(self.shape)}; save numpy.ascontiguousarray of it"
                )
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def status(self) -> os.stat_result:
        """The ``os.stat_result`` of the open file."""
        return os.fstat(self._file.fileno())

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start`` to ``stop`` in C order of the leading axes, as a read-only array (stop - start, K)."""
        if not self._fortran_order:
            shape = (stop - start, self.row_length)
            return _window(self._file, self.dtype, shape, self._start + start * self.row_bytes)
        # Column k of the file is contiguous: gather the wanted piece of each.
        columns = np.empty((self.row_length, stop - start), self.dtype)
        for k, column in enumerate(columns):
            self._file.seek(self._start + (k * self.n_rows + start) * self.dtype.itemsize)
            unread = memoryview(column).cast("B")
            while unread:
                n = self._file.readinto(unread)
                if not n:
                    raise OSError(errno.EIO, "the file became shorter while it was read", self.path)
                unread = unread[n:]
        return columns.T


class ResultFile:
    """A new ``.npy`` file that exists under its own name only when it is whole.

    Until ``commit`` the data are in ``PATH.<random>.partial``, which leaving the ``with`` block removes. Its space is
    reserved at once: a disk that is too full is found before the work, not after it.

    Parameters
    ----------
    path : str
    shape : tuple of int
    dtype : numpy.dtype
    force : bool
        Replace an existing file, in one step, when the new one is whole. Otherwise an existing file is refused, also
        one that appears during the work.
    inputs : sequence of RowFile
        Files that are never replaced.
    """

    def __init__(
        self, path: str, shape: tuple[int, ...], dtype: np.dtype[Any], *, force: bool, inputs: Sequence[RowFile]
    ) -> None:
        self.path = path
        self.dtype = dtype
        self._force = force
        self._final = os.path.realpath(path)  # a link stays a link: what it points at is replaced
        self._check_final(inputs)
        self._partial = f"{self._final}.{secrets.token_hex(4)}.partial"
        header = io.BytesIO()
        npy_format.write_array_header_1_0(
            header,
            {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape},
        )
        self._start = header.tell()
        self.n_rows = math.prod(shape)
        try:
            self._file = open(self._partial, "x+b", buffering=0)  # noqa: SIM115 -- closed by _discard
        except OSError as error:
            raise Refused(f"{path}: cannot be written: {error.strerror}") from None
        try:
            self._reserve(self._start + self.n_rows * dtype.itemsize)
            self._write(header.getbuffer())
        except BaseException:
            self._discard()
            raise

    def _check_final(self, inputs: Sequence[RowFile]) -> None:
        """Refuse a name that cannot become a file, or that is taken."""
        directory = os.path.dirname(self._final)
        if not os.path.isdir(directory):
            raise Refused(f"{self.path}: there is no directory {directory}")
        try:
            existing = os.stat(self._final)
        except FileNotFoundError:
            return
        except OSError as error:
            raise Refused(f"{self.path}: {error.strerror}") from None
        if stat.S_ISDIR(existing.st_mode):
            raise Refused(f"{self.path}: is a directory")
        if any(os.path.samestat(existing, file.status) for file in inputs):
            raise Refused(f"{self.path}: is one of the inputs; name another file for the result")
        if not stat.S_ISREG(existing.st_mode):
            raise Refused(f"{self.path}: is not a regular file")
        if not self._force:
            raise Refused(f"{self.path}: exists; --force replaces it")

    def _reserve(self, size: int) -> None:
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(self._file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot reserve is no failure
                raise OSError(error.errno, f"{error.strerror} ({size} bytes are needed)", self.path) from None

    def _write(self, data: Any) -> None:
        unwritten = memoryview(data).cast("B")
        while unwritten:
            try:
                unwritten = unwritten[self._file.write(unwritten) :]
            except OSError as error:
                raise OSError(error.errno, error.strerror, self.path) from None

    def append(self, values: NDArray[Any]) -> None:
        """Write the next rows."""
        if values.size:
            self._write(np.ascontiguousarray(values, self.dtype))

    def chunks(self, rows_per_chunk: int) -> Iterator[NDArray[Any]]:
        """The rows written, chunk by chunk, also after ``commit``."""
        for start in range(0, self.n_rows, rows_per_chunk):
            n = min(rows_per_chunk, self.n_rows - start)
            yield _window(self._file, self.dtype, (n,), self._start + start * self.dtype.itemsize)

    def commit(self) -> None:
        """Make the data durable and give the file its name."""
        os.fsync(self._file.fileno())
        if self._force:
            os.replace(self._partial, self._final)
        else:
            self._rename_without_replacing()
        directory = os.open(os.path.dirname(self._final), os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _rename_without_replacing(self) -> None:
        try:
            os.link(self._partial, self._final)  # unlike a rename, fails when the name has been taken meanwhile
        except FileExistsError:
            raise Refused(f"{self.path}: appeared during the work and was left as it is") from None
        except OSError:  # a file system without hard links
            if os.path.exists(self._final):
                raise Refused(f"{self.path}: appeared during the work and was left as it is") from None
            os.rename(self._partial, self._final)
        else:
            os.unlink(self._partial)

    def __enter__(self) -> "ResultFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._discard()

    def _discard(self) -> None:
        self._file.close()
        with contextlib.suppress(FileNotFoundError):  # after ``commit`` the partial name is gone
            os.unlink(self._partial)
