"""A small in-memory server of Google Cloud Storage's JSON API on loopback, with faults on request.

It knows what TensorStore, gcsfs and google-cloud-storage ask for: generations and their preconditions, ranges, listing
with a delimiter and pages, the three kinds of upload, copies, deletion one by one and in batches. Use:

  with serve("bucket") as server:
    environment = server.environment      # for processes that are to take it for the cloud
    server.faults = Faults(seed=1, rate=0.05, delays=(0.1, 1.0))
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import email.parser
import hashlib
import itertools
import json
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

import google_crc32c


class Object(NamedTuple):
  generation: int
  content: bytes
  content_type: str
  created: str


class Faults:
  """Chooses, for a share of the requests, what goes wrong: (seed, number of the request) -> fault or None."""

  KINDS = (
    "429",  # too many requests
    "503",
    "503 afterwards",  # it was carried out, and is said to have failed
    "cut",  # the connection, before anything was done
    "cut afterwards",
    "cut within",  # the answer's body ends half-way
    "delay",
  )

  def __init__(self, *, seed: int, rate: float, delays: tuple[float, float]):
    self._random, self._rate, self._delays = random.Random(seed), rate, delays
    self._lock = threading.Lock()
    self.count: Counter[str] = Counter()

  def draw(self) -> tuple[str, float] | None:
    """The kind, and the seconds of a delay."""
    with self._lock:
      if self._random.random() >= self._rate:
        return None
      kind = self._random.choice(self.KINDS)
      self.count[kind] += 1
      low, high = self._delays
      return kind, low * (high / low) ** self._random.random()


class GcsServer(ThreadingHTTPServer):
  daemon_threads = True
  request_queue_size = 256

  def __init__(self, *buckets: str):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.buckets: dict[str, dict[str, Object]] = {name: {} for name in buckets}
    self.uploads: dict[str, dict[str, Any]] = {}
    self.lock = threading.Lock()
    self.generations = itertools.count(1_700_000_000_000_000)
    self.faults: Faults | None = None
    self.requests: Counter[str] = Counter()  # by what was asked for

  @property
  def environment(self) -> dict[str, str]:
    """Makes a process's libraries talk to this server."""
    url = f"http://127.0.0.1:{self.server_address[1]}"
    return {
      "STORAGE_EMULATOR_HOST": url,
      "TENSORSTORE_GCS_HTTP_URL": url,
      "EPATH_USE_TF": "0",
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "dummy",
      "GOOGLE_CLOUD_PROJECT": "test",
      "NO_GCE_CHECK": "true",
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
      "FSSPEC_GCS_TOKEN": "anon",
    }

  def names(self, bucket: str, prefix: str = "") -> list[str]:
    with self.lock:
      return sorted(name for name in self.buckets[bucket] if name.startswith(prefix))

  def handle_error(self, request, client_address) -> None:
    """A client that is gone is no news."""


@contextlib.contextmanager
def serve(*buckets: str) -> Iterator[GcsServer]:
  server = GcsServer(*buckets)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield server
  finally:
    server.shutdown()
    server.server_close()
    thread.join()


class _Answer(NamedTuple):
  status: int
  body: bytes = b""
  headers: dict[str, str] = {}
  content_type: str = "application/json"


def _json(content: Any, **headers: str) -> _Answer:
  return _Answer(200, json.dumps(content).encode(), headers)


def _error(status: int, reason: str = "") -> _Answer:
  error = {"code": status, "message": reason or str(status), "errors": [{"reason": reason, "message": reason}]}
  return _Answer(status, json.dumps({"error": error}).encode())


def _describe(bucket: str, name: str, obj: Object) -> dict[str, Any]:
  return {
    "kind": "storage#object",
    "id": f"{bucket}/{name}/{obj.generation}",
    "name": name,
    "bucket": bucket,
    "generation": str(obj.generation),
    "metageneration": "1",
    "contentType": obj.content_type,
    "size": str(len(obj.content)),
    "timeCreated": obj.created,
    "updated": obj.created,
    "storageClass": "STANDARD",
    "etag": str(obj.generation),
    "md5Hash": base64.b64encode(hashlib.md5(obj.content).digest()).decode(),
    "crc32c": _crc32c(obj.content),
    "mediaLink": f"/download/storage/v1/b/{bucket}/o/{quote(name, safe='')}",
  }


