"""``cost estimate|machines|sweep`` and ``budget create``."""

import argparse
import re
from typing import Any

from rebar.aws.capacity import spot_price
from rebar.aws.commands.parsers import add_command, add_group, argument, clients_of, positive
from rebar.aws.cost import estimate, format_estimate, machines_table
from rebar.aws.instances import BY_NAME, PRICE_SOURCE, TYPES, instance_type
from rebar.aws.plan import mode_of
from rebar.aws.sweep import create_budget, end_expired, find_all, report

SETUP_HOURS = 0.25
EPOCHS = argument("--epochs", type=positive, default=16, help="default: %(default)s")


def _email(text: str) -> str:
    if not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an e-mail address")
    return text


def add(groups: Any) -> None:
    """Declare the commands."""
    group = add_group(groups, "cost", "Estimate costs, list resources that cost money, and terminate expired ones.")
    estimate_parser = add_command(
        group,
        "estimate",
        _estimate,
        "Estimate the hours and cost of a training run. Prints the source of each number.",
        "cost estimate --instance-type g5.12xlarge --epochs 16",
        argument("--instance-type", required=True, metavar="TYPE", help=", ".join(BY_NAME)),
        EPOCHS,
        argument("--images-per-second", type=float, help="measured training throughput, as in the log"),
        changes=False,
    )
    price = estimate_parser.add_mutually_exclusive_group()
    price.add_argument("--spot", action="store_true", help="use the lowest current spot price in the region")
    price.add_argument("--price", type=float, help="$/h, such as your region's")
    add_command(
        group,
        "machines",
        _machines,
        "Print the supported instance types as a table, with the time and cost of one recipe.",
        "cost machines --epochs 88",
        EPOCHS,
        changes=False,
    )
    add_command(
        group,
        "sweep",
        _sweep,
        "List the resources in this region, their expiry and their daily cost. Snapshots are never deleted.",
        "cost sweep --end-expired --yes",
        argument(
            "--end-expired",
            action="store_true",
            help="terminate expired instances; delete expired volumes whose content is in a verified snapshot",
        ),
    )
    add_command(
        add_group(groups, "budget", "Send e-mail when spending reaches a limit."),
        "create",
        _budget,
        "Create a monthly budget that sends e-mail at 50, 80 and 100 percent.",
        "budget create --limit 100 --email me@example.com --yes",
        argument("--limit", required=True, type=positive, help="US dollars a month"),
        argument("--email", required=True, type=_email, help="recipient"),
        argument("--only-project", action="store_true", help="count resources with the project's tag, not the account"),
    )


def _estimate(options: argparse.Namespace) -> None:
    machine = instance_type(options.instance_type)
    price, basis = machine.price, f"list price of {PRICE_SOURCE}"
    if options.spot:
        offer = spot_price(clients_of(options), machine)
        price, basis = offer.dollars, f"current spot price in {offer.zone}"
    elif options.price:
        price, basis = options.price, "from --price"
    time_estimate = estimate(machine, options.epochs, options.images_per_second)
    print(format_estimate(machine, options.epochs, time_estimate, price, basis, SETUP_HOURS))


def _machines(options: argparse.Namespace) -> None:
    print(machines_table(TYPES, options.epochs, SETUP_HOURS))


def _sweep(options: argparse.Namespace) -> None:
    clients = clients_of(options)
    found = find_all(clients, options.project)
    print(report(found))
    if options.end_expired:
        end_expired(clients, found, mode_of(options))


def _budget(options: argparse.Namespace) -> None:
    clients, only_project = clients_of(options), options.only_project
    create_budget(clients, options.project, options.limit, options.email, mode_of(options), only_project=only_project)
