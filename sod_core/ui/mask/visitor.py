"""What one page of the Mask tab has open; it lives in the page's gr.State, never in a global."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


@dataclass
class Page:
    """Created empty: Gradio copies it for each page."""

    pack: str | None = None
    """That is open."""
    key: tuple = ()
    """The menus that the figure was made for."""
    shown: tuple[str, str, tuple[str, ...], str] = ("", "", (), "")
    """Names of the pack, the bottleneck, the classes and the method of the figure."""
    dose: int | None = None
    """The position that a link asks for, until the figure is made."""
    position: int = 0
    """Of the dose, where the slider rests."""
    picked: int = 3
    """The example that is looked at, unless there is an image of one's own."""
    own: Image.Image | None = None
    own_features: dict[str, Tensor] = field(default_factory=dict)
    """Of one's own image, by encoder."""
    folder: tempfile.TemporaryDirectory | None = None
    """Where files to download lie; it goes with the page."""

    def place(self) -> str:
        """A folder for files."""
        if self.folder is None:
            self.folder = tempfile.TemporaryDirectory(prefix="sod-mask-")
        return self.folder.name
