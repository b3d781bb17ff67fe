"""AWS volumes, snapshots, machines and bills, safe to repeat: ``python -m rebar.aws --help``.

Knows nothing of training, and needs neither torch nor numpy: boto3 is the extra ``aws``.
"""
