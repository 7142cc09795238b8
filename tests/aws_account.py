"""An account of AWS of our own, under the policies of clusters/policies: moto, which asks IAM about every call."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore import xform_name

from tests.iam import ACCOUNT, ROOT, Policy
from tests.moto_server import ADMIN

REGION = "us-east-1"
BUCKET = "bucket"
EVERYTHING = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}

Environment = dict[str, str]
"""Environment variables that say who one is."""


@dataclass
class Account:
    """moto, and who may call it."""

    folder: Path
    endpoint: Environment
    """Where AWS is, for those who are nobody: the nodes, which have roles."""
    admin: Environment
    """The test itself."""

    def client(self, service: str, who: Environment | None = None) -> Any:
        return boto3.client(service, REGION, endpoint_url=self.endpoint["AWS_ENDPOINT_URL"], **_keys(who or self.admin))

    def user(self, name: str, policy: Policy | None = None) -> Environment:
        """A user with a policy of its own; without one, a user that is there already."""
        iam = self.client("iam")
        if policy:
            iam.create_user(UserName=name)
            iam.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return self.endpoint | {
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        }

    def role(self, name: str) -> dict[str, Any]:
        """Credentials of a role, as the metadata service of an instance gives them."""
        arn = f"arn:aws:iam::{ACCOUNT}:role/{name}"
        found = self.client("sts").assume_role(RoleArn=arn, RoleSessionName="i-1")["Credentials"]
        return {"AccessKeyId": found["AccessKeyId"], "SecretAccessKey": found["SecretAccessKey"]} | {
            "Token": found["SessionToken"],
            "Expiration": found["Expiration"].strftime("%Y-%m-%dT%H:%M:%SZ"),
            "Code": "Success",
        }

    def as_role(self, name: str) -> Environment:
        """A role in environment variables."""
        found = self.role(name)
        keys = {"AWS_ACCESS_KEY_ID": "AccessKeyId", "AWS_SECRET_ACCESS_KEY": "SecretAccessKey"}
        return self.endpoint | {name: found[key] for name, key in (keys | {"AWS_SESSION_TOKEN": "Token"}).items()}

    def notes(self) -> list[dict[str, Any]]:
        """Every call until now: who made it, and what was refused."""
        return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]

    def once_per_account(self) -> None:
        """Carry out the commands of clusters/README.md, and ask IAM about everything from now on."""
        text = (ROOT / "clusters" / "README.md").read_text()
        (block,) = re.findall(r"^## Once per AWS account\n.*?^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        self.client("iam").create_user(UserName="YOU")
        (self.folder / "clusters").symlink_to(ROOT / "clusters")
        aws = (
            self.folder / "bin" / "aws"
        )  # the command itself is not installed here: this one writes down what is asked
        aws.parent.mkdir()
        aws.write_text(f"#!/bin/sh\n(printf '%s\\t' \"$@\"; echo) >> {self.folder}/commands\n")
        aws.chmod(0o755)
        block = block.replace("ACCOUNT", ACCOUNT).replace("the-name-of-yours", BUCKET)
        path = {"PATH": f"{aws.parent}:{os.environ['PATH']}"}
        subprocess.run(["bash", "-euc", block], check=True, cwd=self.folder, env=os.environ | path, timeout=60)
        for line in (self.folder / "commands").read_text().splitlines():
            self._command(*line.split("\t")[:-1])
        self.enforce()

    def _command(self, service: str, operation: str, *options: str) -> None:
        """Carry out a command of `aws`: its operations and options have the names that botocore gives them."""
        client = self.client(service)
        if (service, operation) == ("s3", "mb"):
            client.create_bucket(Bucket=options[0].removeprefix("s3://"))
            return
        (name,) = (name for name in client.meta.service_model.operation_names if xform_name(name, "-") == operation)
        members = client.meta.service_model.operation_model(name).input_shape.members
        given = {}
        for option, value in zip(options[::2], options[1::2], strict=True):
            (member,) = (one for one in members if f"--{xform_name(one, '-')}" == option)
            file = value.removeprefix("file://")
            given[member] = value if file == value else (self.folder / file).read_text()
        getattr(client, xform_name(name))(**given)

    def enforce(self) -> None:
        """Ask IAM about every call from now on."""
        url = f"{self.endpoint['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
        request = urllib.request.Request(url, b"0", {"Content-Type": "text/plain"}, method="POST")
        urllib.request.urlopen(request, timeout=10).close()


def _keys(who: Environment) -> dict[str, str]:
    return {
        name: who[name.upper()]
        for name in ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
        if name.upper() in who
    }


@contextmanager
def account(folder: Path, host: str, port: int) -> Iterator[Account]:
    """An account in which everybody may do everything, until `enforce`."""
    endpoint = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": REGION}
    server = [sys.executable, "-m", "tests.moto_server", str(folder / "calls.jsonl"), "-H", host, "-p", str(port)]
    (folder / "calls.jsonl").touch()
    with (folder / "moto.log").open("wb") as log:
        moto = subprocess.Popen(server, stdout=log, stderr=log, cwd=ROOT)
    try:
        _wait_for(endpoint["AWS_ENDPOINT_URL"])
        found = Account(folder, endpoint, {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "yet"})
        found.admin = found.user(ADMIN, EVERYTHING)
        yield found
    finally:
        moto.kill()
        moto.wait()


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{url}/moto-api/", timeout=2).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.3)
