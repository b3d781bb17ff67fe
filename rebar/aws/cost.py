"""AWS's list prices that do not depend on a machine. US dollars, us-east-1; other regions differ.

Looked up on 2026-11-21 in what others quote: AWS's own pricing pages fill in their figures by script, so that the
stored copies have none, and its price list was not within reach. Not asked again when a command runs.

What a training will take and cost, and where each figure comes from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rebar.aws.client import AwsError
from rebar.aws.instances import InstanceType

PRICES_OF = "us-east-1 list prices"
HOURS_A_MONTH = 730
EBS_GB_MONTH = {"gp3": 0.08, "gp2": 0.10, "st1": 0.045, "sc1": 0.015}
"""Without provisioned IOPS or throughput beyond gp3's 3,000 and 125 MiB/s.

gp3 and gp2: AWS's agent toolkit (aws/agent-toolkit-for-aws, ebs-optimization.md: "approximate as of early 2026").
st1 and sc1: quoted alike by several public cost tools, none of them AWS's: not verified.
"""
SNAPSHOT_GB_MONTH = 0.05
"""Standard tier, of the blocks that are stored. Quoted alike by several public cost tools: not verified."""


TRAIN_IMAGES = 1_281_167
MINUTES_ON_8_A100 = {16: 14.9, 24: 21.7, 32: 28.8, 40: 35.6, 56: 49.4, 88: 77.2}
"""ffcv-imagenet's own runs on p4d.24xlarge with validation (its assets/agg.csv), by epochs."""
SPEED_IN_A100 = {
    "T4": 320 / 1555,
    "A10G": 600 / 1555,
    "L4": 300 / 1555,
    "V100": 0.49,
    "A100": 1.0,
    "H100": 3350 / 1555,
}
"""By memory bandwidth (data sheets); the V100 as NVIDIA measured it. See docs/recipes.md."""


@dataclass(frozen=True)
class Estimate:
    """Hours of training, and how they are known."""

    hours: float
    basis: str


def estimate(machine: InstanceType, epochs: int, images_per_second: float | None = None) -> Estimate:
    """How long ``epochs`` take: by a throughput you measured, else scaled from ffcv-imagenet's published times.

    Raises AwsError for a length that has no published time where no throughput is given.
    """
    if images_per_second:
        hours = epochs * TRAIN_IMAGES / images_per_second / 3600
        return Estimate(hours, f"from your {images_per_second:.0f} images/s, without validation")
    if epochs not in MINUTES_ON_8_A100:
        lengths = ", ".join(map(str, MINUTES_ON_8_A100))
        raise AwsError(
            f"there is no published time for {epochs} epochs: give --images-per-second, or one of {lengths} epochs"
        )
    hours = MINUTES_ON_8_A100[epochs] / 60 * 8 / (machine.gpus * SPEED_IN_A100[machine.gpu])
    if machine.gpu == "A100" and machine.gpus == 8:
        return Estimate(hours, "measured by ffcv-imagenet with its own script on this machine, not with Rebar")
    return Estimate(hours, "scaled by GPU speed from ffcv-imagenet's time on 8 A100; not measured, may be 20 % short")


def table(machine: InstanceType, epochs: int, guess: Estimate, price: float, price_basis: str, setup: float) -> str:
    """The estimate for a person; ``setup`` in hours."""
    total = guess.hours + setup
    rows = [
        ("machine", f"{machine.name}: {machine.gpus} × {machine.gpu}, {machine.vcpus} vCPUs, {machine.memory_gib} GiB"),
        ("recipe", f"ResNet-50, {epochs} epochs, rn50_configs/{machine.config}"),
        ("training", f"{guess.hours:.2f} h: {guess.basis}"),
        ("set-up", f"{setup:.2f} h: assumed (boot, installing, copying the data)"),
        ("price", f"${price:.4f} an hour: {price_basis}"),
        ("cost", f"${total * price:.2f} for {total:.2f} h; disks and S3 come on top"),
    ]
    return "\n".join(f"{name:<9} {text}" for name, text in rows)


def machines_table(machines: Sequence[InstanceType], epochs: int, setup: float) -> str:
    """All machines as a Markdown table, with the hours and dollars of one recipe; ``setup`` in hours."""
    lines = [
        f"| machine | GPUs | GPU memory | vCPUs | memory | NVMe | $ an hour | {epochs} epochs | cost with set-up |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in machines:
        guess = estimate(each, epochs)
        nvme = f"{each.nvme_disks} × {each.nvme_gb // each.nvme_disks} GB" if each.nvme_disks else "none"
        lines.append(
            f"| {each.name} | {each.gpus} × {each.gpu} | {each.gpu_memory_gib} GB | {each.vcpus} "
            f"| {each.memory_gib} GiB | {nvme} | {each.price:.2f} | {guess.hours:.2f} h "
            f"| ${(guess.hours + setup) * each.price:.2f} |"
        )
    return "\n".join(lines)
