"""VisionGPT2: the image encoder and the GPT decoder, joined by cross-attention."""

from torch import Tensor, nn

from myllm.config import CaptionerConfig
from myllm.model.gpt import GPT
from myllm.model.gpt2_weights import check_same_geometry
from myllm.model.kv_cache import ImageKV, SelfKV
from myllm.model.vision import ImageEncoder


class VisionGPT2(nn.Module):
    """A captioner: images and captions so far in, logits of the next tokens out.

    In mode `layerwise`, decoder block i reads the encoder block of the same depth; in mode `last`, every block reads
    the encoder's last normalised output. The steps of `forward` can be called one by one: `encoder` (a frozen one only
    once an image), `image_tokens`, `image_kv`, `decode`.
    """

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ImageEncoder(config.vision, depth=config.text.n_layer if config.mode == "layerwise" else None)
        width = config.text.n_embd
        self.enc_to_dec_proj = nn.Identity() if self.encoder.width == width else nn.Linear(self.encoder.width, width)
        self.decoder = GPT(config.text, cross_attention=True)
        if config.text.pretrained:
            text = GPT.from_pretrained(config.text.pretrained)
            check_same_geometry(config.text, text.config)
            self.decoder.load_state_dict(text.state_dict(), strict=False)  # it has no cross-attention

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Images (B, 3, H, W) and captions (B, G, T) int64 -> next-token logits (B, G, T, vocab_size)."""
        return self.decode(tokens, self.encode(images))

    def encode(self, images: Tensor) -> ImageKV:
        """(B, 3, H, W), normalised as `encoder.preprocess` says -> keys and values for every decoder block."""
        return self.image_kv(self.image_tokens(self.encoder(images)))

    def image_tokens(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The encoder's features (B, S, encoder.width) -> image tokens of the decoder's width (B, S, C)."""
        return tuple(self.enc_to_dec_proj(feature) for feature in features)

    def image_kv(self, tokens: tuple[Tensor, ...]) -> ImageKV:
        """Image tokens (B, S, C), one tensor for each decoder block or one for all -> keys and values."""
        blocks = self.decoder.blocks
        if len(tokens) == 1:
            tokens = tokens * len(blocks)
        pairs = zip(blocks, tokens, strict=True)
        return ImageKV(tuple(block.crossattention.key_value(image_tokens) for block, image_tokens in pairs))

    def decode(self, tokens: Tensor, image: ImageKV, cache: SelfKV | None = None) -> Tensor:
        """Captions (B, G, T), or their newest tokens if there is a cache -> next-token logits (B, G, T, vocab_size)."""
        return self.decoder(tokens, image, cache)
