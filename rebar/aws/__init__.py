"""Manage AWS volumes, snapshots, instances and jobs: ``python -m rebar.aws --help``.

Every command can be repeated safely. Needs boto3 (the extra ``aws``), but neither torch nor numpy.
"""
