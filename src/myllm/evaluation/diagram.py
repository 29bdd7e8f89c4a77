"""Draw the architecture from a configuration, without building the model, so that picture and code agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle

from myllm.config import CaptionerConfig, GPTConfig, VisionConfig
from myllm.errors import ConfigError
from myllm.files import atomic_write

INK, FAINT, LINE = "#1b1f27", "#667085", "#8a94a6"
# fill and edge of boxes that carry the picture, the text, and of norms
IMAGE, TEXT, NORM = ("#fbeae6", "#c8402f"), ("#e8f0fb", "#1f5fbf"), ("#ffffff", "#8a94a6")
IMAGE_PANEL, PANEL = ("#fef8f6", "#f0d0c9"), ("#f6f8fb", "#d9dfe8")
WIRING = {
    "layerwise": ("each decoder block reads", "the encoder block at the same depth"),
    "last": ("all decoder blocks read", "the encoder's last output"),
}
# no date and no version, so that equal configurations give equal bytes
METADATA = {".svg": {"Date": None, "Creator": None}, ".png": {"Software": None}}

# In tenths of an inch: the page, the centres of the three columns, and the lower and upper edge of stacks of blocks.
WIDTH, HEIGHT = 100.0, 70.0
ENCODER, DECODER, DETAIL = 14.5, 51.0, 85.0
STACK, GAP, MAX_BLOCKS = (24.0, 49.6), 1.8, 5


@dataclass(frozen=True)
class Box:
    """A rectangle: x is its centre, y its lower edge."""

    x: float
    y: float
    width: float = 21.0
    height: float = 5.2

    @property
    def top(self) -> float:
        return self.y + self.height

    @property
    def middle(self) -> float:
        return self.y + self.height / 2

    @property
    def left(self) -> float:
        return self.x - self.width / 2

    @property
    def right(self) -> float:
        return self.x + self.width / 2


def draw_architecture(config: CaptionerConfig, path: Path) -> None:
    """Write the diagram as .svg or .png; equal configurations give equal bytes.

    Raises ConfigError for another suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in METADATA:
        raise ConfigError(f"--out {path}: unknown suffix {suffix!r}; a diagram is {' or '.join(METADATA)}")
    # matplotlib's own font and fixed ids, so that the file does not depend on the machine or the run
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "svg.hashsalt": "myllm", "svg.fonttype": "path"}):
        canvas = Canvas()
        canvas.text(2.5, 66.6, "VisionGPT2", 16, align="left")
        first, second = WIRING[config.mode]
        canvas.text(2.5, 62.8, f"mode {config.mode}: {first}", 8, FAINT, "left")
        canvas.text(2.5, 60.6, second, 8, FAINT, "left")
        decoder = _draw_decoder(canvas, config.text)
        _draw_detail(canvas, config.text, decoder[-1])
        _draw_encoder(canvas, config, decoder)
        buffer = BytesIO()
        canvas.figure.savefig(buffer, format=suffix[1:], dpi=160, facecolor="white", metadata=METADATA[suffix])
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


