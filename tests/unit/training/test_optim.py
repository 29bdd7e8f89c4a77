import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from myllm.training.optim import Muon, build_optimizers, orthogonalise, rate_factor, set_rates, share_out
from myllm.training.ranks import Ranks
from myllm.training_config import TrainConfig


@given(rows=st.integers(2, 40), columns=st.integers(2, 40), count=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_orthogonalise_keeps_singular_vectors_and_equalises_singular_values(
    rows: int, columns: int, count: int, seed: int
) -> None:
    matrices = torch.randn(count, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u, s, vt = torch.linalg.svd(matrices, full_matrices=False)
    in_basis = u.mT @ orthogonalise(matrices) @ vt.mT  # diagonal if the singular vectors are the same
    values = in_basis.diagonal(dim1=1, dim2=2)
    assert (in_basis - torch.diag_embed(values)).abs().max() < 1e-6
    # five steps are too few for the smallest values
    assert (values[s > 0.05 * s.norm(dim=1, keepdim=True)] > 0.6).all() and (values < 1.3).all()


@pytest.mark.parametrize("shape", [(12, 12), (12, 30), (30, 12)])
def test_muon_takes_the_steps_of_torchs_muon(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    start, options = torch.randn(shape), {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    ours, expected = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = Muon([ours], **options), torch.optim.Muon([expected], nesterov=True, **options)
    for _ in range(5):
        ours.grad = expected.grad = torch.randn(shape)
        for optimizer in optimizers:
            optimizer.step()
    # torch's Muon computes in bfloat16; the steps themselves are about 0.02
    assert (ours - expected).abs().max() < 0.1 * (ours - start).abs().max()


def test_muon_treats_a_convolution_as_a_matrix() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(8, 3, 3, 3), torch.randn(8, 3, 3, 3)
    convolution, matrix = nn.Parameter(start.clone()), nn.Parameter(start.flatten(1))
    convolution.grad, matrix.grad = gradient, gradient.flatten(1)
    Muon([convolution]).step()
    Muon([matrix]).step()
    torch.testing.assert_close(convolution.flatten(1), matrix)


def test_muon_step_of_several_matrices_equals_single_steps() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(3, 6, 9), torch.randn(3, 6, 9)
    together, single = ([nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    for parameters in (together, single):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
    Muon(together).step()
    for parameter in single:
        Muon([parameter]).step()
    for result, expected in zip(together, single, strict=True):
        torch.testing.assert_close(result, expected)


def test_muon_in_bf16_takes_nearly_the_steps_of_fp32() -> None:
    torch.manual_seed(0)
    start = torch.randn(20, 30)
    exact, rounded = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    exact.grad = rounded.grad = torch.randn(20, 30)
    Muon([exact]).step()
    Muon([rounded], dtype=torch.bfloat16).step()
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    assert (exact - rounded).norm() < 0.05 * (exact - start).norm()


def test_muon_leaves_parameters_without_gradient() -> None:
    parameter = nn.Parameter(torch.ones(3, 3))
    Muon([parameter], weight_decay=0.1).step()
    assert torch.equal(parameter, torch.ones(3, 3))


@given(sizes=st.lists(st.integers(1, 1000), max_size=30), count=st.integers(1, 8))
def test_share_out_gives_no_process_more_than_the_mean_and_one_item(sizes: list[int], count: int) -> None:
    owners = share_out(sizes, count)
    assert len(owners) == len(sizes) and set(owners) <= set(range(count))
    loads = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(count)]
    assert max(loads) <= sum(sizes) / count + max(sizes, default=0)


def muon_steps(ranks: Ranks) -> list[torch.Tensor]:
    """Return six parameters after three steps of Muon, and their momenta."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 9), (6, 9), (20, 8), (6, 9), (4, 3, 2, 2), (9, 6)]
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    groups = [{"params": parameters[:2], "weight_decay": 0.1}, {"params": parameters[2:]}]
    optimizer = Muon(groups, ranks=ranks)
    for step in range(3):
        for parameter in parameters[step == 0 :]:  # the first has no gradient at first
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [*(p.detach() for p in parameters), *(optimizer.state[p]["momentum_buffer"] for p in parameters)]


@pytest.mark.parametrize("count", [2, 9])  # 9: some processes have no matrix
def test_muon_of_several_processes_takes_the_steps_of_one(
    in_processes: Callable[[int, Callable[[Ranks], Any]], list[Any]], count: int
) -> None:
    expected, results = muon_steps(Ranks()), in_processes(count, muon_steps)
    for result in results:
        assert all(torch.equal(value, first) for value, first in zip(result, results[0], strict=True))
        torch.testing.assert_close(result, expected)


def test_muon_of_several_processes_changes_nothing_if_a_gradient_is_not_finite(
    in_processes: Callable[[int, Callable[[Ranks], Any]], list[Any]]
) -> None:
    def last_step(ranks: Ranks) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        parameters = [nn.Parameter(torch.randn(5, 4, generator=generator)) for _ in range(3)]
        optimizer = Muon(parameters, ranks=ranks, weight_decay=0.1)
        optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
        for parameter in parameters:
            parameter.grad = torch.full((5, 4), math.nan)
        optimizer.step()
        return [*(p.detach() for p in parameters), *(optimizer.state[p]["momentum_buffer"] for p in parameters)]

    generator = torch.Generator().manual_seed(0)
    expected = [*(torch.randn(5, 4, generator=generator) for _ in range(3)), *[torch.zeros(5, 4)] * 3]
    for result in in_processes(2, last_step):
        assert all(torch.equal(value, before) for value, before in zip(result, expected, strict=True))


def groups_of(model: nn.Module, config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Return the parameter group of each parameter by its name."""
    groups = [group for optimizer in build_optimizers(model, config) for group in optimizer.param_groups]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: group for group in groups for parameter in group["params"]}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_build_optimizers_takes_each_parameter_once(tiny_model, name: str) -> None:
    model = tiny_model()
    groups = [
        group
        for optimizer in build_optimizers(model, TrainConfig(optimizer=name))
        for group in optimizer.param_groups
    ]
    parameters = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(parameters) == sorted(id(parameter) for parameter in model.parameters())


def test_build_optimizers_does_not_decay_position_tables() -> None:
    swin = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1), embed_dim=24, num_heads=(2, 2))
    groups = groups_of(swin, TrainConfig(weight_decay=0.3))
    matrices = [name for name, parameter in swin.named_parameters() if parameter.dim() == 2]
    undecayed = [name for name in matrices if groups[name]["weight_decay"] == 0.0]
    assert undecayed == [f"layers.{stage}.blocks.0.attn.relative_position_bias_table" for stage in (0, 1)]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_build_optimizers_does_not_decay_norms_biases_and_embeddings(tiny_model, optimizer: str) -> None:
    groups = groups_of(tiny_model(), TrainConfig(optimizer=optimizer, weight_decay=0.3))
    undecayed = ("bias", "wte.weight", "wpe.weight", "pos_embed", "ln_1.weight", "ln_f.weight", "bn.weight")
    for name, group in groups.items():
        is_undecayed = name.endswith(undecayed) or ".norm" in name or ".ln_" in name or group["params"][0].dim() == 1
        assert group["weight_decay"] == (0.0 if is_undecayed else 0.3), name
    assert groups["decoder.transformer.h.0.mlp.c_fc.weight"]["weight_decay"] == 0.3
    assert groups["decoder.transformer.wte.weight"]["weight_decay"] == 0.0


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_build_optimizers_gives_the_backbone_another_weight_decay(tiny_model, optimizer: str) -> None:
    config = TrainConfig(optimizer=optimizer, weight_decay=0.3, vision_weight_decay=0.1)
    decays = {name: group["weight_decay"] for name, group in groups_of(tiny_model(), config).items()}
    vision = {decay for name, decay in decays.items() if name.startswith("encoder.")}
    text = {decay for name, decay in decays.items() if name.startswith("decoder.")}
    assert (vision, text) == ({0.0, 0.1}, {0.0, 0.3})


def test_build_optimizers_gives_matrices_and_convolutions_to_muon(tiny_model) -> None:
    model, config = tiny_model(), TrainConfig(optimizer="muon", lr=1e-3, muon_lr=0.05)
    sizes = {name: parameter.dim() for name, parameter in model.named_parameters()}
    of_muon = {name for name, group in groups_of(model, config).items() if group["peak_lr"] == 0.05}
    assert {sizes[name] for name in of_muon} == {2, 4}
    assert not of_muon & {"decoder.transformer.wte.weight", "decoder.transformer.wpe.weight"}
    assert {"decoder.transformer.h.1.attn.c_attn.weight", "enc_to_dec_proj.weight"} <= of_muon


def test_rate_factor_onecycle_is_torchs() -> None:
    steps = 2000
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=steps)
    for step in range(steps - 1):
        assert rate_factor(step / steps, "onecycle") == pytest.approx(scheduler.get_last_lr()[0], abs=0.003)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "linear"])
def test_rate_factor_rises_to_1_and_falls_to_0(schedule: str) -> None:
    factors = [rate_factor(step / 1000, schedule) for step in range(1001)]
    peak = factors.index(max(factors))
    assert max(factors) == pytest.approx(1.0) and factors[-1] == pytest.approx(0.0, abs=1e-9)
    assert factors[: peak + 1] == sorted(factors[: peak + 1]) and factors[peak:] == sorted(factors[peak:], reverse=True)
    assert rate_factor(1.5, schedule) == pytest.approx(0.0, abs=1e-9)


def test_set_rates_multiplies_the_peak_of_each_group(tiny_model) -> None:
    optimizers = build_optimizers(tiny_model(), replace(TrainConfig(optimizer="muon"), lr=1e-3, muon_lr=0.02))
    set_rates(optimizers, 0.25)
    rates = {group["lr"] for optimizer in optimizers for group in optimizer.param_groups}
    assert rates == {0.25 * 1e-3, 0.25 * 0.02}
