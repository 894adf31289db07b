"""`--provider LIBRARY==VERSION`: which library's kernels are preferred to fusec's own."""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from fusec.diagnostics import UsageError
from fusec.kernels.external.adapter import Adapter
from fusec.kernels.external.aiter import AITER
from fusec.kernels.external.aiter_gated import GATED_NORMS
from fusec.kernels.external.aiter_norms import NORMS
from fusec.kernels.external.aiter_quantised import QUANTISED_NORMS
from fusec.kernels.external.aiter_silu import ACTIVATIONS
from fusec.kernels.external.manifest import Manifest
from fusec.kernels.external.versions import Version, parse_version
from fusec.kernels.registry import Kernel

LIBRARIES: Mapping[str, Manifest] = {AITER.library: AITER}
"""What is known of each library, by its name."""

ADAPTERS: Mapping[str, tuple[Adapter, ...]] = {
    AITER.library: (*NORMS, *QUANTISED_NORMS, *GATED_NORMS, *ACTIVATIONS)
}
"""What is computed with each library, in order of preference for each operation."""

_PROVIDER = re.compile(r"(?P<library>[A-Za-z][\w-]*)\s*==\s*(?P<version>\S+)")
_NEAREST = 2


@dataclass(frozen=True, slots=True)
class Provider:
    """A library, and the release of it that will be installed where the artifact runs."""

    library: str
    version: Version

    def __str__(self) -> str:
        return f"{self.library}=={self.version}"


def parse_provider(text: str) -> Provider:
    """Read `aiter==0.1.14`.

    Raises:
        UsageError: it is written otherwise, the library is unknown, or the release is one that
            fusec knows nothing of; the hint names the releases nearest to it.
    """
    found = _PROVIDER.fullmatch(text.strip())
    if found is None:
        hint = "write `LIBRARY==VERSION`, such as `--provider aiter==0.1.14`"
        raise UsageError(f"`--provider {text}` does not name a library and its version", hint=hint)
    manifest = LIBRARIES.get(found["library"].lower())
    if manifest is None:
        known = ", ".join(f"`{name}`" for name in LIBRARIES)
        message = f"`--provider {text}`: fusec knows no library `{found['library']}`"
        raise UsageError(message, hint=f"known libraries are {known}")
    version = parse_version(found["version"])
    if version is None:
        hint = f"a version reads like `{manifest.versions[-1]}`"
        raise UsageError(f"`--provider {text}`: `{found['version']}` is no version", hint=hint)
    if version not in manifest.versions:
        raise _unknown_version(text, manifest, version)
    return Provider(manifest.library, version)


@cache
def records(provider: Provider) -> tuple[Kernel, ...]:
    """The kernels of a library, to be asked before those of the registry.

    A function that the version does not have is a record too: it refuses every node and says what
    the version has instead.
    """
    manifest = LIBRARIES[provider.library]
    adapters = ADAPTERS[provider.library]
    return tuple(adapter.kernel(manifest, provider.version) for adapter in adapters)


def _unknown_version(text: str, manifest: Manifest, version: Version) -> UsageError:
    first, last = manifest.versions[0], manifest.versions[-1]
    place = bisect.bisect(manifest.versions, version)
    nearest = manifest.versions[max(0, place - _NEAREST) : place + _NEAREST]
    if version < first:
        why = f"the first release that fusec knows is {first}"
    elif version > last:
        why = f"the last release that fusec knows is {last}; signatures may have changed since"
    else:
        why = f"{manifest.library} has no such release"
    known = ", ".join(f"`{each}`" for each in nearest)
    return UsageError(
        f"`--provider {text}`: {why}",
        hint=f"the nearest releases that fusec knows are {known}",
    )
