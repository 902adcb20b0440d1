"""The errors of data that cannot be used."""

from __future__ import annotations

import errno

from vqvae2.errors import UserError

_OF_THE_FILE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.EILSEQ),
}


class DataError(UserError):
    """Data that cannot be used; the message is one line that says why."""


class ImageError(DataError):
    """One image that cannot be used because of its own file; among other images it is skipped and counted."""


class LabelsError(DataError):
    """A file of labels that says nothing about the images at hand, because it belongs to others or is gone."""


def reading_failed(error: OSError) -> DataError:
    """What a failed attempt to read a file means.

    Returns:
        `ImageError` if something is wrong with the file itself (it is missing, a folder, or may not be read), and
        `DataError` if something is wrong with the machine: too many open files, an I/O error, a lost network disk.
        The first may be skipped. The second would fail for any file, and a later attempt may succeed.
    """
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in _OF_THE_FILE:
        return ImageError(reason)
    return DataError(f"reading failed: {reason} (this is a fault of the machine, so the file is not skipped)")
