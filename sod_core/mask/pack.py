"""Everything of a mask pack, loaded once and shared: features of the images, bottlenecks, sessions of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..packs import find
from ..packs.errors import PackError
from ..packs.figures import read_json
from ..packs.kept import Kept
from ..sparse import bottleneck_file
from ..sparse.bottleneck import Bottleneck
from . import features, manifest, published
from .features import Features
from .manifest import BottleneckEntry, EncoderEntry
from .session import Images, MaskSession

RESULTS_FORMAT = 1
"""Of results.json, see `board.run`."""


class MaskPack:
    """A mask pack. Loading is lazy, happens once, and is safe from several threads."""

    def __init__(self, folder: Path):
        """Reads pack.json only. Raises PackError."""
        self.manifest = manifest.read(Path(folder))
        self._kept = Kept()

    def features(self, encoder: str) -> Features:
        """What an encoder made of the training and test images. Raises PackError."""
        entry = self.manifest.encoder(encoder)
        return self._kept.get(("features", encoder), lambda: self._load_features(entry))

    def bottleneck(self, id: str | None = None) -> Bottleneck:
        """A bottleneck, nothing masked; the first for None. Raises PackError."""
        entry = self.manifest.bottleneck(id)
        return self._kept.get(("bottleneck", entry.id), lambda: self._load_bottleneck(entry))

    def session(self, id: str | None = None) -> MaskSession:
        """The bottleneck with its encoder's images; the nearest pairs are found once. Raises PackError."""
        entry = self.manifest.bottleneck(id)

        def made() -> MaskSession:
            self.features(entry.encoder)  # what is to be made first is missed first
            return self.session_with(self.bottleneck(entry.id), entry.encoder, entry.file)

        return self._kept.get(("session", entry.id), made)

    def session_with(self, bottleneck: Bottleneck, encoder: str, file: str) -> MaskSession:
        """A session of another bottleneck on an encoder's images; `file` is what it is called. Raises PackError."""
        found = self.features(encoder)
        if bottleneck.width != found.width:
            raise PackError(
                f"{file} takes features of width {bottleneck.width}, and those of {encoder} have {found.width}"
            )
        if bottleneck.classes != len(self.manifest.classes):
            raise PackError(
                f"{file} votes for {bottleneck.classes} classes, and {self.manifest.name} has "
                f"{len(self.manifest.classes)}"
            )
        return MaskSession(bottleneck, found.train, found.test)

    def results(self) -> dict[str, Any] | None:
        """What `board.run` measured and was stored; None where nothing was. Raises PackError for a damaged file."""
        name = self.manifest.results
        if name is None or not self.manifest.path(name).is_file():
            return None
        return self._kept.get("results", lambda: self._load_results(name))

    def _load_results(self, name: str) -> dict[str, Any]:
        found = read_json(self.manifest.path(name))
        if not isinstance(found, dict) or found.get("format") != RESULTS_FORMAT:
            raise PackError(f"{name} of pack {self.manifest.name} holds no results of format {RESULTS_FORMAT}")
        return found

    def _load_features(self, entry: EncoderEntry) -> Features:
        file, m = entry.features, self.manifest
        path = self._here(file, None if entry.published is None else f"mask features --pack {m.name}")
        if entry.published is not None and features.about(path).get("made_of") != published.made_of(entry.published):
            raise PackError(
                f"{path} is of another encoder or data set than pack.json of {m.name} names now: "
                f"`python -m sod_core mask features --pack {m.name}` computes it anew"
            )
        found = features.read(path)
        if found.classes > len(m.classes):
            raise PackError(f"{file} has labels up to {found.classes - 1}, and {m.name} has {len(m.classes)} classes")
        for images in (found.train, found.test):
            if images.styles is not None and m.styles and int(images.styles.max()) >= len(m.styles):
                raise PackError(f"{file} has more styles than the {len(m.styles)} of {m.name}")
        return found if m.styles else found._replace(train=_plain(found.train), test=_plain(found.test))

    def _load_bottleneck(self, entry: BottleneckEntry) -> Bottleneck:
        name = self.manifest.name
        return bottleneck_file.read(
            self._here(entry.file, f"mask fit --pack {name} --bottleneck {entry.id}" if entry.plan else None)
        )

    def _here(self, file: str, made_by: str | None) -> Path:
        path = self.manifest.here(file)
        if path is None:
            how = "" if made_by is None else f"; `python -m sod_core {made_by}` makes it"
            raise PackError(f"{file} of pack {self.manifest.name} is not on this computer{how}")
        return path


def _plain(images: Images) -> Images:
    return images._replace(styles=None)


def open_mask_pack(name: str) -> MaskPack:
    """A mask pack by its name, or by its folder. Raises PackError."""
    return MaskPack(find.folder(name, manifest.KIND))


def shared_mask_pack(name: str) -> MaskPack:
    """As `open_mask_pack`, opened once for everybody in this process."""
    return find.shared(name, manifest.KIND, MaskPack)


def folders() -> dict[str, Path]:
    """Name -> folder of every mask pack."""
    return find.folders(manifest.KIND)
