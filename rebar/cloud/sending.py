"""A file to S3, in parallel parts that S3 compares with their checksums."""

from pathlib import Path

from rebar.cloud.clients import Clients
from rebar.cloud.errors import told_clearly

PART_BYTES = 16 * 2**20
PARTS_AT_ONCE = 8


def send_file(clients: Clients, path: Path, bucket: str, key: str, *, sha256: str = "") -> None:
    """Upload a file, which is there whole when this returns; a checksum goes along, for ``data stage`` to compare.

    Raises CloudError.
    """
    from boto3.exceptions import S3UploadFailedError
    from boto3.s3.transfer import TransferConfig

    how = TransferConfig(
        multipart_threshold=PART_BYTES,
        multipart_chunksize=PART_BYTES,
        max_concurrency=PARTS_AT_ONCE,
        preferred_transfer_client="classic",  # the other one does not know the endpoint of the environment
    )
    more = {"ChecksumAlgorithm": "SHA256", **({"Metadata": {"sha256": sha256}} if sha256 else {})}
    with told_clearly(f"uploading {path.name} to s3://{bucket}/{key}"):
        try:
            clients("s3").upload_file(str(path), bucket, key, ExtraArgs=more, Config=how)
        except S3UploadFailedError as error:
            raise error.__context__ or error from None
