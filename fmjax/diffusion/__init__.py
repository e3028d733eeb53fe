"""Diffusion as one algebra: a process makes noise of data, a target is what a model says of it, a sampler goes back.

The tables are the members that have names; an import path `package.module:Object` names one from elsewhere. README.md
says what each is.
"""

from fmjax.registry import Registry

PROCESSES = Registry(
    "process",
    {
        "cosine": "fmjax.diffusion.processes:Cosine",
        "ddpm": "fmjax.diffusion.processes:DDPM",
        "edm": "fmjax.diffusion.processes:EDM",
        "flow": "fmjax.diffusion.processes:Flow",
        "masked": "fmjax.diffusion.masked:Masking",
        "vp": "fmjax.diffusion.processes:VariancePreserving",
    },
    contract="fmjax.diffusion.processes:Process",
)
TARGETS = Registry(
    "target",
    {
        "consistency": "fmjax.diffusion.consistency:ConsistencyOutput",
        "edm": "fmjax.diffusion.targets:EDMOutput",
        "eps": "fmjax.diffusion.targets:Eps",
        "score": "fmjax.diffusion.targets:Score",
        "v": "fmjax.diffusion.targets:V",
        "velocity": "fmjax.diffusion.targets:Velocity",
        "x0": "fmjax.diffusion.targets:X0",
    },
    contract="fmjax.diffusion.targets:Target",
)
WEIGHTINGS = Registry(
    "weighting",
    {
        "edm": "fmjax.diffusion.weightings:EDMWeighting",
        "elbo": "fmjax.diffusion.weightings:ELBO",
        "min_snr": "fmjax.diffusion.weightings:MinSNR",
        "simple": "fmjax.diffusion.weightings:Simple",
    },
    contract="fmjax.diffusion.weightings:Weighting",
)
TIMES = Registry(
    "times",
    {
        "log_normal": "fmjax.diffusion.times:LogNormal",
        "logit_normal": "fmjax.diffusion.times:LogitNormal",
        "uniform": "fmjax.diffusion.times:Uniform",
    },
    contract="fmjax.diffusion.times:Times",
)
SAMPLERS = Registry(
    "sampler",
    {
        "ancestral": "fmjax.diffusion.samplers:Ancestral",
        "consistency": "fmjax.diffusion.consistency:Consistency",
        "ddim": "fmjax.diffusion.samplers:DDIM",
        "dpmpp_2m": "fmjax.diffusion.samplers:DPMSolverPP2M",
        "euler": "fmjax.diffusion.samplers:Euler",
        "euler_ancestral": "fmjax.diffusion.samplers:EulerAncestral",
        "heun": "fmjax.diffusion.samplers:Heun",
    },
    contract="fmjax.diffusion.samplers:Sampler",
)


def member(registry: Registry, value):
    """A member by its name with its defaults; one that is made already as it is."""
    return registry.get(value)() if isinstance(value, str) else value
