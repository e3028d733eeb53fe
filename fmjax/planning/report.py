"""A plan in words, for the terminal."""

from collections.abc import Sequence

from fmjax.planning.plan import Plan


def describe(plan: Plan) -> str:
    """Some twenty lines: the devices, memory of one of them, FLOPs, what is moved, and the bound that follows."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "one device"
    memory = plan.hbm_bytes_per_device
    lines = [
        f"{plan.topology}: {plan.num_devices} x {plan.device_kind}, mesh {mesh}",
        f"compiled in {plan.compile_seconds:.0f} s",
        "",
        "memory of one device",
        f"  parameters           {size(plan.parameter_bytes):>12}",
        f"  optimizer state      {size(plan.optimizer_bytes):>12}",
        *([f"  carry                {size(plan.carry_bytes):>12}"] if plan.carry_bytes else []),
        f"  batch                {size(plan.batch_bytes):>12}",
        *([f"  other models         {size(plan.models_bytes):>12}"] if plan.models_bytes else []),
        f"  temporaries          {size(plan.temp_bytes):>12}   (activations, gradients, workspace)",
        f"  peak                 {size(plan.peak_bytes_per_device):>12}{_of(plan.peak_bytes_per_device, memory)}",
        "",
        "FLOPs of one step, all devices",
        f"  hardware             {plan.hardware_flops_per_step:12.4g}",
    ]
    if plan.model_flops_per_step is not None:
        share = f"   {plan.useful_flops:.1%} of the hardware's" if plan.useful_flops else ""
        lines.append(f"  model                {plan.model_flops_per_step:12.4g}{share}")
    for what, number in plan.uncounted.items():
        lines.append(f"  not counted          {number} x {what}")
    lines += ["", "moved by one device in one step"]
    lines.append(f"  main memory          {size(plan.memory_traffic_bytes):>12}{_seconds(plan, 'memory')}")
    lines += _links(plan)
    lines.append("")
    if plan.step_seconds_bound is None:
        unknown = f"the rates of {plan.device_kind!r} are not known"
        reason = "not all of its work is counted" if plan.uncounted else unknown
        lines.append(f"no bound on speed: {reason}")
    else:
        lines.append(f"compute                {plan.seconds['compute']:10.4g} s")
        bound = f"step at least          {plan.step_seconds_bound:10.4g} s, limited by {plan.limited_by}"
        if plan.tokens_per_step:
            bound += f"; at most {plan.tokens_per_step / plan.step_seconds_bound:,.0f} tokens/s"
        lines.append(bound)
    if plan.mfu_bound is not None:
        lines.append(f"MFU at most            {plan.mfu_bound:10.1%}")
    lines.append(verdict(plan))
    if plan.fits is False:
        lines.append("--search tries other remat policies, mesh axes and parts of the batch")
    return "\n".join(lines)


def verdict(plan: Plan) -> str:
    """One line: whether it fits, and by how much."""
    if plan.fits is None:
        return f"whether it fits is not known: the memory of {plan.device_kind!r} is not"
    over = plan.peak_bytes_per_device - plan.hbm_bytes_per_device
    if plan.fits:
        return f"fits, with {size(-over)} of a device's {size(plan.hbm_bytes_per_device)} to spare"
    return f"does not fit: {size(plan.peak_bytes_per_device)} wanted of a device's {size(plan.hbm_bytes_per_device)}"


def table(rows: Sequence[tuple[str, Plan]]) -> str:
    """One line a plan: what was changed, its memory, how much of its FLOPs are useful, its bound."""
    width = max(len(what) for what, _ in rows)
    lines = [f"{'':<{width}}  {'fits':<5}{'peak':>12}{'useful':>9}{'step bound':>13}{'MFU bound':>11}  limited by"]
    for what, plan in rows:
        fits = {True: "yes", False: "no", None: "?"}[plan.fits]
        useful = f"{plan.useful_flops:.1%}" if plan.useful_flops else "-"
        bound = f"{plan.step_seconds_bound:.4g} s" if plan.step_seconds_bound else "-"
        mfu = f"{plan.mfu_bound:.1%}" if plan.mfu_bound else "-"
        peak = size(plan.peak_bytes_per_device)
        lines.append(f"{what:<{width}}  {fits:<5}{peak:>12}{useful:>9}{bound:>13}{mfu:>11}  {plan.limited_by or '-'}")
    return "\n".join(lines)


def choice(what: str, plan: Plan) -> str:
    """One line: which plan `fmjax.planning.search.best` took, by what was changed, and what it went by."""
    if plan.step_seconds_bound is None:
        return f"best: {what} (of those that fit, or may, the fewest FLOPs; no bound on a step's time is known)"
    return f"best: {what} (of those that fit, or may, the lowest bound on a step's time)"


def size(num_bytes: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(num_bytes) < 1024 or unit == "TiB":
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.2f} {unit}"
        num_bytes /= 1024
    raise AssertionError


def _links(plan: Plan) -> list[str]:
    """What is sent along each axis and along several together, and how long the links of each are busy."""
    timed = {resource.removeprefix("links ") for resource in plan.seconds if resource.startswith("links ")}
    lines = []
    for axes in sorted(timed | plan.link_bytes.keys()):
        if axes in timed:
            joined = (parts for parts in map(lambda name: name.split("+"), plan.link_bytes) if len(parts) > 1)
            is_shared = any(axes in parts and timed.issuperset(parts) for parts in joined)
            note = _seconds(plan, f"links {axes}") + (" with its share of what goes along several" if is_shared else "")
        elif timed.issuperset(axes.split("+")):
            note = "   shared by the links of these axes"
        else:
            note = "   (speed not known: not in the bound)"
        lines.append(f"  links, {axes:<13} {size(plan.link_bytes.get(axes, 0)):>12}{note}")
    return lines


def _of(peak: int, memory: int | None) -> str:
    return f"   {peak / memory:.0%} of {size(memory)}" if memory else ""


def _seconds(plan: Plan, resource: str) -> str:
    return f"   {plan.seconds[resource]:.4g} s" if resource in plan.seconds else ""
