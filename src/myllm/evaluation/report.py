"""report.html: a run on one page that needs nothing beside it, neither the network nor the pictures' own files."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from myllm.config import DecodeConfig
from myllm.data.images import load_image
from myllm.errors import DataError
from myllm.evaluation.evaluate import Evaluation, told_search
from myllm.evaluation.plots import CURVES, Row, curve_svg
from myllm.runtime import atomic_write
from myllm.training.trainer import SAMPLES

TEMPLATE = "report.html.jinja"  # beside this file
THUMBNAIL = 320
SMALL = 128  # pixels a side; what is smaller is drawn, and JPEG would smear it

FIGURES = {
    "BLEU-1": ("BLEU-1", ".3f", "words of the captions that a reference has too"),
    "BLEU-2": ("BLEU-2", ".3f", "the same for runs of up to two words"),
    "BLEU-3": ("BLEU-3", ".3f", "up to three words"),
    "BLEU-4": ("BLEU-4", ".3f", "up to four words"),
    "ROUGE-L": ("ROUGE-L", ".3f", "words shared with a reference in the same order, with others between them or not"),
    "CIDEr-D": ("CIDEr-D", ".3f", "phrases shared with the references, rare ones weighing more; 0 to 10"),
    "CIDEr-D_shuffled": ("CIDEr-D, shuffled pictures", ".3f", "the control: the same captions at other pictures"),
    "distinct_captions": ("Distinct captions", ".1%", "different captions among all that were written"),
    "mean_length": ("Mean length", ".1f", "words in a caption"),
}
"""Label, format and meaning of each figure; others are shown by their own name."""


@dataclass(frozen=True)
class Thumbnail:
    """A picture inside the page."""

    uri: str
    width: int
    height: int

    @property
    def is_small(self) -> bool:
        """Whether each of its pixels is to be seen."""
        return max(self.width, self.height) < SMALL


@dataclass(frozen=True)
class Shown:
    """An entry of the gallery."""

    name: str
    thumbnail: Thumbnail | None
    """None where the picture cannot be read any more."""
    caption: str
    references: Sequence[str]
    score: float
    cider_d: float


def write_report(
    path: Path, title: str, facts: Mapping[str, str], evaluation: Evaluation, history: Sequence[Row]
) -> None:
    """Write the page. `facts` say where the captioner is from, name by name; `history` has a row an epoch."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template(TEMPLATE).render(
        title=title,
        facts=facts,
        figures=evaluation.figures,
        rows=[_row(name, value) for name, value in evaluation.figures.items()],
        protocol=_told_protocol(evaluation.protocol),
        broken=evaluation.broken,
        curves=[(label, curve_svg(history, name), _told_curve(history, name)) for name, (label, _) in CURVES.items()],
        gallery=[_shown(evaluation, at) for at in evaluation.spread(SAMPLES)],
    )  # fmt: skip
    with atomic_write(path) as file:
        file.write(page.encode())


def _row(name: str, value: float) -> tuple[str, str, str]:
    label, form, meaning = FIGURES.get(name, (name, ".3f", ""))
    return label, format(value, form), meaning


def _told_protocol(protocol: Mapping[str, Any]) -> dict[str, str]:
    defaults = asdict(DecodeConfig())
    changed = {
        name: value for name, value in protocol["decode"].items()
        if name not in ("beams", "do_sample") and value != defaults.get(name)
    }  # fmt: skip
    return {
        "Split": str(protocol["split"]),
        "Pictures": f"{protocol['pictures']:,}",
        "References": f"{protocol['references']:,}",
        "Tokenizer": str(protocol["tokenizer"]),
        "Decoding": ", ".join([told_search(protocol["decode"]), *(f"{name} {changed[name]}" for name in changed)]),
        "CIDEr-D’s word frequencies": str(protocol["CIDEr-D frequencies"]),
    }


def _told_curve(history: Sequence[Row], name: str) -> str:
    first, last = history[0], history[-1]
    sides = (("training", f"train_{name}"), ("validation", f"val_{name}"))
    return "; ".join(f"{side} from {float(first[key]):.2f} to {float(last[key]):.2f}" for side, key in sides)


def _shown(evaluation: Evaluation, at: int) -> Shown:
    record, caption = evaluation.records[at], evaluation.captions[at]
    return Shown(
        record.name, _thumbnail(record.image), caption.text, record.captions,
        caption.score, evaluation.per_image["CIDEr-D"][at],
    )  # fmt: skip


def _thumbnail(path: Path) -> Thumbnail | None:
    try:
        image = load_image(path)
    except DataError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = BytesIO()
    kind = "png" if max(image.size) < SMALL else "jpeg"
    image.save(buffer, kind, quality=82, optimize=True)
    return Thumbnail(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", *image.size)
