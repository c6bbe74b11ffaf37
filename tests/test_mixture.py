"""Learned mixture of layers: between the layers that it mixes, with gradient to all, trained and resumed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_alignment import WIDTH, ConvTeacher, Setting, Several
from small_plugin import SMALL, TEACHER, SfTinyConfig, interrupted_after, train
from torch.testing import assert_close

from lerobot_policy_spatial_forcing.forcing_config import ForcingConfig
from spatial_forcing import Alignment
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.mixture import MixedProjector
from spatial_forcing.projector import Projector
from spatial_forcing.tap import TapError
from spatial_forcing.train import checkpoints

SITE = "blocks.1+3"


def mixed(**options) -> Setting:
    return Setting(site=SITE, **options)


def single(setting: Setting, site: str) -> torch.Tensor:
    """The loss at one site, with the projector inside the mixture."""
    alone = Setting(site=site)
    alone.sf.projector.load_state_dict(setting.sf.projector.projector.state_dict())
    return alone.loss()


@pytest.mark.parametrize(("favours", "site"), [(0, "blocks.1"), (1, "blocks.3")])
def test_all_weight_on_one_layer_is_that_layer_alone(favours, site):
    setting = mixed()
    with torch.no_grad():
        setting.sf.projector.a_K[favours] = 60.0
    assert_close(setting.loss(), single(setting, site), atol=1e-6, rtol=1e-5)


def test_at_the_start_all_layers_weigh_alike():
    setting = mixed()
    setting.act()
    tokens = [tap.visual_BND() for tap in setting.sf.tap.taps]
    mean_BND, valid_BN = (tokens[0] + tokens[1]) / 2, torch.ones(tokens[0].shape[:2], dtype=torch.bool)
    projector = setting.sf.projector
    found = projector(setting.sf.tap.visual_BND(), valid_BN, setting.sf.tap.layout)
    assert_close(found, projector.projector(mean_BND, valid_BN))
    assert setting.sf.tap.site.width == 2 * WIDTH


def test_gradients_reach_every_layer_and_the_weights():
    setting = mixed()
    gradients = setting.gradients(setting.loss())
    for block in (0, 1, 2):
        assert gradients[f"vla.blocks.{block}.mlp.0.weight"].any()
    assert gradients["vla.blocks.3.mlp.0.weight"] is None, "nothing behind the last of them"
    assert gradients["sf.projector.a_K"].any()
    action = setting.act()
    ratio, cosine = setting.sf.pull(action, setting.sf(setting.images_BV3HW))
    assert ratio > 0
    assert -1 <= cosine <= 1


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_tokens_that_are_not_valid_have_no_effect(poison):
    projector = MixedProjector(Projector(4, 6), 3)
    visual_BND, valid_BN = torch.randn(2, 5, 12), torch.rand(2, 5) < 0.6
    dirty = torch.where(valid_BN[..., None], visual_BND, poison).requires_grad_()
    found, clean = (projector(x, valid_BN, None)[valid_BN] for x in (dirty, visual_BND))
    assert torch.equal(found, clean)
    found.square().sum().backward()
    assert not dirty.grad[~valid_BN].any()
    assert projector.a_K.grad.isfinite().all()


def test_the_host_is_as_it_was_after_detach():
    setting = mixed()
    setting.sf.detach()
    assert not any(module._forward_pre_hooks for module in setting.vla.modules())


def test_a_mixture_stands_beside_other_alignments():
    teacher = ConvTeacher()
    setting = Several(Alignment(SITE, teacher, name="mix"), Alignment("blocks.2", teacher))
    setting.loss()
    assert {"mix/align_loss", "blocks_2/align_loss"} <= set(setting.sf.logs)
    assert [part.name for part in Several(Alignment(SITE, teacher)).sf.parts] == ["blocks_1-3"]


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("blocks.2+2", "names a site twice"),
        ("blocks.3+-2", "names a site twice"),
        ("blocks.2+9", r"has no site 'blocks.9'.*blocks.0 to blocks.4"),
        ("blocks.2+", "has no site"),
        ("blocks.2+vision.1", "has no site"),
        ("vision.1+2", "does not describe its vision encoder"),
    ],
)
def test_mixtures_that_there_are_not(site, message):
    with pytest.raises(TapError, match=message):
        Setting(site=site)


def test_a_mixture_is_shared_only_by_one_of_as_many_layers():
    teacher = ConvTeacher()
    with pytest.raises(SpatialForcingError, match="shares the projector of 'mix'"):
        Several(Alignment(SITE, teacher, name="mix"), Alignment("blocks.2", teacher, shares="mix"))
    with pytest.raises(UnknownNameError):
        Several(Alignment(SITE, teacher, name="mix"), Alignment("blocks.2", teacher, shares="none"))


def test_lerobots_trainer_saves_and_continues_the_mixture(dataset, tmp_path):
    config = SfTinyConfig(**SMALL, forcing=ForcingConfig(teacher=TEACHER, site="blocks.1+2"))
    run = train(config, dataset, tmp_path / "run")
    straight = projector_of(run)
    assert straight["projector.a_K"].any(), "the weights have trained"
    interrupted_after(run, 2)
    train(config, dataset, run)
    for name, value in projector_of(run).items():
        assert torch.equal(straight[name], value), name


def projector_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(run)[4] / "spatial_forcing" / "projector.safetensors")
