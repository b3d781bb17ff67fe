"""A moto server over HTTP with stricter checks of requests, as documented by AWS.

It records every request, can kill the client right after a call took effect, and passes the calls about volumes to
:class:`~tests.aws.disks.Disks`, which moves real bytes.
"""

import functools
import json
import os
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Protocol
from urllib.parse import parse_qsl
from xml.etree import ElementTree

os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # thousands of images and snapshots, slow to list

from moto.backends import get_backend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

ACCOUNT, REGION = "123456789012", "us-east-1"
NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15"
ZONES = {f"{REGION}{letter}" for letter in "abcdef"}
VOLUME_TYPES = {"gp2", "gp3", "io1", "io2", "st1", "sc1", "standard"}
SETS = {"DescribeVolumes": "volumeSet", "DescribeSnapshots": "snapshotSet", "DescribeInstances": "reservationSet"}
IDEMPOTENT = {"CreateVolume", "RunInstances"}
LARGEST_PAGE = 5
GPU_AMI = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
Answer = tuple[int, list[tuple[str, str]], bytes]

ElementTree.register_namespace("", NAMESPACE)


@dataclass(frozen=True)
class Request:
    """A request: ``ec2`` ``CreateVolume`` with its query parameters."""

    service: str
    action: str
    parameters: dict[str, str]
    body: bytes = b""


class DataPlane(Protocol):
    """Receives calls that succeeded."""

    def after(self, action: str, parameters: dict[str, str], answer: bytes) -> None: ...


@dataclass(frozen=True)
class ErrorResponse(Exception):
    """An error response of AWS."""

    code: str
    message: str
    status: int = 400

    def answer(self) -> Answer:
        text = (
            f"<Response><Errors><Error><Code>{self.code}</Code><Message>{self.message}</Message></Error></Errors>"
            "<RequestID>strict</RequestID></Response>"
        )
        return self.status, [("Content-Type", "text/xml")], text.encode()


@dataclass(frozen=True)
class CustomResponse(Exception):
    """A successful response for a call that moto does not support."""

    text: str

    def answer(self) -> Answer:
        return 200, [("Content-Type", "text/xml")], self.text.encode()


