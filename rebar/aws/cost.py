"""List prices, and estimates of the time and cost of a training run.

Prices are in US dollars, for us-east-1. They are constants, not queried from AWS; docs/aws.md lists their sources.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rebar.aws.instances import InstanceType
from rebar.storage.boto import AwsError

HOURS_PER_MONTH = 730
EBS_GB_MONTH = {"gp3": 0.08, "gp2": 0.10, "st1": 0.045, "sc1": 0.015}
"""$ per GB and month, without provisioned IOPS and throughput; gp3 includes 3,000 IOPS and 125 MiB/s.

gp3 and gp2: AWS's agent toolkit (aws/agent-toolkit-for-aws, ebs-optimization.md: "approximate as of early 2026").
st1 and sc1: from several public cost tools that agree, none of them AWS's; looked up 2026-11-21.
"""
SNAPSHOT_GB_MONTH = 0.05
"""Standard tier, per stored GB; from several public cost tools that agree, looked up 2026-11-21."""

TRAIN_IMAGES = 1_281_167
MINUTES_ON_8_A100 = {16: 14.9, 24: 21.7, 32: 28.8, 40: 35.6, 56: 49.4, 88: 77.2}
"""By epochs: ffcv-imagenet's own runs on p4d.24xlarge with validation (its assets/agg.csv)."""
SPEED_IN_A100 = {
    "T4": 320 / 1555,
    "A10G": 600 / 1555,
    "L4": 300 / 1555,
    "V100": 0.49,
    "A100": 1.0,
    "H100": 3350 / 1555,
}
"""By memory bandwidth (data sheets); the V100 as measured by NVIDIA. See docs/recipes.md."""


@dataclass(frozen=True)
class Estimate:
    """Hours of training, and the basis of that number."""

    hours: float
    basis: str


def estimate(machine: InstanceType, epochs: int, images_per_second: float | None = None) -> Estimate:
    """Return the training time from a measured throughput, or scaled from ffcv-imagenet's published times.

    Raises AwsError without a throughput if no time is published for that number of epochs.
    """
    if images_per_second:
        hours = epochs * TRAIN_IMAGES / images_per_second / 3600
        return Estimate(hours, f"from your {images_per_second:.0f} images/s, without validation")
    if epochs not in MINUTES_ON_8_A100:
        known = ", ".join(map(str, MINUTES_ON_8_A100))
        text = f"no published time for {epochs} epochs. Set --images-per-second, or use {known} epochs."
        raise AwsError(text, code="cost-unknown")
    hours = MINUTES_ON_8_A100[epochs] / 60 * 8 / (machine.gpus * SPEED_IN_A100[machine.gpu])
    if machine.gpu == "A100" and machine.gpus == 8:
        return Estimate(hours, "measured by ffcv-imagenet with its own script on this machine, not with Rebar")
    return Estimate(hours, "scaled by GPU speed from ffcv-imagenet's time on 8 A100; not measured, may be 20 % longer")


def format_estimate(
    machine: InstanceType, epochs: int, time_estimate: Estimate, price: float, price_basis: str, setup: float
) -> str:
    """Return the estimate as text; ``setup`` in hours."""
    total = time_estimate.hours + setup
    rows = [
        ("machine", f"{machine.name}: {machine.gpus} × {machine.gpu}, {machine.vcpus} vCPUs, {machine.memory_gib} GiB"),
        ("recipe", f"ResNet-50, {epochs} epochs, rn50_configs/{machine.config}"),
        ("training", f"{time_estimate.hours:.2f} h: {time_estimate.basis}"),
        ("setup", f"{setup:.2f} h: assumed (boot, installation, copying the data)"),
        ("price", f"${price:.4f}/h: {price_basis}"),
        ("cost", f"${total * price:.2f} for {total:.2f} h, plus disks and S3"),
    ]
    return "\n".join(f"{name:<9} {text}" for name, text in rows)


def machines_table(machines: Sequence[InstanceType], epochs: int, setup: float) -> str:
    """Return all instance types as a Markdown table with the time and cost of one recipe; ``setup`` in hours."""
    lines = [
        f"| machine | GPUs | GPU memory | vCPUs | memory | NVMe | $/h | {epochs} epochs | cost with setup |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in machines:
        time_estimate = estimate(each, epochs)
        nvme = f"{each.nvme_disks} × {each.nvme_gb // each.nvme_disks} GB" if each.nvme_disks else "none"
        lines.append(
            f"| {each.name} | {each.gpus} × {each.gpu} | {each.gpu_memory_gib} GB | {each.vcpus} "
            f"| {each.memory_gib} GiB | {nvme} | {each.price:.2f} | {time_estimate.hours:.2f} h "
            f"| ${(time_estimate.hours + setup) * each.price:.2f} |"
        )
    return "\n".join(lines)
