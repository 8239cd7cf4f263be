"""Laws of the container image, read from the Dockerfile: no engine is needed to check them."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD_TOOLS = ("gcc", "g++", "make", "build-essential", "git", "curl")


@dataclass
class Stage:
    base: str
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def values(self, keyword: str) -> list[str]:
        return [value for word, value in self.instructions if word == keyword]


def parse(text: str) -> list[Stage]:
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    stages: list[Stage] = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        keyword, _, value = line.partition(" ")
        if keyword == "FROM":
            base, _, name = value.partition(" AS ")
            stages.append(Stage(base=base, name=name))
        elif stages:
            stages[-1].instructions.append((keyword, value.strip()))
    return stages


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    return parse((ROOT / "Dockerfile").read_text())


def test_final_stage_runs_as_the_user_of_the_chart(stages: list[Stage]) -> None:
    assert stages[-1].values("USER") == ["10001:10001"]
    after_user = [word for word, _ in stages[-1].instructions]
    assert "RUN" not in after_user[after_user.index("USER") :]


def test_final_stage_has_no_build_tools(stages: list[Stage]) -> None:
    assert len(stages) == 2
    assert all("-slim" in stage.base for stage in stages)
    for command in stages[-1].values("RUN"):
        words = shlex.split(command)
        assert not set(words) & {*BUILD_TOOLS, "pip", "apt-get"}
    assert all("--from=build" in copied for copied in stages[-1].values("COPY"))


def test_one_image_serves_all_roles(stages: list[Stage]) -> None:
    final = stages[-1]
    assert json.loads(final.values("ENTRYPOINT")[0]) == ["annheal"]
    assert final.values("STOPSIGNAL") == ["SIGTERM"]
    assert final.values("EXPOSE") == ["7700 7710 7720"]
    assert final.values("VOLUME") == ["/var/lib/annheal"]
    labels = final.values("LABEL")[0]
    assert 'org.opencontainers.image.licenses="Apache-2.0"' in labels


def test_everything_that_is_copied_is_in_the_build_context(stages: list[Stage]) -> None:
    allowed = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {word for value in stages[0].values("COPY") for word in value.split()[:-1]}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_image_is_built_from_pinned_versions(stages: list[Stage]) -> None:
    installs = [run for run in stages[0].values("RUN") if "pip install" in run]
    assert all("-c constraints.txt" in run or "--no-deps" in run for run in installs)
    assert any("-c constraints.txt" in run for run in installs)
