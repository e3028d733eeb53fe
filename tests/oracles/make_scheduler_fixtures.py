"""Writes the fixture of tests/diffusion/test_scheduler_parity.py: what diffusers' schedulers make of a formula in the
place of a model, from recorded noise, step by step.

Needs torch and diffusers. Steps divide 1000: with others DDPM and DDIM there step to other times than they ask at.
Samples are stored as the process has them, alpha x0 + sigma eps: schedulers that keep x / alpha are asked by
`scale_model_input`. Run from anywhere.
"""

import pathlib
import unittest.mock

import diffusers
import numpy as np
import torch

HERE = pathlib.Path(__file__).parent
STEPS, SHAPE = 5, (2, 2, 2, 3)
SCALED = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
COSINE = dict(beta_schedule="squaredcos_cap_v2")
CASES = {
    "ddpm_small": ("DDPM", dict(variance_type="fixed_small", clip_sample=False, timestep_spacing="leading"), {}),
    "ddpm_large": ("DDPM", dict(variance_type="fixed_large", prediction_type="v_prediction", clip_sample=False,
                                timestep_spacing="leading"), {}),  # "trailing" draws in the last step, too
    "ddpm_learned": ("DDPM", dict(variance_type="learned_range", clip_sample=True, timestep_spacing="leading"), {}),
    "ddim": ("DDIM", dict(clip_sample=False, timestep_spacing="trailing", prediction_type="sample", **COSINE), {}),
    "ddim_eta": ("DDIM", dict(clip_sample=True, timestep_spacing="leading", **SCALED), dict(eta=0.7)),
    "ddim_zero_snr": ("DDIM", dict(clip_sample=False, timestep_spacing="trailing", rescale_betas_zero_snr=True,
                                   prediction_type="v_prediction", **SCALED), {}),
    "dpmpp_2m": ("DPMSolverMultistep", dict(timestep_spacing="trailing"), {}),
    "dpmpp_2m_karras": ("DPMSolverMultistep", dict(use_karras_sigmas=True, **SCALED), {}),
    "heun": ("HeunDiscrete", dict(timestep_spacing="trailing", **SCALED), {}),
    "euler": ("EulerDiscrete", dict(timestep_spacing="leading", **SCALED), {}),
    "euler_ancestral": ("EulerAncestralDiscrete", dict(timestep_spacing="trailing"), {}),
    "flow": ("FlowMatchEulerDiscrete", dict(shift=3.0), {}),
    "consistency": ("CMStochasticIterative", dict(clip_denoised=False), {}),
}  # fmt: skip


def output(x: torch.Tensor, time: float) -> torch.Tensor:
    """In the place of a model's output at a time in [0, 1]."""
    return 0.8 * x + 0.3 * torch.sin(3 * x + 5 * time)


def trajectory(kind: str, settings: dict, options: dict, start, noises) -> np.ndarray:
    """float32 [STEPS + 1, *SHAPE]."""
    scheduler = getattr(diffusers, f"{kind}Scheduler")(**settings)
    scheduler.set_timesteps(STEPS)
    is_scaled = hasattr(scheduler, "init_noise_sigma") and kind.startswith(("Heun", "Euler"))
    x, found, drawn = start, [start], iter(noises)
    if is_scaled:  # x / alpha, sigma / alpha = scheduler.sigmas
        x = start * torch.sqrt(1 + scheduler.sigmas[0].double() ** 2).float()
    is_consistency = kind.startswith("CM")
    if is_consistency:
        x = start * scheduler.init_noise_sigma
        found = [x]
    with unittest.mock.patch(f"{type(scheduler).__module__}.randn_tensor", lambda *_, **__: next(drawn), create=True):
        for index, time in enumerate(scheduler.timesteps):
            scaled = scheduler.scale_model_input(x, time) if is_scaled or is_consistency else x
            if is_scaled and index and not (kind == "HeunDiscrete" and not scheduler.state_in_first_order):
                found.append(scaled)
            out = output(scaled, float(time) / 1000)
            if settings.get("variance_type") == "learned_range":
                out = torch.cat([out, torch.cos(2 * scaled)], dim=1)
            x = scheduler.step(out, time, x, **options).prev_sample
            if not is_scaled:
                found.append(x)
    return torch.stack([*found, x] if is_scaled else found).numpy()


def main():
    torch.manual_seed(0)
    start, noises = torch.randn(SHAPE), torch.randn(STEPS, *SHAPE)
    arrays = {"start": start.numpy(), "noises": noises.numpy()}
    for name, case in CASES.items():
        arrays[name] = trajectory(*case, start, noises)
        assert arrays[name].shape == (STEPS + 1, *SHAPE), name
        assert np.isfinite(arrays[name]).all(), name
    arrays["versions"] = f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    np.savez_compressed(HERE / "schedulers.npz", **arrays)
    print(arrays["versions"], (HERE / "schedulers.npz").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
