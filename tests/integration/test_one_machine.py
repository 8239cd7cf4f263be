"""All roles on one machine: as the README says it, and when two get in each other's way."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from annheal import Client
from tests.support.cluster import is_serving
from tests.support.ports import LOOPBACK, free_port
from tests.support.processes import REPOSITORY, ProcessGroup, wait_until

START = "To run the roles on one machine"
ROWS = 400


def readme_commands(folder: Path) -> tuple[dict[str, str], list[list[str]]]:
    """Return the environment and the commands of the README's block, below `folder`."""
    block = (REPOSITORY / "README.md").read_text().partition(START)[2]
    lines = block.partition("```sh\n")[2].partition("```")[0].replace("/tmp/annheal", str(folder))
    environment = dict(re.findall(r"(ANNHEAL_\w+)=(\S+)", lines))
    commands = [
        shlex.split(line.removesuffix("&"))[1:]
        for line in lines.splitlines()
        if line.startswith("annheal ")
    ]
    return environment, commands


def with_free_port(command: list[str]) -> tuple[list[str], str]:
    """Return the command with a port of its own: those of the README may be taken here."""
    address = f"{LOOPBACK}:{free_port()}"
    if "--listen" in command:
        place = command.index("--listen") + 1
        return [*command[:place], address, *command[place + 1 :]], address
    return [*command, "--listen", address], address


def test_the_roles_on_one_machine_work_as_the_readme_says() -> None:
    with ProcessGroup() as group:
        environment, commands = readme_commands(group.folder / "stores")
        assert [command[1] for command in commands] == [
            *("coordinator", "shard-node", "shard-node", "compactor"),
        ]
        addresses: list[str] = []
        for number, given in enumerate(commands):
            command, address = with_free_port(given)
            addresses.append(address)
            group.add(
                f"{number}-{command[1]}",
                command,
                environment=environment,
                is_ready=lambda address=address: is_serving(address),
            ).start(wait=False)
        for process in group.processes.values():
            process.wait_ready()
        with Client(addresses[0]) as client:
            wait_until(lambda: len(client.nodes()) == 2, timeout_s=30, what="two nodes")
            client.create_collection("c", 4, shard_count=4)
            ids = [f"r{number}" for number in range(ROWS)]
            client.upsert("c", ids, [[float(n), 1.0, 0.0, 0.0] for n in range(ROWS)])
            assert {shard.owner for shard in client.shards("c")} == {"node-0", "node-1"}
            client.flush("c")
            assert client.count("c") == ROWS
        folders = sorted(path.name for path in (group.folder / "annheal-data").iterdir())
        assert folders == ["compactor", "shard-node-node-0", "shard-node-node-1"]


def test_a_second_node_in_a_folder_is_refused_and_harms_nothing() -> None:
    with ProcessGroup() as group:
        environment, commands = readme_commands(group.folder / "stores")
        data_dir = group.folder / "shared"
        environment["ANNHEAL_DATA_DIR"] = str(data_dir)
        first, address = with_free_port(commands[1])
        group.add(
            "first", first, environment=environment, is_ready=lambda: is_serving(address)
        ).start()
        in_use = data_dir / "scratch" / "in-use"
        in_use.mkdir(parents=True)
        second = group.add("second", with_free_port(commands[2])[0], environment=environment)
        second.start(wait=False)
        assert second.wait_end() == 7, second.log()
        assert f"process {group.processes['first'].pid} (shard node node-0, since " in second.log()
        assert "--data-dir" in second.log()
        assert "Traceback" not in second.log()
        assert in_use.exists()
        assert is_serving(address)
