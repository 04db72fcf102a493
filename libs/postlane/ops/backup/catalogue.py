"""The backups in one place: which are finished, how they hang together, which one a time asks for, which may go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from postlane.ops.backup.encrypt import Vault
from postlane.ops.backup.errors import Damaged, NothingHere
from postlane.ops.backup.manifest import Manifest, check_follows, read_manifest, sequence_of
from postlane.ops.backup.store import Store


@dataclass(slots=True)
class Catalogue:
    """Finished backups by number; `unfinished` are folders of chunks without a manifest."""

    store: Store
    manifests: list[Manifest] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)

    @property
    def newest(self) -> Manifest | None:
        return self.manifests[-1] if self.manifests else None

    def before(self, at: datetime | None) -> Manifest:
        """The newest backup whose point is not after `at`. Raises NothingHere."""
        fitting = [m for m in self.manifests if at is None or m.point <= at]
        if fitting:
            return fitting[-1]
        if self.manifests:
            raise NothingHere(
                f"{self.store.place}: the oldest backup is of {self.manifests[0].point.isoformat()}, after the time "
                "asked for"
            )
        hint = f"; {len(self.unfinished)} unfinished: {self.unfinished[0]} has no manifest" if self.unfinished else ""
        raise NothingHere(f"{self.store.place}: there is no finished backup here{hint}")

    def chain(self, newest: Manifest) -> list[Manifest]:
        """From the full backup that `newest` rests on up to it. Raises Damaged, Foreign where they do not follow."""
        by_number = {m.sequence: m for m in self.manifests}
        chain = [newest]
        while not chain[0].full:
            before = by_number.get(chain[0].sequence - 1)
            if before is None:
                raise Damaged(
                    f"{chain[0].name} rests on backup {chain[0].sequence - 1:07d}, and that is missing in "
                    f"{self.store.place}"
                )
            check_follows(before, chain[0])
            chain.insert(0, before)
        return chain

    def spare(self, cutoff: datetime) -> list[Manifest]:
        """What no restore to a time after `cutoff` needs, newest first."""
        bases = [m for m in self.manifests if m.full and m.point <= cutoff]
        if not bases:
            return []
        return [m for m in reversed(self.manifests) if m.sequence < bases[-1].sequence]


def read_catalogue(store: Store, vault: Vault) -> Catalogue:
    """Every manifest, checked alone and against the one before it. Raises Damaged, Foreign, TooNew, WrongKey."""
    found = Catalogue(store)
    for name in store.names("manifests/"):
        if sequence_of(name) is not None:
            found.manifests.append(read_manifest(name, store.get(name), vault))
    for before, after in zip(found.manifests, found.manifests[1:], strict=False):
        if after.sequence == before.sequence + 1 or after.cluster_id != before.cluster_id:
            check_follows(before, after)
    finished = {m.folder for m in found.manifests}
    folders = {"/".join(name.split("/")[:2]) + "/" for name in store.names("data/")}
    found.unfinished = sorted(folders - finished)
    return found


def forget(store: Store, spare: Sequence[Manifest], told: list[str]) -> None:
    """Delete these backups: each manifest before its chunks, so that none ever speaks of chunks that are gone."""
    for manifest in spare:
        store.delete([manifest.name])
        store.delete(list(store.names(manifest.folder)))
        told.append(manifest.ident)


def clear_unfinished(store: Store, folders: Sequence[str], below: int) -> None:
    """Delete what killed backups of numbers up to `below` left; a newer one may be at work."""
    for folder in folders:
        number = folder.removeprefix("data/").split("-")[0]
        if number.isdigit() and int(number) <= below:
            store.delete(list(store.names(folder)))
