"""AWS volumes, snapshots, machines and jobs, with commands that are safe to repeat: ``python -m rebar.aws --help``.

Needs boto3 (the extra ``aws``), but neither torch nor numpy.
"""
