"""GPT-2 models of transformers with random weights, and their state dicts in the layout of our GPT."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(scope="session")
def random_gpt2() -> Callable[..., nn.Module]:
    """random_gpt2(n_embd, n_head, n_layer, seed=0, **options of GPT2Config): a GPT2LMHeadModel, all weights random."""
    from transformers import GPT2Config, GPT2LMHeadModel

    def make(n_embd: int, n_head: int, n_layer: int, seed: int = 0, **options: object) -> nn.Module:
        others = {"vocab_size": 59, "n_positions": 23, "layer_norm_epsilon": 3e-4, "eos_token_id": 58} | options
        begin = others["eos_token_id"]
        config = GPT2Config(n_embd=n_embd, n_head=n_head, n_layer=n_layer, bos_token_id=begin, **others)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = GPT2LMHeadModel(config).eval()
            for name, parameter in model.named_parameters():
                is_scale = "ln_" in name and name.endswith("weight")
                nn.init.normal_(parameter, mean=float(is_scale), std=0.3)
        return model

    return make


@pytest.fixture(scope="session")
def transposed() -> Callable[[nn.Module], Mapping[str, Tensor]]:
    """transposed(model): state dict of a transformers model with Conv1D weights (in, out) transposed, as in Linear."""
    from transformers.pytorch_utils import Conv1D

    def transpose(model: nn.Module) -> Mapping[str, Tensor]:
        conv1d = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
        return {name: value.T if name in conv1d else value for name, value in model.state_dict().items()}

    return transpose
