"""``cost estimate|machines|sweep`` and ``budget create``."""

import argparse
import re
from typing import Any

from rebar.aws.capacity import spot_price
from rebar.aws.commands.parsers import add_command, add_group, clients_of, positive
from rebar.aws.cost import estimate, machines_table, table
from rebar.aws.instances import BY_NAME, PRICES_FROM, TYPES, instance_type
from rebar.aws.plan import mode_of
from rebar.aws.sweep import create_budget, end_expired, find_all, report

SETUP_HOURS = 0.25


def add(groups: Any) -> None:
    """Declare the commands."""
    group = add_group(groups, "cost", "What it will cost, and what it costs now.")
    guess = add_command(
        group,
        "estimate",
        _estimate,
        "Hours and money of a training, and where each figure comes from.",
        "cost estimate --instance-type g5.12xlarge --epochs 16",
        changes=False,
    )
    guess.add_argument("--instance-type", required=True, metavar="TYPE", help=", ".join(BY_NAME))
    guess.add_argument("--epochs", type=positive, default=16, help="default: %(default)s")
    guess.add_argument("--images-per-second", type=float, help="what you measured: the log's training throughput")
    price = guess.add_mutually_exclusive_group()
    price.add_argument("--spot", action="store_true", help="ask AWS for the lowest spot price in the region now")
    price.add_argument("--price", type=float, help="US dollars an hour, such as your region's")

    machines = add_command(
        group,
        "machines",
        _machines,
        "The machines Rebar has configurations for, as a table: what they have, and what a recipe takes and costs.",
        "cost machines --epochs 88",
        changes=False,
    )
    machines.add_argument("--epochs", type=positive, default=16, help="default: %(default)s")

    sweep = add_command(
        group,
        "sweep",
        _sweep,
        "What is running, detached or expired in this region, and what it costs a day. Snapshots are never ended.",
        "cost sweep --end-expired --yes",
    )
    sweep.add_argument(
        "--end-expired",
        action="store_true",
        help="terminate expired machines; delete expired volumes that a verified snapshot holds",
    )

    budgets = add_group(groups, "budget", "An e-mail before the bill.")
    create = add_command(
        budgets,
        "create",
        _budget,
        "Create a monthly budget that sends e-mail at 50, 80 and 100 per cent.",
        "budget create --limit 100 --email me@example.com --yes",
    )
    create.add_argument("--limit", required=True, type=positive, help="US dollars a month")
    create.add_argument("--email", required=True, type=_email, help="who is told")
    create.add_argument(
        "--only-project", action="store_true", help="count what carries the project's tag, not the whole account"
    )


def _email(text: str) -> str:
    if not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no e-mail address")
    return text


def _estimate(options: argparse.Namespace) -> None:
    machine = instance_type(options.instance_type)
    price, basis = machine.price, f"list price of {PRICES_FROM}"
    if options.spot:
        offer = spot_price(clients_of(options), machine)
        price, basis = offer.dollars, f"spot in {offer.zone}, asked now; it changes"
    elif options.price:
        price, basis = options.price, "as you said"
    guess = estimate(machine, options.epochs, options.images_per_second)
    print(table(machine, options.epochs, guess, price, basis, SETUP_HOURS))


def _machines(options: argparse.Namespace) -> None:
    print(machines_table(TYPES, options.epochs, SETUP_HOURS))


def _sweep(options: argparse.Namespace) -> None:
    clients = clients_of(options)
    found = find_all(clients, options.project)
    print(report(found))
    if options.end_expired:
        end_expired(clients, found, mode_of(options))


def _budget(options: argparse.Namespace) -> None:
    create_budget(
        clients_of(options),
        options.project,
        options.limit,
        options.email,
        mode_of(options),
        only_project=options.only_project,
    )
