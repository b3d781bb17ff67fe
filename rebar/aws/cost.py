"""``cost estimate|machines``: list prices, and estimates of the time and cost of a training run.

Prices are in US dollars, for us-east-1. They are constants, not queried from AWS; docs/aws.md lists their sources.
"""

from argparse import Namespace
from dataclasses import dataclass

from rebar.aws.arguments import argument, command, one_of, positive, table
from rebar.aws.capacity import spot_price
from rebar.aws.client import Aws
from rebar.aws.instances import INSTANCE_TYPE, PRICE_SOURCE, TYPES, InstanceType, instance_type
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
SETUP_HOURS = 0.25
EPOCHS = argument("--epochs", type=positive, default=16, help="default: %(default)s")


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


@command(
    "cost estimate",
    "--instance-type g5.12xlarge --epochs 16",
    INSTANCE_TYPE,
    EPOCHS,
    argument("--images-per-second", type=float, help="measured training throughput, as in the log"),
    one_of(
        argument("--spot", action="store_true", help="use the lowest current spot price in the region"),
        argument("--price", type=float, help="$/h, such as your region's"),
    ),
    changes=False,
)
def _estimate(aws: Aws, options: Namespace) -> None:
    """Estimate the hours and cost of a training run. Prints the source of each number."""
    machine = instance_type(options.instance_type)
    price, basis = machine.price, f"list price of {PRICE_SOURCE}"
    if options.spot:
        offer = spot_price(aws, machine)
        price, basis = offer.dollars, f"current spot price in {offer.zone}"
    elif options.price:
        price, basis = options.price, "from --price"
    training = estimate(machine, options.epochs, options.images_per_second)
    hours = training.hours + SETUP_HOURS
    rows = [
        ("machine", f"{machine.name}: {machine.gpus} × {machine.gpu}, {machine.vcpus} vCPUs, {machine.memory_gib} GiB"),
        ("recipe", f"ResNet-50, {options.epochs} epochs, rn50_configs/{machine.config}"),
        ("training", f"{training.hours:.2f} h: {training.basis}"),
        ("setup", f"{SETUP_HOURS:.2f} h: assumed (boot, installation, copying the data)"),
        ("price", f"${price:.4f}/h: {basis}"),
        ("cost", f"${hours * price:.2f} for {hours:.2f} h, plus disks and S3"),
    ]
    print(table(rows))


@command("cost machines", "--epochs 88", EPOCHS, changes=False)
def _machines(aws: Aws, options: Namespace) -> None:
    """Print the supported instance types as a table, with the time and cost of one recipe."""
    heads = ["machine", "GPUs", "GPU memory", "vCPUs", "memory", "NVMe", "$/h"]
    rows = [[*heads, f"{options.epochs} epochs", "cost with setup"], ["---"] * 9]
    for each in TYPES:
        hours = estimate(each, options.epochs).hours
        nvme = f"{each.nvme_disks} × {each.nvme_gb // each.nvme_disks} GB" if each.nvme_disks else "none"
        row = [each.name, f"{each.gpus} × {each.gpu}", f"{each.gpu_memory_gib} GB", str(each.vcpus)]
        row += [f"{each.memory_gib} GiB", nvme, f"{each.price:.2f}", f"{hours:.2f} h"]
        rows.append([*row, f"${(hours + SETUP_HOURS) * each.price:.2f}"])
    for row in rows:  # in Markdown, for docs/aws.md
        print(f"| {' | '.join(row)} |")
