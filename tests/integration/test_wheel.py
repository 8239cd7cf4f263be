"""What `pip install annheal` puts into an environment: one package, typed, that runs."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import textwrap
import venv
import zipfile
from pathlib import Path

import pytest

from annheal.cli.server.datadir import ADDRESS_FILE
from tests.support.cluster import is_serving
from tests.support.processes import ServerProcess, clean_environment

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = '''
"""What a user writes, with modules of their own under the names of our folders."""

from __future__ import annotations

import sys

import cli
import coordinator

from annheal import Client, errors


def best(client: Client, vector: list[float]) -> list[tuple[str, float]]:
    return [(hit.id, hit.score) for hit in client.search("books", vector=vector, k=1)]


def main(address: str) -> None:
    with Client(address) as client:
        client.create_collection("books", 3)
        client.upsert("books", ids=["a", "b"], vectors=[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        (name, score), *_ = best(client, [0.9, 0.1, 0.0])
        print(name, 0.9 < score < 1.0, cli.OURS, coordinator.OURS)
        try:
            client.search("films", vector=[1.0, 0.0, 0.0])
        except errors.NotFound as error:
            print(type(error).__name__)


main(sys.argv[1])
'''


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(one) for one in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the files that git would clone: built from a copy, nothing left in the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, tracked.split("\0")):
        file = ROOT / name
        if not (file.is_symlink() or file.exists()):
            continue
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.is_symlink():
            target.symlink_to(file.readlink())
        elif name.endswith((".py", ".pyi", ".toml", ".txt", "LICENSE", "py.typed")):
            target.write_bytes(file.read_bytes())
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--no-index", "--wheel-dir", folder, source),
        cwd=folder,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an empty environment with the wheel in it.

    Its dependencies are those of the tests, behind it on the path; the checkout is not.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"),
        *("--no-index", wheel),
        cwd=folder,
    )
    (packages,) = folder.glob("lib/python3*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture
def program(tmp_path: Path) -> Path:
    folder = tmp_path / "users"
    folder.mkdir()
    (folder / "program.py").write_text(textwrap.dedent(PROGRAM))
    for name in ("cli", "coordinator"):
        (folder / f"{name}.py").write_text('OURS = "ours"\n')
    return folder / "program.py"


def test_it_holds_one_package_and_its_types(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"annheal"}
    assert {"annheal/py.typed", "annheal/coordinator/app.py", "annheal/v1/search_pb2.pyi"} <= {
        *names
    }
    assert not [name for name in names if "test" in name.lower()]


def test_a_users_program_runs_beside_modules_of_the_same_names(
    python: Path, program: Path, tmp_path: Path
) -> None:
    """Server and program run from the wheel, in the folder that holds the user's modules."""
    address = tmp_path / "vectors" / ADDRESS_FILE
    server = ServerProcess(
        "wheel",
        [
            *(str(python.with_name("annheal")), "up", "--data-dir", str(address.parent)),
            *("--listen", "127.0.0.1:0"),
        ],
        folder=program.parent,
        environment=clean_environment({"PYTHONPATH": ""}),
        is_ready=lambda: address.exists() and is_serving(address.read_text().strip()),
    )
    server.start()
    try:
        out = run(python, program, address.read_text().strip(), cwd=program.parent)
    finally:
        server.kill()
    assert out.split() == ["a", "True", "ours", "ours", "NotFound"]
    where = run(python, "-c", "import annheal; print(annheal.__file__)", cwd=program.parent)
    assert str(python.parents[1]) in where


def test_a_users_program_is_checked_by_the_types_of_the_wheel(python: Path, program: Path) -> None:
    wrong = program.with_name("wrong.py")
    wrong.write_text('from annheal import Client\n\nClient("x").count(collection=1)\n')
    checked = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python)),
            *("--cache-dir", str(program.parent / "cache"), program.name, wrong.name),
        ],
        cwd=program.parent,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    ).stdout
    errors = [line for line in checked.splitlines() if " error: " in line]
    assert len(errors) == 1, checked
    assert errors[0].startswith("wrong.py:3:"), checked
    assert errors[0].endswith("[arg-type]"), checked


def test_the_console_script_is_installed(python: Path) -> None:
    assert "compact" in run(python.with_name("annheal"), "--help", cwd=python.parent)