def _crc32c(content: bytes) -> str:
  return base64.b64encode(google_crc32c.Checksum(content).digest()).decode()


class _Handler(BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  disable_nagle_algorithm = True
  server: GcsServer

  def log_message(self, *arguments) -> None:
    pass

  def do(self) -> None:
    body = self._read_body()
    url = urlsplit(self.path)
    query = {name: values[-1] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
    fault, seconds = (self.server.faults and self.server.faults.draw()) or (None, 0.0)
    if fault == "delay":
      time.sleep(seconds)
    if fault in ("429", "503"):
      return self._send(_error(int(fault), "injected"))
    if fault == "cut":
      return self._cut()
    answer = self._route(url.path, query, body)
    if fault == "503 afterwards":
      return self._send(_error(503, "injected"))
    if fault == "cut afterwards":
      return self._cut()
    return self._send(answer, is_cut=fault == "cut within")

  do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do  # noqa: N815

  def _read_body(self) -> bytes:
    if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
      return self.rfile.read(int(self.headers.get("Content-Length") or 0))
    pieces = []
    while size := int(self.rfile.readline().split(b";")[0], 16):
      pieces.append(self.rfile.read(size))
      self.rfile.readline()
    self.rfile.readline()
    return b"".join(pieces)

  def _send(self, answer: _Answer, *, is_cut: bool = False) -> None:
    has_body = self.command != "HEAD" and answer.status not in (204, 304)
    self.send_response(answer.status)
    self.send_header("Content-Type", answer.content_type)
    self.send_header("Content-Length", str(len(answer.body)))
    for name, value in answer.headers.items():
      self.send_header(name.replace("_", "-"), value)
    self.end_headers()
    if has_body:
      self.wfile.write(answer.body[: len(answer.body) // 2] if is_cut else answer.body)
    if is_cut:
      self._cut()

  def _cut(self) -> None:
    self.close_connection = True
    with contextlib.suppress(OSError):
      self.wfile.flush()
      self.connection.shutdown(socket.SHUT_RDWR)

  def _route(self, path: str, query: dict[str, str], body: bytes) -> _Answer:
    path = re.sub(r"^(/download)?/storage/v1", "", path)
    if match := re.fullmatch(r"/(?:upload|resumable/upload)(?:/storage/v1)?/b/([^/]+)/o", path):
      return self._upload(unquote(match[1]), query, body)
    if path.startswith("/batch"):
      return self._batch(body)
    if match := re.fullmatch(r"/b/([^/]+)", path):
      name = unquote(match[1])
      known = name in self.server.buckets
      return _json({"kind": "storage#bucket", "name": name, "id": name}) if known else _error(404, "no bucket")
    if match := re.fullmatch(r"/b/([^/]+)/o", path):
      return self._list(unquote(match[1]), query)
    if match := re.fullmatch(r"/b/([^/]+)/o/([^/]+)/(copyTo|rewriteTo)/b/([^/]+)/o/([^/]+)", path):
      return self._copy(*map(unquote, match.groups()), query)
    if match := re.fullmatch(r"/b/([^/]+)/o/(.+)", path) or re.fullmatch(r"/([^/]+)/(.+)", path):
      return self._object(unquote(match[1]), unquote(match[2]), query)
    return _error(404, f"no route {path}")

  def _precondition(self, found: Object | None, query: dict[str, str]) -> int | None:
    """The status with which a request is refused."""
    generation = found.generation if found else 0
    if int(query.get("ifGenerationMatch", generation)) != generation:
      return 412
    if query.get("ifGenerationNotMatch") == str(generation):
      return 304 if self.command in ("GET", "HEAD") else 412
    return None

  def _put(self, bucket: str, name: str, content: bytes, content_type: str | None, query: dict[str, str]) -> _Answer:
    self.server.requests["write"] += 1
    with self.server.lock:
      objects = self.server.buckets.get(bucket)
      if objects is None:
        return _error(404, "no bucket")
      if refused := self._precondition(objects.get(name), query):
        return _error(refused, "conditionNotMet")
      now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
      obj = Object(next(self.server.generations), content, content_type or "application/octet-stream", now)
      objects[name] = obj
    return _json(_describe(bucket, name, obj), x_goog_generation=str(obj.generation))

  def _object(self, bucket: str, name: str, query: dict[str, str]) -> _Answer:
    if self.command == "DELETE":
      self.server.requests["delete"] += 1
      with self.server.lock:
        found = self.server.buckets.get(bucket, {}).get(name)
        if refused := self._precondition(found, query):
          return _error(refused, "conditionNotMet")
        if found is None:
          return _error(404, "no object")
        del self.server.buckets[bucket][name]
      return _Answer(204)
    with self.server.lock:
      found = self.server.buckets.get(bucket, {}).get(name)
    if found is None:
      self.server.requests["read"] += 1
      return _error(404, f"No such object: {bucket}/{name}")
    if refused := self._precondition(found, query):
      return _Answer(refused, headers={"x_goog_generation": str(found.generation)})
    if query.get("alt") != "media" and "/b/" in self.path:
      self.server.requests["stat"] += 1
      return _json(_describe(bucket, name, found))
    self.server.requests["read"] += 1
    headers = {
      "x_goog_generation": str(found.generation),
      "x_goog_stored_content_length": str(len(found.content)),
      "x_goog_hash": f"crc32c={_crc32c(found.content)}",
      "ETag": str(found.generation),
      "Accept_Ranges": "bytes",
    }
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
    size = len(found.content)
    if not wanted or not size:
      return _Answer(200, found.content, headers, found.content_type)
    begin = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
    end = min(size, int(wanted[2]) + 1) if wanted[1] and wanted[2] else size
    if begin >= size:
      return _Answer(416, headers={"Content_Range": f"bytes */{size}"})
    headers["Content_Range"] = f"bytes {begin}-{end - 1}/{size}"
    return _Answer(206, found.content[begin:end], headers, found.content_type)

  def _copy(self, bucket: str, name: str, how: str, to_bucket: str, to_name: str, query: dict[str, str]) -> _Answer:
    self.server.requests["copy"] += 1
    with self.server.lock:
      source = self.server.buckets.get(bucket, {}).get(name)
      if source is None:
        return _error(404, "no object")
      target = self.server.buckets[to_bucket]
      if refused := self._precondition(target.get(to_name), query):
        return _error(refused, "conditionNotMet")
      target[to_name] = source._replace(generation=next(self.server.generations))
      described = _describe(to_bucket, to_name, target[to_name])
    if how == "copyTo":
      return _json(described)
    size = described["size"]
    rewritten = {"kind": "storage#rewriteResponse", "done": True, "totalBytesRewritten": size, "objectSize": size}
    return _json(rewritten | {"resource": described})

  def _list(self, bucket: str, query: dict[str, str]) -> _Answer:
    self.server.requests["list"] += 1
    if bucket not in self.server.buckets:
      return _error(404, "no bucket")
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    start, end, after = query.get("startOffset", ""), query.get("endOffset"), query.get("pageToken", "")
    with self.server.lock:
      objects = dict(self.server.buckets[bucket])
    entries: dict[str, dict | None] = {}  # a name, or a prefix that stands for all below it
    for name in sorted(objects):
      if name.startswith(prefix) and name >= start and (not end or name < end):
        below = name[len(prefix) :]
        if delimiter and delimiter in below:
          entries.setdefault(prefix + below.split(delimiter)[0] + delimiter)
        else:
          entries[name] = _describe(bucket, name, objects[name])
    rest = [name for name in entries if name > after]
    page = rest[: int(query.get("maxResults", 1000))]
    answer: dict[str, Any] = {
      "kind": "storage#objects",
      "items": [entries[name] for name in page if entries[name]],
      "prefixes": [name for name in page if not entries[name]],
    }
    return _json(answer | ({"nextPageToken": page[-1]} if len(page) < len(rest) else {}))

  def _upload(self, bucket: str, query: dict[str, str], body: bytes) -> _Answer:
    if "upload_id" in query:
      return self._resume(query["upload_id"], body)
    kind = query.get("uploadType", "media")
    if kind == "media":
      return self._put(bucket, query["name"], body, self.headers.get("Content-Type"), query)
    if kind == "multipart":
      head, content = _parts(self.headers["Content-Type"], body)
      about = json.loads(head.payload or b"{}")
      content_type = about.get("contentType") or content.content_type
      return self._put(bucket, query.get("name") or about["name"], content.payload, content_type, query)
    about = json.loads(body) if body else {}
    upload_id = str(next(self.server.generations))
    self.server.uploads[upload_id] = {
      "bucket": bucket,
      "name": query.get("name") or about["name"],
      "content": bytearray(),
      "content_type": about.get("contentType") or self.headers.get("X-Upload-Content-Type"),
      "query": query,
    }
    location = (
      f"http://{self.headers['Host']}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={upload_id}"
    )
    return _Answer(200, headers={"Location": location, "X_GUploader_UploadID": upload_id})

  def _resume(self, upload_id: str, body: bytes) -> _Answer:
    upload = self.server.uploads.get(upload_id)
    if upload is None:
      return _error(404, "no upload")
    if "done" in upload:  # its answer was lost, and it is asked for again
      return upload["done"]
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", self.headers.get("Content-Range") or "")
    content = upload["content"]
    if not found or found[1] is not None:
      content[int(found[1]) if found else len(content) :] = body
    if found and (found[2] == "*" or len(content) < int(found[2])):
      return _Answer(308, headers={"Range": f"bytes=0-{len(content) - 1}"} if content else {})
    answer = self._put(upload["bucket"], upload["name"], bytes(content), upload["content_type"], upload["query"])
    upload["done"] = answer
    return answer

  def _batch(self, body: bytes) -> _Answer:
    answers = []
    for part in _parts(self.headers["Content-Type"], body):
      request = re.match(rb"(DELETE|GET) (\S+)", part.payload)
      path = re.sub(r"^(https?://[^/]+)?/storage/v1", "", urlsplit(request[2].decode()).path)
      found = re.fullmatch(r"/b/([^/]+)/o/(.+)", path)
      bucket, name = map(unquote, found.groups())
      self.server.requests["delete" if request[1] == b"DELETE" else "stat"] += 1
      with self.server.lock:
        objects = self.server.buckets.get(bucket, {})
        obj = objects.pop(name, None) if request[1] == b"DELETE" else objects.get(name)
      status = "404 Not Found" if obj is None else "204 No Content" if request[1] == b"DELETE" else "200 OK"
      content = json.dumps(_describe(bucket, name, obj)) if status.startswith("200") else ""
      answers.append(
        f"--batch\r\nContent-Type: application/http\r\nContent-ID: <response-{part.content_id}>\r\n\r\n"
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n{content}\r\n"
      )
    return _Answer(200, ("".join(answers) + "--batch--\r\n").encode(), {}, "multipart/mixed; boundary=batch")


class _Part(NamedTuple):
  payload: bytes
  content_type: str | None
  content_id: str


def _parts(content_type: str, body: bytes) -> list[_Part]:
  """The parts of a multipart body."""
  boundary = re.search(r"boundary=[\"']?([^\"';]+)", content_type)[1].encode()
  parts = []
  for part in body.split(b"--" + boundary)[1:-1]:
    head, _, payload = part.lstrip(b"\r\n").replace(b"\r\n\r\n", b"\n\n", 1).partition(b"\n\n")
    headers = email.parser.HeaderParser().parsestr(head.decode())
    payload = payload.removesuffix(b"\n").removesuffix(b"\r")
    parts.append(_Part(payload, headers.get("Content-Type"), (headers.get("Content-ID") or "").strip("<>")))
  return parts