@dataclass
class StrictAws:
    """The WSGI application and its server."""

    requests: list[Request] = field(default_factory=list)
    disks: DataPlane | None = None
    kill_after: tuple[str, int] | None = None
    """An action and a process id: the process is killed after the action took effect, before the response."""
    refuse: dict[str, ErrorResponse | CustomResponse] = field(default_factory=dict)
    """Actions that fail, and their responses."""
    before: dict[str, Callable[[], None]] = field(default_factory=dict)
    """Callbacks before an action is processed."""
    watch: Callable[[Request], None] | None = None
    """Callback for every request to other services than EC2."""
    fail_ranges: int = 0
    """Number of range requests to S3 that fail."""
    quotas: dict[str, float] = field(default_factory=dict)
    invisible_describes: int = 0
    """Number of DescribeVolumes calls that do not know a new volume (eventual consistency)."""
    pending_describes: int = 1
    """Number of DescribeSnapshots calls that return a new snapshot as pending."""

    def __post_init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._tokens: dict[str, tuple[dict[str, str], Answer]] = {}
        self._snapshots: dict[str, int] = {}
        self._hidden: dict[str, int] = {}
        self._lock = threading.RLock()
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=_Quiet)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def reset(self) -> None:
        """Empty the account."""
        reset = urllib.request.Request(f"{self.url}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset, timeout=30).close()
        self.requests.clear()
        self.disks, self.kill_after, self.invisible_describes, self.pending_describes = None, None, 0, 1
        self.watch, self.fail_ranges = None, 0
        for kept in (self.refuse, self.before, self.quotas, self._tokens, self._snapshots, self._hidden):
            kept.clear()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def sent(self, action: str) -> list[dict[str, str]]:
        """Return the parameters of all calls of an action, without dry runs."""
        return [
            request.parameters
            for request in self.requests
            if request.action == action and request.parameters.get("DryRun") != "true"
        ]

    # -------------------------------------------------------------------------------------- WSGI

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = BytesIO(body)
        request = _parse(environ, body)
        if request.service in ("ec2", "ssm", "servicequotas"):
            with self._lock:
                status, headers, content = self._answer(request, environ)
        else:
            with self._lock:
                self.requests.append(request)
            if self.watch is not None:
                self.watch(request)
            action = next((action for action in self.refuse if request.action.startswith(action)), None)
            if action and isinstance(error := self.refuse[action], ErrorResponse):
                status, headers, content = _json_error(error)
                start_response(f"{status} strict", [*headers, ("Content-Length", str(len(content)))])
                return [content]
            if self.fail_ranges and "HTTP_RANGE" in request.parameters:
                self.fail_ranges -= 1
                status, headers, content = ErrorResponse("InternalError", "try again", 500).answer()
                start_response(f"{status} strict", [*headers, ("Content-Length", str(len(content)))])
                return [content]
            status, headers, content = self._forward(environ)
            self._kill_if_due(request.action)
        if environ["REQUEST_METHOD"] == "HEAD":
            start_response(f"{status} strict", headers)
            return []
        headers = [(name, value) for name, value in headers if name.lower() not in ("content-length", "date")]
        start_response(f"{status} strict", [*headers, ("Content-Length", str(len(content)))])
        return [content]

    def _answer(self, request: Request, environ: dict[str, Any]) -> Answer:
        self.requests.append(request)
        action, parameters = request.action, request.parameters
        try:
            if action in self.before:
                self.before[action]()
            if action in self.refuse:
                raise self.refuse[action]
            if request.service != "ec2":
                return self._other(request, environ)
            return self._ec2(action, parameters, environ)
        except CustomResponse as response:
            return response.answer()
        except ErrorResponse as error:
            return error.answer() if request.service == "ec2" else _json_error(error)

    def _ec2(self, action: str, parameters: dict[str, str], environ: dict[str, Any]) -> Answer:
        dry = parameters.get("DryRun") == "true"
        token = parameters.get("ClientToken") if action in IDEMPOTENT and not dry else None
        plain = {key: value for key, value in parameters.items() if key != "ClientToken"}
        if token in self._tokens:
            before, answer = self._tokens[token]
            if before != plain:
                raise ErrorResponse("IdempotentParameterMismatch", "the token was used with other parameters")
            return answer
        check = getattr(self, f"_check_{action}", None)
        if check:
            check(parameters)
        answer = self._forward(environ)
        if answer[0] >= 300 or dry:
            return answer
        answer = self._after(action, parameters, answer)
        if token:
            self._tokens[token] = (plain, answer)
        self._kill_if_due(action)
        return answer

    def _kill_if_due(self, action: str) -> None:
        if self.kill_after and self.kill_after[0] == action:
            os.kill(self.kill_after[1], signal.SIGKILL)
            self.kill_after = None

    def _forward(self, environ: dict[str, Any]) -> Answer:
        taken: list[Any] = []
        content = b"".join(self._moto(environ, lambda status, headers, *_: taken.append((status, headers))))
        status, headers = taken[0]
        return int(status.split()[0]), list(headers), content

    # -------------------------------------------------------------------------------------- stricter than moto

    @property
    def backend(self) -> Any:
        return get_backend("ec2")[ACCOUNT][REGION]

    def _check_CreateVolume(self, parameters: dict[str, str]) -> None:
        if parameters["AvailabilityZone"] not in ZONES:
            raise ErrorResponse("InvalidZone.NotFound", f"The zone '{parameters['AvailabilityZone']}' does not exist.")
        if parameters.get("VolumeType", "gp2") not in VOLUME_TYPES:
            raise ErrorResponse("UnknownVolumeType", f"Unknown volume type '{parameters['VolumeType']}'")
        snapshot_id = parameters.get("SnapshotId")
        if snapshot_id and int(parameters["Size"]) < self.backend.get_snapshot(snapshot_id).volume.size:
            raise ErrorResponse("InvalidParameterValue", f"Volume is smaller than snapshot {snapshot_id}")

    def _check_AttachVolume(self, parameters: dict[str, str]) -> None:
        volume = self.backend.volumes.get(parameters["VolumeId"])
        if volume is None:
            return
        instance = self.backend.get_instance(parameters["InstanceId"])
        if volume.status != "available":
            raise ErrorResponse("VolumeInUse", f"{volume.id} is already attached to an instance")
        if instance.state != "running":
            raise ErrorResponse("IncorrectState", f"Instance '{instance.id}' is not 'running'.")
        if volume.zone.name != instance.placement.zone:
            raise ErrorResponse(
                "InvalidVolume.ZoneMismatch", "The volume is not in the same Availability Zone as instance"
            )

    def _check_DetachVolume(self, parameters: dict[str, str]) -> None:
        if parameters.get("Force") == "true":
            raise ErrorResponse("StrictTest", "Force is never sent")

    def _check_DescribeVolumes(self, parameters: dict[str, str]) -> None:
        if "MaxResults" in parameters and "VolumeId.1" in parameters:
            raise ErrorResponse("InvalidParameterCombination", "VolumeId and MaxResults cannot be used together")
        if "MaxResults" in parameters and int(parameters["MaxResults"]) < 5:
            raise ErrorResponse("InvalidParameterValue", "MaxResults is from 5 to 1000")
        hidden = self._hidden.get(parameters.get("VolumeId.1", ""), 0)
        if hidden:
            self._hidden[parameters["VolumeId.1"]] = hidden - 1
            raise ErrorResponse("InvalidVolume.NotFound", f"The volume '{parameters['VolumeId.1']}' does not exist.")

    def _after(self, action: str, parameters: dict[str, str], answer: Answer) -> Answer:
        status, headers, content = answer
        if self.disks is not None:
            self.disks.after(action, parameters, content)
        if action == "CreateVolume":
            self._hidden[first(content, "volumeId")] = self.invisible_describes
        if action == "CreateSnapshot":
            snapshot_id = first(content, "snapshotId")
            self._snapshots[snapshot_id] = self.pending_describes
            content = content.replace(b"<status>completed<", b"<status>pending<")
        if action in SETS:
            content = self._describe(action, parameters, content)
        return status, headers, content

    def _describe(self, action: str, parameters: dict[str, str], content: bytes) -> bytes:
        root = ElementTree.fromstring(content)
        listed = root.find(f"{{{NAMESPACE}}}{SETS[action]}")
        if listed is None:
            return content
        for item in list(listed):
            if action == "DescribeSnapshots" and not self._settle(item):
                listed.remove(item)
            if action == "DescribeVolumes" and self._hidden.get(_text(item, "volumeId")):
                listed.remove(item)
        if "MaxResults" in parameters:
            size, start = min(LARGEST_PAGE, int(parameters["MaxResults"])), int(parameters.get("NextToken", "0"))
            items = list(listed)
            for item in items[:start] + items[start + size :]:
                listed.remove(item)
            if len(items) > start + size:
                ElementTree.SubElement(root, f"{{{NAMESPACE}}}nextToken").text = str(start + size)
        return ElementTree.tostring(root)

    def _settle(self, item: ElementTree.Element) -> bool:
        """Return whether a snapshot is the account's; new ones are pending first."""
        snapshot_id = _text(item, "snapshotId")
        if snapshot_id not in self._snapshots:
            return False
        status = item.find(f"{{{NAMESPACE}}}status")
        if self._snapshots[snapshot_id] and status is not None:
            self._snapshots[snapshot_id] -= 1
            status.text = "pending"
        return True

    def _other(self, request: Request, environ: dict[str, Any]) -> Answer:
        """Answer calls that moto does not support."""
        if request.action == "GetServiceQuota":
            code = request.parameters["QuotaCode"]
            if code not in self.quotas:
                raise ErrorResponse("NoSuchResourceException", f"no quota {code}")
            return _json({"Quota": {"QuotaCode": code, "Value": self.quotas[code]}})
        if request.action == "GetParameter" and request.parameters["Name"] == GPU_AMI:
            return _json({"Parameter": {"Name": GPU_AMI, "Type": "String", "Value": "ami-0123456789abcdef0"}})
        return self._forward(environ)


@functools.cache
def strict_aws() -> StrictAws:
    """Return the only server of the test session: moto's state is global to the process."""
    return StrictAws()


def first(content: bytes, name: str) -> str:
    """Return the text of the first element of a name in a response."""
    found = ElementTree.fromstring(content).find(f".//{{*}}{name}")
    assert found is not None, content
    assert found.text is not None
    return found.text


def _text(item: ElementTree.Element, name: str) -> str:
    return item.findtext(f"{{*}}{name}") or ""


def _parse(environ: dict[str, Any], body: bytes) -> Request:
    scope = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].split("/")
    service = scope[3] if len(scope) > 3 else ""
    target = environ.get("HTTP_X_AMZ_TARGET", "")
    if target:
        return Request(service, target.rpartition(".")[2], json.loads(body or b"{}"), body)
    if service == "ec2":
        form = dict(parse_qsl(body.decode(), keep_blank_values=True))
        return Request(service, form.pop("Action", ""), form)
    query = dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
    headers = {key: value for key, value in environ.items() if key.startswith("HTTP_")}
    return Request(service, f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}", {**query, **headers}, body[:65536])


def _json(content: dict[str, Any], status: int = 200) -> Answer:
    return status, [("Content-Type", "application/x-amz-json-1.1")], json.dumps(content).encode()


def _json_error(error: ErrorResponse) -> Answer:
    return _json({"__type": error.code, "message": error.message}, error.status)


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: Any) -> None:
        pass
