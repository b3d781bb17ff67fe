"""AWS's list prices that do not depend on a machine. US dollars, us-east-1; other regions differ.

Looked up on 2026-11-21 in what others quote: AWS's own pricing pages fill in their figures by script, so that the
stored copies have none, and its price list was not within reach. Not asked again when a command runs.
"""

PRICES_OF = "us-east-1 list prices"
HOURS_A_MONTH = 730
EBS_GB_MONTH = {"gp3": 0.08, "gp2": 0.10, "st1": 0.045, "sc1": 0.015}
"""Without provisioned IOPS or throughput beyond gp3's 3,000 and 125 MiB/s.

gp3 and gp2: AWS's agent toolkit (aws/agent-toolkit-for-aws, ebs-optimization.md: "approximate as of early 2026").
st1 and sc1: quoted alike by several public cost tools, none of them AWS's: not verified.
"""
SNAPSHOT_GB_MONTH = 0.05
"""Standard tier, of the blocks that are stored. Quoted alike by several public cost tools: not verified."""
