"""Self-critical sequence training (Rennie et al. 2017): captions are sampled, and those that people's captions resemble
become more likely.

The model samples several captions of each picture; the reward of each is its CIDEr-D. The losses of samples are
multiplied by their advantage over the picture's others (Luo 2020). People's captions may be learned at the same time.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from myllm.config import DecodeConfig
from myllm.data.batches import Batch, pad_captions
from myllm.data.splits import name_hash
from myllm.decoding.engine import Hypothesis
from myllm.decoding.search import generate
from myllm.inference.generate import caption_text, make_vocabulary
from myllm.inference.torch_steppers import make_search
from myllm.metrics.cider import CiderD
from myllm.metrics.ngrams import Words
from myllm.metrics.ptb import ptb_tokenize
from myllm.model.vision_gpt2 import VisionGPT2
from myllm.training.prepare import Prepared
from myllm.training_config import TrainConfig

# A word of the reward, so that captions learn to end: without it, ones that end in "on a" earn as much (Luo 2020).
END_WORD = "<end>"
# Words of the reward have no punctuation, so that more of it at the end would cost nothing.
SEVERAL_MARKS = re.compile(r"[.,!?;]\s*[.,!?;]\s*$")


def advantages(rewards: Tensor) -> Tensor:
    """Return by how much each sample's reward exceeds the mean of its picture's other samples: (B, G) of (B, G).

    This baseline needs no further caption (Luo 2020, https://arxiv.org/abs/2003.09971).
    """
    samples = rewards.shape[1]
    return (rewards - rewards.mean(1, keepdim=True)) * (samples / (samples - 1))


class CaptionSampler:
    """Replaces the captions of a batch by samples of the model, with their rewards."""

    def __init__(self, model: VisionGPT2, config: TrainConfig, prepared: Prepared) -> None:
        """model: as it is now, it is the one that `kl_weight` compares with."""
        self.model, self.options, self.seed = model, config.self_critical, config.seed
        self.decode = DecodeConfig(
            do_sample=True, num_return_sequences=self.options.samples, max_new_tokens=config.decode.max_new_tokens
        )
        self.tokenizer, self.vocabulary = prepared.tokenizer, make_vocabulary(prepared.tokenizer)
        self.names = [record.name for record in prepared.train.records]
        # those of flipped pictures are among them
        self.words = {caption: [*ptb_tokenize(caption), END_WORD] for caption in prepared.train.ids}
        records = prepared.train.records
        self.cider = CiderD([[self.words[caption] for caption in record.captions] for record in records])
        self.start = copy.deepcopy(model).eval() if self.options.kl_weight else None

    @torch.no_grad()
    def __call__(self, batch: Batch, step: int) -> Batch:
        """Return the batch with samples of `self_critical.samples` captions for each picture.

        They depend on the seed, the step and the picture's name, not on the batch. The model is in evaluation mode
        afterwards.
        """
        index = batch.index.tolist()
        if not index:
            return batch
        self.model.eval()
        features = batch.features if batch.features is not None else self.model.encoder(batch.images)
        image = self.model.image_kv(self.model.image_tokens(features))
        seeds = [name_hash("sample", self.seed, step, self.names[number]) for number in index]
        groups = generate(make_search(self.model, self.vocabulary, image, self.decode, seeds))
        end = self.vocabulary.end
        ids = [[[end, *caption.tokens, *[end] * (caption.ended_by == "end")] for caption in group] for group in groups]
        tokens, lengths = pad_captions(ids, end)
        sampled = replace(batch, tokens=tokens, inputs=tokens, lengths=lengths)
        rewards = self._rewards(groups, batch.captions) - self._drift(sampled, groups)
        sampled = replace(sampled, rewards=rewards, importance=advantages(rewards))
        return self._with_people(sampled, batch) if self.options.people_weight else sampled

    def _with_people(self, sampled: Batch, batch: Batch) -> Batch:
        """Return the samples together with people's captions of the same pictures."""
        longest = max(sampled.tokens.shape[2], batch.tokens.shape[2])
        tokens, inputs = (
            torch.cat([F.pad(part, (0, longest - part.shape[2]), value=self.vocabulary.end) for part in parts], 1)
            for parts in ((sampled.tokens, batch.tokens.cpu()), (sampled.inputs, batch.inputs.cpu()))
        )
        weights = torch.full(batch.lengths.shape, self.options.people_weight)
        assert sampled.importance is not None
        return replace(
            sampled, tokens=tokens, inputs=inputs, lengths=torch.cat([sampled.lengths, batch.lengths], 1),
            importance=torch.cat([sampled.importance, weights], 1),
        )

    def _rewards(self, groups: Sequence[Sequence[Hypothesis]], captions: Sequence[Sequence[str]]) -> Tensor:
        """Return the CIDEr-D of each sample (B, G), compared with people's captions of the picture."""
        words = [self._words(sample) for group in groups for sample in group]
        references = [[self.words[caption] for caption in texts] for texts in captions]
        of_samples = [group for group in references for _ in range(self.options.samples)]
        return torch.tensor(self.cider.score(words, of_samples), dtype=torch.float32).view(len(groups), -1)

    def _words(self, caption: Hypothesis) -> Words:
        text = caption_text(self.tokenizer, caption.tokens, self.vocabulary)
        has_ended = caption.ended_by == "end" and SEVERAL_MARKS.search(text) is None
        return [*ptb_tokenize(text), *[END_WORD] * has_ended]

    def _drift(self, sampled: Batch, groups: Sequence[Sequence[Hypothesis]]) -> Tensor | float:
        """Return kl_weight x how much likelier each sample is than to the model at the start: nats (B, G)."""
        if self.start is None:
            return 0.0
        logprobs = torch.tensor([[sum(caption.logprobs) for caption in group] for group in groups])
        features = sampled.features if sampled.features is not None else self.start.encoder(sampled.images)
        image = self.start.image_kv(self.start.image_tokens(features))
        tokens = sampled.tokens.to(sampled.index.device)
        start_logprobs = self.start.decode(tokens[..., :-1], image).log_softmax(-1)
        start_logprobs = start_logprobs.gather(-1, tokens[..., 1:, None])[..., 0].cpu()
        is_target = torch.arange(sampled.tokens.shape[2] - 1) < sampled.lengths[..., None]
        return self.options.kl_weight * (logprobs - (start_logprobs * is_target).sum(-1))
