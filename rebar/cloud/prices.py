"""AWS's list prices that do not depend on a machine. US dollars, us-east-1; other regions differ.

From the public EBS pricing page as it stood in 2026; not asked again when a command runs.
"""

PRICES_OF = "us-east-1 list prices"
HOURS_A_MONTH = 730
EBS_GB_MONTH = {"gp3": 0.08, "gp2": 0.10, "st1": 0.045, "sc1": 0.015}
"""Without provisioned IOPS or throughput beyond gp3's 3,000 and 125 MiB/s."""
SNAPSHOT_GB_MONTH = 0.05
"""Standard tier, of the blocks that are stored."""
