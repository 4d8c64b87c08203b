"""Noise and its levels, beside diffusers' schedulers and closed forms."""

import diffusers
import pytest
import torch

from lorafit.diffusion.process import Levels, levels_of, process_of
from lorafit.diffusion.reader import PipelineFiles
from lorafit.errors import ConfigError
from lorafit.models import resolve


def process(directory):
    files = PipelineFiles.of(resolve(str(directory), pipeline=True))
    return process_of(files.path, files.family)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_diffusion_is_diffusers(family, base):
    ours = process(base(family))
    config = diffusers.DDPMScheduler.load_config(base(family) / "scheduler")
    theirs = diffusers.DDPMScheduler.from_config(config)
    latents, noise, levels = torch.randn(3, 4, 6, 6), torch.randn(3, 4, 6, 6), torch.tensor([0, 400, 999])
    torch.testing.assert_close(ours.noisy(latents, noise, levels), theirs.add_noise(latents, noise, levels))
    expected = theirs.get_velocity(latents, noise, levels) if family == "sd2" else noise
    torch.testing.assert_close(ours.target(latents, noise, levels), expected)
    snr = diffusers.training_utils.compute_snr(theirs, levels).double()
    capped = torch.minimum(snr, torch.full_like(snr, 5.0)) / (snr + 1 if family == "sd2" else snr)
    torch.testing.assert_close(ours.min_snr(levels, 5.0), capped, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_flow_goes_from_latents_to_noise(family, base):
    ours = process(base(family))
    theirs = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(base(family) / "scheduler")
    assert torch.equal(ours.noise.flip(0).float(), theirs.sigmas) and len(ours.noise) == 1000
    torch.testing.assert_close(ours.timesteps.flip(0), theirs.timesteps)
    latents, noise, levels = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6), torch.tensor([10, 999])
    timesteps = theirs.timesteps[999 - levels]
    torch.testing.assert_close(
        ours.noisy(latents, noise, levels), theirs.scale_noise(latents, timesteps, noise), rtol=1e-5, atol=1e-5
    )
    assert torch.equal(ours.target(latents, noise, levels), noise - latents)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.5)])
def test_levels_are_drawn_as_their_quantiles_say(mean, std):
    """Esser et al. 2024, section 3.1: the logit of a level is normal."""
    torch.manual_seed(0)
    levels = Levels(True, mean, std)
    drawn = torch.stack([levels.draw() for _ in range(4000)])
    normal = torch.distributions.Normal(mean, std)
    for share in (0.1, 0.5, 0.9):
        expected = torch.sigmoid(normal.icdf(torch.tensor(share))).item()
        assert levels.quantile(share) == pytest.approx(expected, rel=1e-5)
        assert (drawn < expected).float().mean().item() == pytest.approx(share, abs=0.03)


def test_auto_is_the_models_own():
    assert levels_of("auto", 0.0, 1.0, flow=True) == Levels(True)
    assert levels_of("auto", 0.0, 1.0, flow=False) == Levels(False)
    assert levels_of("uniform", 0.0, 1.0, flow=True) == Levels(False)
    assert levels_of("logit_normal", 1.0, 2.0, flow=False) == Levels(True, 1.0, 2.0)
    assert Levels(False).quantile(0.25) == 0.25
    with pytest.raises(ConfigError, match="logit_std"):
        levels_of("auto", 0.0, 2.0, flow=False)