class Canvas:
    """A page with boxes, arrows and text."""

    def __init__(self) -> None:
        self.figure = Figure(figsize=(WIDTH / 10, HEIGHT / 10))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
        self.axes.axis("off")

    def box(self, box: Box, colours: tuple[str, str], label: str = "", detail: str = "") -> Box:
        """Draw a box with a label and, below it, a fainter line. Returns the box."""
        fill, edge = colours
        self.axes.add_patch(FancyBboxPatch(
            (box.left, box.y), box.width, box.height, boxstyle="round,pad=0,rounding_size=0.8", facecolor=fill,
            edgecolor=edge, linewidth=1.1,
        ))
        self.text(box.x, box.middle + (0.95 if detail else 0), label)
        self.text(box.x, box.middle - 1.15, detail, 7.2, FAINT)
        return box

    def text(self, x: float, y: float, words: str, size: float = 9, colour: str = INK, align: str = "center") -> None:
        weight = "bold" if size > 10 else "normal"
        self.axes.text(x, y, words, fontsize=size, color=colour, ha=align, va="center_baseline", fontweight=weight)

    def line(self, points: Sequence[tuple[float, float]], colour: str = LINE, style: str = "-") -> None:
        xs, ys = zip(*points, strict=True)
        self.axes.plot(xs, ys, color=colour, linewidth=1.2, linestyle=style)

    def arrow(self, start: tuple[float, float], end: tuple[float, float], colour: str = LINE) -> None:
        head = "-|>,head_width=0.2,head_length=0.4"
        style = {"arrowstyle": head, "color": colour, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
        self.axes.annotate("", end, start, arrowprops=style)

    def chain(self, *boxes: Box) -> None:
        """Draw an arrow upwards from each box to the next."""
        for lower, upper in pairwise(boxes):
            self.arrow((lower.x, lower.top), (upper.x, upper.y))

    def stack(self, x: float, labels: Sequence[str], colours: tuple[str, str]) -> list[Box]:
        """Draw a box per label, bottom to top, within `STACK`, and arrows between them. Returns the boxes."""
        low, high = STACK
        height = (high - low - GAP * (len(labels) - 1)) / len(labels)
        boxes = [Box(x, low + index * (height + GAP), height=height) for index in range(len(labels))]
        for box, label in zip(boxes, labels, strict=True):
            self.box(box, colours, label)
        self.chain(*boxes)
        return boxes


def _norm(name: str) -> str:
    """Return the label of a norm with its name in the code, in a font whose l and I differ."""
    return rf"norm  $\mathtt{{{name}}}$".replace("_", r"\_")


def _labels(n_layer: int) -> list[str]:
    """Return the labels of the decoder's blocks; many blocks in the middle share one label."""
    labels = [f"block {number}" for number in range(1, n_layer + 1)]
    if n_layer > MAX_BLOCKS:
        labels[3:-1] = [f"blocks 4 to {n_layer - 1}"]
    return labels


def _draw_decoder(canvas: Canvas, text: GPTConfig) -> list[Box]:
    """Draw the decoder from caption tokens to logits. Returns the boxes of its blocks, first to last."""
    for word, x, width in (("<|endoftext|>", 45.4, 9.8), ("a", 52.0, 2.4), ("red", 55.5, 3.6), ("ball", 59.6, 3.8)):
        canvas.box(Box(x, 8, width, 3.2), TEXT)
        canvas.text(x, 9.6, word, 7.2)
    canvas.text(DECODER, 5.8, "caption so far  (B, G, T)", 7.5, FAINT)
    rows = f"{text.vocab_size:,} + {text.n_positions:,} rows of {text.n_embd}"
    embedding = canvas.box(Box(DECODER, 15.8), TEXT, "token + position embedding", rows)
    blocks = canvas.stack(DECODER, _labels(text.n_layer), TEXT)
    norm = canvas.box(Box(DECODER, 52.2, height=3.2), NORM, _norm("ln_f"))
    head = canvas.box(Box(DECODER, 57.8), TEXT, "head", f"{text.n_embd} → {text.vocab_size:,}")
    canvas.chain(Box(DECODER, 8, height=3.9), embedding, blocks[0])
    canvas.chain(blocks[-1], norm, head, Box(DECODER, 65.4))
    canvas.text(DECODER, 66.8, f"next-token logits  (B, G, T, {text.vocab_size:,})", 8)
    # the head is the token embedding
    side = head.right + 2.5
    corners = [(side, embedding.middle), (side, head.middle)]
    canvas.line([(embedding.right, embedding.middle), *corners, (head.right, head.middle)], TEXT[1], ":")
    canvas.text(side + 0.6, head.middle - 1.5, "tied", 7.2, TEXT[1], "left")
    return blocks


def _draw_detail(canvas: Canvas, text: GPTConfig, block: Box) -> None:
    """Draw the layers inside a block in a panel to the right of the last block."""
    panel = Box(DETAIL, 4, 25, 61.8)
    right = [(panel.left, panel.y + 0.8), (panel.left, panel.top - 0.8)]
    wedge = [(block.right, block.y), *right, (block.right, block.top)]
    canvas.axes.add_patch(Polygon(wedge, facecolor=PANEL[0], edgecolor="none", zorder=0.5))
    canvas.box(panel, PANEL)
    canvas.text(DETAIL, 63.4, "inside a block")
    branch = panel.right - 2.2
    layers = (
        ("ln_1", "causal self-attention", f"{text.n_head} heads of {text.n_embd // text.n_head}"),
        ("ln_cross_attn", "cross-attention", "Q: text    K, V: image tokens"),
        ("ln_2", "feed-forward", f"{text.n_embd} → {4 * text.n_embd:,} → {text.n_embd}, GELU"),
    )
    previous = Box(DETAIL, 5.4, height=0)
    for index, (name, label, sizes) in enumerate(layers):
        low = 7.2 + 18 * index
        norm = canvas.box(Box(DETAIL, low + 2.4, 17, 3.0), NORM, _norm(name))
        layer = canvas.box(Box(DETAIL, low + 7.4, 17), TEXT, label, sizes)
        plus = Box(DETAIL, low + 14.2, 2.4, 2.4)
        canvas.chain(previous, norm, layer, plus)
        canvas.line([(DETAIL, low), (branch, low), (branch, plus.middle)])
        canvas.arrow((branch, plus.middle), (plus.right, plus.middle))
        canvas.axes.add_patch(Circle((DETAIL, plus.middle), 1.2, facecolor="white", edgecolor=LINE, linewidth=1.1))
        canvas.text(DETAIL, plus.middle, "+", 9, FAINT)
        if label == "cross-attention":
            canvas.arrow((panel.left, layer.middle), (layer.left, layer.middle), IMAGE[1])
        previous = plus
    canvas.arrow((DETAIL, previous.top), (DETAIL, 62.2))


def _draw_encoder(canvas: Canvas, config: CaptionerConfig, decoder: Sequence[Box]) -> None:
    """Draw the encoder from the picture to image tokens, and arrows to the decoder's blocks."""
    vision, bus = config.vision, 32.5
    picture = _draw_picture(canvas, vision)
    canvas.box(Box(ENCODER, 15.4, 24, 40.8), IMAGE_PANEL)
    canvas.text(ENCODER, 54.2, vision.name, min(9.0, 9.0 * 26 / len(vision.name)))
    origin = "pretrained" if vision.pretrained or vision.weights else "from scratch"
    canvas.text(ENCODER, 51.8, f"timm backbone, {origin}{', frozen' if vision.frozen else ''}", 7.2, FAINT)
    if config.mode == "layerwise":
        patches = canvas.box(Box(ENCODER, 17, height=4), IMAGE, "patches + positions")
        # without numbers, because only the backbone knows how many blocks it has
        labels = [label.split()[0] for label in _labels(config.text.n_layer)]
        blocks = canvas.stack(ENCODER, [*labels[:-1], "last block"], IMAGE)
        canvas.chain(picture, patches, blocks[0])
        for source, target in zip(blocks, decoder, strict=True):
            canvas.arrow((source.right, source.middle), (target.left, target.middle), IMAGE[1])
    else:
        height = max(5.2, decoder[-1].height)
        output = Box(ENCODER, decoder[-1].middle - height / 2, height=height)
        canvas.box(output, IMAGE, "last output", "normalised tokens, or a feature map")
        backbone = Box(ENCODER, 17, height=output.y - 20)
        canvas.box(backbone, IMAGE, "its blocks", "of attention, or of convolutions")
        canvas.chain(picture, backbone, output)
        canvas.line([(output.right, output.middle), (bus, output.middle), (bus, decoder[0].middle)], IMAGE[1])
        for target in decoder:
            canvas.arrow((bus, target.middle), (target.left, target.middle), IMAGE[1])
    canvas.text(33.6, 52.6, "image tokens", 8, IMAGE[1])
    canvas.text(33.6, 50.6, f"(B, S, {config.text.n_embd})", 7.2, FAINT)


def _draw_picture(canvas: Canvas, vision: VisionConfig) -> Box:
    """Draw a picture, cut into the patches that become tokens. Returns its box."""
    picture = Box(ENCODER, 3.4, 10, 10)
    left, low = picture.left, picture.y
    for shape in (
        Rectangle((left, low), 10, 10, color="#dbe9f6", linewidth=0),
        Rectangle((left, low), 10, 3.6, color="#bcd6a8", linewidth=0),
        Circle((left + 7.6, low + 7.8), 1.1, color="#f6d860", linewidth=0),
        Circle((left + 4.0, low + 3.5), 2.0, color="#d5503f", linewidth=0),
    ):
        canvas.axes.add_patch(shape)
    for offset in (2.5, 5.0, 7.5):
        canvas.line([(left + offset, low), (left + offset, picture.top)], "#ffffff")
        canvas.line([(left, low + offset), (picture.right, low + offset)], "#ffffff")
    side = vision.image_size
    canvas.text(ENCODER, 1.7, f"picture  (B, 3, {side or 'H'}, {side or 'W'})", 7.5, FAINT)
    return picture
