"""One named error for each way an artifact can be wrong; all of them are exit code 5."""

from __future__ import annotations

from fusec.diagnostics import ArtifactError


class NotAnArtifactError(ArtifactError):
    """The file is something else."""


class TruncatedError(ArtifactError):
    """The end of the file is missing, or something was added to it."""


class VersionError(ArtifactError):
    """The format is one that this reader does not know."""


class UnsafeNameError(ArtifactError):
    """An entry is named by an absolute path, `..`, a backslash or other odd characters."""


class DuplicateEntryError(ArtifactError):
    """Two entries have one name."""


class CompressedEntryError(ArtifactError):
    """An entry is compressed; fusec stores every entry as it is."""


class EncryptedEntryError(ArtifactError):
    """An entry is encrypted."""


class OverlapError(ArtifactError):
    """Two entries share bytes of the file."""


class OutOfBoundsError(ArtifactError):
    """An entry, a buffer or an offset lies outside of what holds it."""


class HeaderMismatchError(ArtifactError):
    """A local header disagrees with the central directory."""


class LayoutError(ArtifactError):
    """The bytes between the entries are not those that fusec writes."""


class LimitError(ArtifactError):
    """Something is larger than any real artifact has it."""


class MissingEntryError(ArtifactError):
    """An entry, or the file of weights, is not there."""


class UnexpectedEntryError(ArtifactError):
    """An entry that the manifest does not list."""


class ChecksumError(ArtifactError):
    """Bytes are not those that were written."""


class MalformedError(ArtifactError):
    """A document inside the artifact is not what its schema says."""


class WeightsError(ArtifactError):
    """The weights are not those that the artifact was compiled for."""

    usual_hint = "`--weights` takes what `compile --weights external` writes beside an artifact"


class TargetError(ArtifactError):
    """The artifact holds no code for this device."""

    usual_hint = "compile it for this device"


class CodeError(ArtifactError):
    """Native code could not be loaded, or failed while it ran."""

    usual_hint = "compile it again for this device"


class LibraryError(ArtifactError):
    """A library that the artifact calls is not the one it was compiled for."""
