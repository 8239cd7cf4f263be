"""Passwords never reach a terminal or a log: by print-config, errors, logs and reprs."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest
from typer.testing import CliRunner

from annheal.cli.app import app
from annheal.cli.server.roles import coordinator_settings, settings_source, shard_node_settings
from annheal.cli.server.settings import Given, format_settings
from annheal.errors import InvalidArgument
from annheal.metastore.etcd import EtcdUser
from annheal.metastore.factory import open_meta_store
from annheal.objectstore.factory import open_object_store
from annheal.runtime.host.secrets import mask_userinfo
from annheal.runtime.logging import configure_logging

SECRET = "s3cret-Pa%40ss"
URL = f"etcd://root:{SECRET}@etcd-0:2379,etcd-1:2379/prod"
MASKED = "etcd://***@etcd-0:2379,etcd-1:2379/prod"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (URL, MASKED),
        (f"cannot open '{URL}' today", f"cannot open '{MASKED}' today"),
        ("etcd://u:a@b@c@host/x", "etcd://***@host/x"),
        ("etcd://u:p/w@host/x", "etcd://***@host/x"),
        ("netloc 'u:pw@host' contains", "netloc '***@host' contains"),
        ("token@host", "token@host"),
        ("http://token@host", "http://***@host"),
        ("etcd://host:2379/prod", "etcd://host:2379/prod"),
        ("someone@example.org wrote: hello", "someone@example.org wrote: hello"),
        ("", ""),
    ],
)
def test_what_stands_before_the_host_is_masked(text: str, masked: str) -> None:
    assert mask_userinfo(text) == masked


@pytest.mark.parametrize("role", ["coordinator", "shard-node", "compactor"])
@pytest.mark.parametrize("way", ["option", "set", "environment"])
def test_print_config_masks_logins(role: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["serve", role, "--print-config"]
    if way == "option":
        arguments += ["--metadata-url", URL]
    elif way == "set":
        arguments += ["--set", f"metadata_url={URL}"]
    else:
        monkeypatch.setenv("ANNHEAL_METADATA_URL", URL)
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    assert SECRET not in found.output
    assert f'metadata_url = "{MASKED}"' in found.output


def test_settings_and_what_was_given_have_no_secret_repr() -> None:
    source = settings_source({"metadata_url": URL}, environ={})
    process, _ = coordinator_settings(source)
    assert process.metadata_url == URL
    shown = [
        repr(process),
        repr(shard_node_settings(source)),
        repr(Given(URL, "here", True)),
        repr(EtcdUser("root", SECRET)),
        format_settings(process),
    ]
    assert not [text for text in shown if SECRET in text]


BAD_META = [
    f"etcd://root:{SECRET}@host:2379/prod?unknown=1",
    f"etcd://root:{SECRET}@[host/prod",
    f"etcd://root:{SECRET}@h\u2100st/prod",
    f"etcd://root:p/{SECRET}@host/prod",
    f"http://root:{SECRET}@host/prod",
    f"sqlite://root:{SECRET}@host/prod",
    f"etcds://root:{SECRET}@host/prod?ca=/does/not/exist",
]
BAD_OBJECTS = [
    f"file://root:{SECRET}@host/path",
    f"s3://root:{SECRET}@bucket/prefix",
    f"ftp://root:{SECRET}@host/path",
    f"s3://bucket/prefix?endpoint=http://root:{SECRET}@host&allow_http=true",
    f"s3://bucket/prefix?endpoint=ftp://root:{SECRET}@host",
]


@pytest.mark.parametrize(
    ("opening", "url"),
    [(open_meta_store, url) for url in BAD_META]
    + [(open_object_store, url) for url in BAD_OBJECTS],
)
def test_refused_urls_are_not_echoed_with_their_login(opening: Any, url: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        opening(url)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__


@pytest.mark.parametrize("url", BAD_META)
def test_the_command_line_does_not_echo_them_either(url: str) -> None:
    options = ("--object-store-url", "file:///tmp/x", "--data-dir", "/tmp/annheal-never-made")
    found = CliRunner().invoke(app, ["serve", "compactor", "--metadata-url", url, *options])
    assert found.exit_code == 2, found.output
    assert SECRET not in found.output
    found = CliRunner().invoke(app, ["serve", "compactor", "--set", url])
    assert found.exit_code == 2
    assert SECRET not in found.output


def test_logs_mask_logins_and_secrets_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        configure_logging("info", stream=stream)
        log = logging.getLogger("annheal.test")
        log.info("opened %s", URL, extra={"facts": {"url": URL}})
        log.error("request signed with wJalrXUtnFEMI/K7MDENG was refused")
        try:
            raise ValueError(f"bad url {URL}")
        except ValueError:
            log.exception("failed")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    text = stream.getvalue()
    assert SECRET not in text
    assert "wJalrXUtnFEMI" not in text
    assert text.count(MASKED) == 3
