"""The `scheduler` of diffusers' pipelines beside the objective `diffusion`: how noise was mixed in when a model
learned, and what it says of it. How samples are drawn is asked for when they are (`fmjax.inference.denoising`)."""

import logging

from fmjax.errors import ConfigError
from fmjax.interop.config_keys import Rule, ignored
from fmjax.interop.published_config import PublishedConfig

log = logging.getLogger("fmjax")

BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
STEPS = 1000
"""A model is asked at times of which 1 counts as so many steps."""


def _name(section) -> str:
    return section if isinstance(section, str) else section.get("name")


def _word(theirs: dict[str, str], ours, what: str) -> str:
    found = [word for word, own in theirs.items() if own == ours]
    if not found:
        raise ConfigError(f"a scheduler of diffusers has no {what} {ours!r} (it has {', '.join(theirs.values())})")
    return found[0]


def _read_process(config: PublishedConfig, names, fields) -> dict:
    config.fixed(num_train_timesteps=STEPS, trained_betas=None, thresholding=False, use_flow_sigmas=False)
    if config.raw("clip_sample") is True:
        log.warning("%s: its pipeline cuts x0 off in each step; generate with clip = 1 to do so", config.source)
    if config.raw("steps_offset"):
        log.warning(
            "%s: its pipeline asks a step later (steps_offset); here spacing = 'leading' begins at 0", config.source
        )
    return {
        "process": {
            "name": "ddpm",
            "betas": config.choice("beta_schedule", BETAS, "linear"),
            "beta_start": config.get("beta_start", float, 1e-4),
            "beta_end": config.get("beta_end", float, 0.02),
            "zero_terminal_snr": config.get("rescale_betas_zero_snr", bool, False),
        }
    }


def _write_process(section) -> dict:
    process = getattr(section, "process", "ddpm")
    process = {"name": process} if isinstance(process, str) else dict(process)
    if process["name"] != "ddpm" or process.get("num_steps", STEPS) != STEPS:
        raise ConfigError(f"objective.process = {process}: a DDPMScheduler is of 'ddpm' with num_steps = {STEPS}")
    return {
        "num_train_timesteps": STEPS,
        "beta_schedule": _word(BETAS, process.get("betas", "linear"), "betas"),
        "beta_start": process.get("beta_start", 1e-4),
        "beta_end": process.get("beta_end", 0.02),
        "rescale_betas_zero_snr": process.get("zero_terminal_snr", False),
    }


def _read_target(config: PublishedConfig, names, fields) -> dict:
    variance = config.get("variance_type", str, "fixed_small", null=True)
    if variance == "learned":
        raise ConfigError(
            f"{config.source}: variance_type = 'learned' is not known here; a model that says where its variance lies "
            "between two has 'learned_range'"
        )
    learned = variance == "learned_range"
    return {
        "target": {"name": config.choice("prediction_type", TARGETS, "epsilon")},
        "learned_variance": learned,
    }


def _write_target(section) -> dict:
    learned = getattr(section, "learned_variance", False)
    return {
        "prediction_type": _word(TARGETS, _name(getattr(section, "target", "eps")), "target"),
        "variance_type": "learned_range" if learned else "fixed_small",
    }


KEYS = (
    Rule(_read_process, _write_process),
    Rule(_read_target, _write_target),
    # How a pipeline draws samples.
    ignored(
        "clip_sample", "clip_sample_range", "timestep_spacing", "steps_offset", "set_alpha_to_one", "skip_prk_steps",
        "dynamic_thresholding_ratio", "sample_max_value", "interpolation_type", "use_karras_sigmas", "solver_order",
        "algorithm_type", "solver_type", "lower_order_final", "timestep_type", "final_sigmas_type", "euler_at_final",
        "use_lu_lambdas", "use_exponential_sigmas", "use_beta_sigmas", "lambda_min_clipped", "sigma_min", "sigma_max",
        "predict_x0", "disable_corrector", "solver_p", "flow_shift", "use_dynamic_shifting", "time_shift_type",
        "shift_terminal",
    ),
)  # fmt: skip
