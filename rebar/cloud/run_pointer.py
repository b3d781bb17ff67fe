"""Reading and replacing a run's ``run.json`` in S3, so that of two who upload at a time none is lost."""

from rebar.cloud.clients import Clients
from rebar.cloud.errors import CloudError, code_of, told_clearly
from rebar.cloud.s3_urls import Folder
from rebar.run_manifest import MANIFEST, RunManifest


def read_pointer(clients: Clients, place: Folder) -> tuple[RunManifest | None, str]:
    """What a run's place holds, and the version of the file; (None, "") for nothing. Raises CloudError."""
    from botocore.exceptions import ClientError

    with told_clearly(f"reading {place}/{MANIFEST}"):
        try:
            answer = clients("s3").get_object(Bucket=place.bucket, Key=place.key(MANIFEST))
        except ClientError as error:
            if code_of(error) in ("NoSuchKey", "404"):
                return None, ""
            raise
        text = answer["Body"].read()
    try:
        return RunManifest.from_json(text), str(answer["ETag"])
    except ValueError:
        raise CloudError(
            f"{place}/{MANIFEST} is damaged, or of another version of Rebar: take another run id"
        ) from None


def write_pointer(clients: Clients, place: Folder, pointer: RunManifest, *, replaces: str) -> bool:
    """Replace the file of a version ("": there was none); False where it is another meanwhile."""
    from botocore.exceptions import ClientError

    condition = {"IfMatch": replaces} if replaces else {"IfNoneMatch": "*"}
    where = {"Bucket": place.bucket, "Key": place.key(MANIFEST)}
    with told_clearly(f"writing {place}/{MANIFEST}"):
        try:
            clients("s3").put_object(**where, Body=pointer.to_json(), ChecksumAlgorithm="SHA256", **condition)
        except ClientError as error:
            if code_of(error) in ("PreconditionFailed", "ConditionalRequestConflict"):
                return False
            raise
    return True
