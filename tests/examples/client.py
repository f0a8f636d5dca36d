#!/usr/bin/env python3
"""A client of loangate: downloads a file, in several runs if need be, and returns its loan.

    export LOANGATE_URL=https://localhost:8443 LOANGATE_TOKEN=…
    ./client.py download /files/9788299999014/book.epub book.epub
    ./client.py return 9788299999014

LOANGATE_CA is a file with the CA of the gate's certificate, if that CA is not a public one.
Needs Python 3.9 and its standard library.
"""

import http.client
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

CHUNK = 64 * 1024
TIMEOUT = 60  # seconds without a byte
MAX_FAILURES = 8  # failures in a row before the client gives up
TEMPORARY = {429, 502, 503, 504}


class Problem(Exception):
    """A refusal by the gate: a problem document (RFC 9457)."""

    def __init__(self, error):
        try:
            document = json.load(error)
        except ValueError:
            document = {}  # a proxy between the gate and this client answered
        self.status = error.code
        self.headers = error.headers
        self.type = document.get("type")  # a stable slug, for programs
        self.detail = document.get("detail", error.reason)  # a sentence, for people
        self.reason = document.get("reason")
        self.request_id = error.headers.get("X-Request-Id")  # for support
        wait = error.headers.get("Retry-After", "")
        self.retry_after = int(wait) if wait.isdigit() else 2  # seconds
        super().__init__(f"{self.status} {self.type} {self.reason or ''}: {self.detail}")


class Client:
    """Sends requests of one reader."""

    def __init__(self, url, token, ca=None):
        self.url = url
        self.token = token
        self.tls = ssl.create_default_context(cafile=ca)

    def send(self, method, path, headers=None):
        """Sends one request and returns the response with its body unread."""
        headers = {"Authorization": f"Bearer {self.token}", **(headers or {})}
        request = urllib.request.Request(self.url + path, method=method, headers=headers)
        try:
            return urllib.request.urlopen(request, timeout=TIMEOUT, context=self.tls)
        except urllib.error.HTTPError as error:
            raise Problem(error) from None

    def download(self, path, file):
        """Downloads a file. Continues a partial file of an earlier run, if there is one."""
        part, tag = Path(f"{file}.part"), Path(f"{file}.part.etag")
        repeat(lambda: self._fetch(path, part, tag), progress=lambda: size_of(part))
        part.rename(file)
        tag.unlink(missing_ok=True)

    def return_loan(self, isbn):
        """Ends the reader's loan of a title. Succeeds also if there is none."""
        repeat(lambda: self.send("DELETE", f"/loans/{isbn}").close())

    def _fetch(self, path, part, tag):
        """Requests what is missing, and writes it until the body ends or breaks off."""
        etag = tag.read_text() if tag.exists() else ""
        offset = size_of(part) if etag else 0
        # A request from the start may begin a loan. A request that continues never does.
        headers = {"Range": f"bytes={offset}-", "If-Range": etag} if offset else {}
        try:
            response = self.send("GET", path, headers)
        except Problem as problem:
            if problem.status == 416 and problem.headers["Content-Range"] == f"bytes */{offset}":
                return  # an earlier run has every byte
            raise
        with response:
            if response.status == 200:  # the whole file: it has changed, or this is the start
                offset = 0
                # Before the new ETag is stored: it must never stand beside bytes of another file.
                part.unlink(missing_ok=True)
            new_etag = response.headers.get("ETag", "")
            # A weak ETag cannot prove that the rest belongs to the same file.
            tag.write_text(new_etag if new_etag.startswith('"') else "")
            missing = int(response.headers.get("Content-Length", 0))
            with part.open("r+b" if offset else "wb") as out:
                out.seek(offset)
                while chunk := response.read(CHUNK):
                    out.write(chunk)
                    missing -= len(chunk)
        if missing > 0:  # read() does not report a short body
            raise ConnectionError(f"the body lacks {missing} bytes")


def size_of(file):
    return file.stat().st_size if file.exists() else 0


def repeat(attempt, progress=lambda: 0):
    """Repeats an attempt until it succeeds, fails for good, or makes no progress."""
    failures, before = 0, progress()
    while True:
        try:
            return attempt()
        except Problem as problem:
            if problem.status not in TEMPORARY:
                raise
            failure, pause = problem, problem.retry_after
        except (OSError, http.client.HTTPException) as error:  # the connection broke
            failure, pause = error, 1
        failures = 0 if progress() > before else failures + 1
        before = progress()
        if failures > MAX_FAILURES:
            raise failure
        time.sleep(pause)


def main(arguments):
    commands = {"download": (Client.download, 2), "return": (Client.return_loan, 1)}
    command, count = commands.get(arguments[0] if arguments else "", (None, 0))
    if len(arguments) != count + 1:
        sys.exit(__doc__)
    environment = os.environ
    client = Client(
        environment["LOANGATE_URL"], environment["LOANGATE_TOKEN"], environment.get("LOANGATE_CA")
    )
    try:
        command(client, *arguments[1:])
    except (Problem, OSError, http.client.HTTPException) as error:
        sys.exit(f"failed: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
