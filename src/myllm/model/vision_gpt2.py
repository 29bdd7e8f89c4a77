"""VisionGPT2: the image encoder and the GPT decoder, joined by cross-attention."""

from torch import Tensor, nn

from myllm.config import CaptionerConfig
from myllm.model.gpt import GPT
from myllm.model.kv_cache import ImageKV, SelfKV
from myllm.model.vision import ImageEncoder


class VisionGPT2(nn.Module):
    """Pictures and the captions so far in, logits of the next tokens out.

    Mode layerwise: decoder block i reads the encoder block of its own depth. Mode last: all read the encoder's last,
    normalised output. The steps of `forward` may be taken alone: `encoder` turns pictures into features (which a frozen
    encoder need do only once), `image_tokens` gives these the decoder's width, `image_kv` makes keys and values of
    them, `decode` writes over those.
    """

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        self.config = config
        is_layerwise = config.mode == "layerwise"
        self.encoder = ImageEncoder(config.vision, depth=config.text.n_layer if is_layerwise else None)
        width = config.text.n_embd
        self.enc_to_dec_proj = nn.Identity() if self.encoder.width == width else nn.Linear(self.encoder.width, width)
        self.decoder = GPT(config.text, cross_attention=True)
        if config.text.pretrained:
            self.decoder.load_text_weights(GPT.from_pretrained(config.text.pretrained))

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Logits of each next token: images (B, 3, H, W), tokens (B, G, T) int64 -> (B, G, T, vocab_size)."""
        return self.decode(tokens, self.encode(images))

    def encode(self, images: Tensor) -> ImageKV:
        """(B, 3, H, W), normalised as `encoder.preprocess` says -> keys and values for every decoder block."""
        return self.image_kv(self.image_tokens(self.encoder(images)))

    def image_tokens(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The encoder's features (B, S, width of the encoder) in the decoder's width (B, S, C)."""
        return tuple(self.enc_to_dec_proj(feature) for feature in features)

    def image_kv(self, tokens: tuple[Tensor, ...]) -> ImageKV:
        """Image tokens (B, S, C), one reading for each decoder block or one for all -> keys and values."""
        blocks = self.decoder.blocks
        if len(tokens) == 1:
            tokens = tokens * len(blocks)
        return ImageKV(tuple(block.crossattention.key_value(own) for block, own in zip(blocks, tokens, strict=True)))

    def decode(self, tokens: Tensor, image: ImageKV, cache: SelfKV | None = None) -> Tensor:
        """tokens (B, G, T), the newest alone where there is a cache -> logits (B, G, T, vocab_size)."""
        return self.decoder(tokens, image, cache)
