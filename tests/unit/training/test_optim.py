from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from myllm.config import TrainConfig
from myllm.training.optim import Muon, build_optimizers, orthogonalise, rate_factor, set_rates


@given(rows=st.integers(2, 40), columns=st.integers(2, 40), count=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_orthogonalised_matrices_keep_their_directions_and_lose_their_lengths(
    rows: int, columns: int, count: int, seed: int
) -> None:
    matrices = torch.randn(count, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u, s, vt = torch.linalg.svd(matrices, full_matrices=False)
    turned = u.mT @ orthogonalise(matrices) @ vt.mT  # diagonal where the directions are those of the matrix
    found = turned.diagonal(dim1=1, dim2=2)
    assert (turned - torch.diag_embed(found)).abs().max() < 1e-6
    # the iteration has not yet reached the smallest ones
    assert (found[s > 0.05 * s.norm(dim=1, keepdim=True)] > 0.6).all() and (found < 1.3).all()


@pytest.mark.parametrize("shape", [(12, 12), (12, 30), (30, 12)])
def test_muon_steps_as_torchs(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    start, options = torch.randn(shape), {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = Muon([ours], **options), torch.optim.Muon([theirs], nesterov=True, **options)
    for _ in range(5):
        ours.grad = theirs.grad = torch.randn(shape)
        for optimizer in optimizers:
            optimizer.step()
    # theirs computes in bfloat16; the steps themselves are about 0.02
    assert (ours - theirs).abs().max() < 0.1 * (ours - start).abs().max()


def test_a_convolution_steps_as_the_matrix_it_is() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(8, 3, 3, 3), torch.randn(8, 3, 3, 3)
    convolution, matrix = nn.Parameter(start.clone()), nn.Parameter(start.flatten(1))
    convolution.grad, matrix.grad = gradient, gradient.flatten(1)
    Muon([convolution]).step()
    Muon([matrix]).step()
    torch.testing.assert_close(convolution.flatten(1), matrix)


def test_matrices_of_a_shape_step_together_as_they_do_alone() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(3, 6, 9), torch.randn(3, 6, 9)
    together, alone = ([nn.Parameter(one.clone()) for one in start] for _ in range(2))
    for parameters in ([*zip(together, gradients, strict=True)], [*zip(alone, gradients, strict=True)]):
        for parameter, gradient in parameters:
            parameter.grad = gradient
    Muon(together).step()
    for parameter in alone:
        Muon([parameter]).step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other)


def test_what_has_no_gradient_stays() -> None:
    parameter = nn.Parameter(torch.ones(3, 3))
    Muon([parameter], weight_decay=0.1).step()
    assert torch.equal(parameter, torch.ones(3, 3))


def groups_of(model: nn.Module, config: TrainConfig) -> dict[str, dict[str, Any]]:
    """The group of each parameter, by name."""
    groups = [group for optimizer in build_optimizers(model, config) for group in optimizer.param_groups]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: group for group in groups for parameter in group["params"]}


def test_every_parameter_is_optimised_once(tiny_model) -> None:
    model = tiny_model()
    for optimizer in ("adamw", "muon"):
        built = build_optimizers(model, TrainConfig(optimizer=optimizer))
        found = [id(one) for each in built for group in each.param_groups for one in group["params"]]
        assert sorted(found) == sorted(id(parameter) for parameter in model.parameters())


def test_tables_of_positions_do_not_decay() -> None:
    swin = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1), embed_dim=24, num_heads=(2, 2))
    groups = groups_of(swin, TrainConfig(weight_decay=0.3))
    matrices = [name for name, parameter in swin.named_parameters() if parameter.dim() == 2]
    spared = [name for name in matrices if groups[name]["weight_decay"] == 0.0]
    assert spared == [f"layers.{stage}.blocks.0.attn.relative_position_bias_table" for stage in (0, 1)]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_norms_biases_and_embeddings_do_not_decay(tiny_model, optimizer: str) -> None:
    groups = groups_of(tiny_model(), TrainConfig(optimizer=optimizer, weight_decay=0.3))
    spared = ("bias", "wte.weight", "wpe.weight", "pos_embed", "ln_1.weight", "ln_f.weight", "bn.weight")
    for name, group in groups.items():
        is_spared = name.endswith(spared) or ".norm" in name or ".ln_" in name or group["params"][0].dim() == 1
        assert group["weight_decay"] == (0.0 if is_spared else 0.3), name
    assert groups["decoder.transformer.h.0.mlp.c_fc.weight"]["weight_decay"] == 0.3
    assert groups["decoder.transformer.wte.weight"]["weight_decay"] == 0.0


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_backbone_may_decay_by_a_rate_of_its_own(tiny_model, optimizer: str) -> None:
    config = TrainConfig(optimizer=optimizer, weight_decay=0.3, vision_weight_decay=0.1)
    decays = {name: group["weight_decay"] for name, group in groups_of(tiny_model(), config).items()}
    of_vision = {decay for name, decay in decays.items() if name.startswith("encoder.")}
    of_text = {decay for name, decay in decays.items() if name.startswith("decoder.")}
    assert (of_vision, of_text) == ({0.0, 0.1}, {0.0, 0.3})


def test_muon_takes_matrices_and_convolutions_and_leaves_the_rest(tiny_model) -> None:
    model, config = tiny_model(), TrainConfig(optimizer="muon", lr=1e-3, muon_lr=0.05)
    sizes = {name: parameter.dim() for name, parameter in model.named_parameters()}
    muons = {name for name, group in groups_of(model, config).items() if group["peak_lr"] == 0.05}
    assert {sizes[name] for name in muons} == {2, 4}
    assert not muons & {"decoder.transformer.wte.weight", "decoder.transformer.wpe.weight"}
    assert {"decoder.transformer.h.1.attn.c_attn.weight", "enc_to_dec_proj.weight"} <= muons


def test_the_one_cycle_is_torchs() -> None:
    steps = 2000
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=steps)
    for step in range(steps - 1):
        assert rate_factor(step / steps, "onecycle") == pytest.approx(theirs.get_last_lr()[0], abs=0.003)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "linear"])
def test_rates_climb_to_the_peak_and_fall_to_nothing(schedule: str) -> None:
    factors = [rate_factor(step / 1000, schedule) for step in range(1001)]
    peak = factors.index(max(factors))
    assert max(factors) == pytest.approx(1.0) and factors[-1] == pytest.approx(0.0, abs=1e-9)
    assert factors[: peak + 1] == sorted(factors[: peak + 1]) and factors[peak:] == sorted(factors[peak:], reverse=True)
    assert rate_factor(1.5, schedule) == pytest.approx(0.0, abs=1e-9)


def test_every_group_keeps_its_share_of_its_own_peak(tiny_model) -> None:
    optimizers = build_optimizers(tiny_model(), replace(TrainConfig(optimizer="muon"), lr=1e-3, muon_lr=0.02))
    set_rates(optimizers, 0.25)
    rates = {group["lr"] for optimizer in optimizers for group in optimizer.param_groups}
    assert rates == {0.25 * 1e-3, 0.25 * 0.02}
