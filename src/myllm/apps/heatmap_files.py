"""Files with the heat maps of captions."""

from pathlib import Path

from myllm.apps.picture_search import FoundPicture, PictureSearch
from myllm.caption import Caption, CaptionerProtocol
from myllm.errors import ConfigError
from myllm.files import Picture, atomic_write
from myllm.inference.onnx_captioner import OnnxCaptioner


class HeatmapFiles:
    """A PNG for each picture, with a panel for each word of its caption."""

    def __init__(self, folder: Path, captioner: CaptionerProtocol) -> None:
        """Raises ConfigError for an ONNX export."""
        if isinstance(captioner, OnnxCaptioner):
            raise ConfigError("--heatmaps: an ONNX export has no attention weights; use the original captioner")
        self.folder, self.captioner = folder, captioner
        self.files: dict[Picture, list[Path]] = {}

    def choose(self, search: PictureSearch, is_replaced: bool) -> None:
        """Choose the files of each picture: as many as the number of times that the picture is given.

        A file is named after its picture, with a number if several have that name. Raises ConfigError if a file exists
        and may not be replaced.
        """
        names = set[str]()
        for entry in search:
            if not isinstance(entry, FoundPicture):
                continue
            bare = Path(entry.name).name
            name, number = f"{bare}.png", 1
            while name in names:
                number += 1
                name = f"{bare}-{number}.png"
            names.add(name)
            self.files.setdefault(entry.picture, []).append(self.folder / name)
            if not is_replaced and (self.folder / name).exists():
                raise ConfigError(
                    f"--heatmaps {self.folder}: {name} is there already; replace it by --overwrite or give another "
                    "folder"
                )

    def draw(self, picture: Picture, caption: Caption) -> None:
        """Write the heat maps of a picture's caption to the picture's next file. Raises MyLLMError."""
        from myllm.data.images import load_image
        from myllm.evaluation.heatmaps import draw_words
        from myllm.inference.captioner import Captioner

        assert isinstance(self.captioner, Captioner)
        maps = self.captioner.attention_maps(picture, caption)
        with atomic_write(self.files[picture].pop(0)) as file:
            draw_words(load_image(picture), caption.words, maps, caption.text).save(file, "png")
