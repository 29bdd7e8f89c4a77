"""Files with the heat maps of captions."""

import os
from pathlib import Path

from myllm.apps.picture_search import FoundPicture, PictureSearch
from myllm.caption import Caption, CaptionerProtocol
from myllm.errors import ConfigError
from myllm.files import Picture, atomic_write
from myllm.inference.onnx_captioner import OnnxCaptioner

# of the picture's name; file systems allow 255 in all, and a number and .png follow
MAX_NAME_BYTES = 240


class HeatmapFiles:
    """A PNG for each picture, with a panel for each word of its caption."""

    def __init__(self, folder: Path, captioner: CaptionerProtocol) -> None:
        """Raises ConfigError for an ONNX export."""
        if isinstance(captioner, OnnxCaptioner):
            raise ConfigError("--heatmaps: an ONNX export has no attention weights; use the original captioner")
        self.folder, self.captioner = folder, captioner
        self.names = set[str]()
        self.files: dict[str, list[Path]] = {}

    def choose(self, search: PictureSearch, is_replaced: bool) -> None:
        """Choose the files of each picture: as many as the number of times that the picture is given.

        Raises ConfigError if a file exists and may not be replaced, and DataError if standard input cannot be read.
        """
        search.copy_lists()
        for entry in search:
            if not isinstance(entry, FoundPicture):
                continue
            path = self._new_file(entry.name)
            self.files.setdefault(str(entry.picture), []).append(path)
            if not is_replaced and path.exists():
                raise ConfigError(
                    f"--heatmaps {self.folder}: {path.name} is there already; replace it by --overwrite, or give "
                    "another folder"
                )

    def draw(self, picture: Picture, caption: Caption) -> None:
        """Write the heat maps of a picture's caption to the picture's next file. Raises MyLLMError."""
        from myllm.data.images import load_image
        from myllm.evaluation.heatmaps import draw_words
        from myllm.inference.captioner import Captioner

        assert isinstance(self.captioner, Captioner)
        maps = self.captioner.attention_maps(picture, caption)
        with atomic_write(self._next_file(str(picture))) as file:
            draw_words(load_image(picture), caption.words, maps, caption.text).save(file, "png")

    def _next_file(self, picture: str) -> Path:
        if files := self.files.get(picture):
            return files.pop(0)
        path = self._new_file(picture)  # of a picture that came after `choose`
        while path.exists():
            path = self._new_file(picture)
        return path

    def _new_file(self, picture: str) -> Path:
        """Return a file that no other picture has: named after its picture, with a number if several have that name."""
        bare = Path(picture).name
        while len(os.fsencode(bare)) > MAX_NAME_BYTES:
            bare = bare[:-1]
        name, number = f"{bare}.png", 1
        while name in self.names:
            number += 1
            name = f"{bare}-{number}.png"
        self.names.add(name)
        return self.folder / name
