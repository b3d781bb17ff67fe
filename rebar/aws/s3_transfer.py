"""Names of ``rebar.storage.s3`` in this package."""

from rebar.storage.s3 import S3Prefix

Folder = S3Prefix
s3_folder = S3Prefix.parse
