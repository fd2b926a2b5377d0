"""The DDIM scheduler that a pipeline's scheduler file stands for, whatever scheduler wrote the file.

Erasing samples with DDIM, as the released code does. `DDIMScheduler.from_config` would fill what the file does not say
with DDIM's defaults, of which some draw other pictures (it clips latents), and would lose what diffusers corrects while
it loads a pipeline. So every setting that DDIM has is taken from the file, else from what the file's own scheduler
does. What belongs to the other sampler (its order, its sigmas) goes.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import DDIMScheduler

CONVERTIBLE = (
    *("DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler", "PNDMScheduler"),
    *("LMSDiscreteScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"),
    *("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler"),
    *("DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler"),
    *("SASolverScheduler", "LCMScheduler", "TCDScheduler"),
)
"""Those that noise by betas, at whole timesteps, as DDIM does."""
KARRAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "timestep_spacing": "linspace"}
UNINSTALLED = {
    "LMSDiscreteScheduler": KARRAS | {"beta_start": 0.0001, "beta_end": 0.02},
    "DPMSolverSDEScheduler": KARRAS,
}
"""Defaults of those that diffusers has only beside scipy or torchsde."""
OTHERS_DO = {
    "clip_sample": False,
    "thresholding": False,
    "set_alpha_to_one": True,
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
}
"""What a scheduler does that does not know the setting."""
PREDICTIONS = ("epsilon", "sample", "v_prediction")
MOST_TIMESTEPS = 100_000
"""Betas are made one by one: a slip of the pen must not take minutes and all memory."""
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")


def read(folder: Path, named: str | None, stable_diffusion: bool) -> DDIMScheduler:
    """From folder/scheduler_config.json; `named` is the scheduler's class in model_index.json.

    Raises ValueError where it cannot be read, or is of a scheduler that DDIM cannot stand in for.
    """
    path = folder / "scheduler_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"the pipeline has no scheduler: {path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no settings of a scheduler")
    try:
        return ddim(config, named, stable_diffusion)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def ddim(config: Mapping[str, Any], named: str | None = None, stable_diffusion: bool = True) -> DDIMScheduler:
    """From a scheduler's settings. `named` is its class where the settings do not say it under `_class_name`.

    `stable_diffusion`: of a StableDiffusionPipeline, whose loading corrects old files: `clip_sample` is off and
    `steps_offset` 1. Raises ValueError.
    """
    import torch
    from diffusers import DDIMScheduler

    kind = config.get("_class_name") or named or ""
    _refuse(kind, config)
    defaults = _defaults(kind)
    settings = {key: _value(key, config, defaults) for key in _defaults("DDIMScheduler")}
    if "set_alpha_to_one" not in config and config.get("final_sigmas_type") == "sigma_min":
        settings["set_alpha_to_one"] = False
    if stable_diffusion:
        settings |= {"clip_sample": False, "steps_offset": 1}
    timesteps = settings["num_train_timesteps"]
    if isinstance(timesteps, int) and not 1 <= timesteps <= MOST_TIMESTEPS:
        raise ValueError(f"num_train_timesteps is {timesteps}; it has to be from 1 to {MOST_TIMESTEPS}")
    if settings["prediction_type"] not in PREDICTIONS:
        raise ValueError(
            f"the UNet predicts {settings['prediction_type']!r}, with which DDIM cannot sample; it knows "
            f"{', '.join(PREDICTIONS)}"
        )
    if settings["trained_betas"] is None and settings["beta_schedule"] not in BETAS:
        raise ValueError(f"DDIM knows no beta_schedule {settings['beta_schedule']!r}; it knows {', '.join(BETAS)}")
    try:
        found = DDIMScheduler(**settings)
        kept = torch.as_tensor(found.alphas_cumprod)
        sound = kept.ndim == 1 and bool(((kept >= 0) & (kept <= 1)).all()) and bool((kept.diff() <= 0).all())
        found.set_timesteps(1)  # refuses an unknown spacing
    except (TypeError, ValueError, LookupError, RuntimeError, NotImplementedError, ArithmeticError) as error:
        raise ValueError(f"its settings make no scheduler ({str(error).splitlines()[0] or error!r})") from error
    if not sound or len(kept) != settings["num_train_timesteps"]:
        raise ValueError("its betas are no noise schedule of num_train_timesteps steps")
    return found


def _value(key: str, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    """What the file says, else what its scheduler takes where nothing is said, else what it does."""
    for known in (config, defaults, OTHERS_DO):
        if key in known:
            return known[key]
    return _defaults("DDIMScheduler")[key]  # such as the range of a clipping that is off


def _refuse(kind: Any, config: Mapping[str, Any]) -> None:
    """Raises ValueError for what does not noise by betas at whole timesteps."""
    flow = config.get("use_flow_sigmas") or "Flow" in str(kind) or "flow" in str(config.get("prediction_type"))
    if flow:
        raise ValueError(f"{kind} is for flow matching, and erase samples with DDIM, which cannot stand in for it")
    if kind not in CONVERTIBLE:
        raise ValueError(f"{kind or 'a scheduler without a name'} cannot be replaced by DDIM, with which erase samples")
    if config.get("timestep_type", "discrete") != "discrete":
        raise ValueError("its UNet reads continuous timesteps, and DDIM, with which erase samples, gives whole ones")


def _defaults(kind: str) -> dict[str, Any]:
    """What a scheduler takes for each setting where nothing is said."""
    import diffusers

    if kind in UNINSTALLED:
        return UNINSTALLED[kind]
    found = inspect.signature(getattr(diffusers, kind).__init__).parameters
    return {name: p.default for name, p in found.items() if p.default is not p.empty}
