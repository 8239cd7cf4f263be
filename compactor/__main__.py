"""`python -m annheal.compactor`: one compactor. `annheal serve compactor` offers more settings."""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
from pathlib import Path

from annheal.compactor.service import serve_compactor
from annheal.compactor.settings import CompactorSettings
from annheal.index.kernels.supply import KernelSupply
from annheal.metastore.factory import open_meta_store
from annheal.objectstore.factory import open_object_store
from annheal.runtime.logging import configure_logging


def main() -> None:
    """Run until SIGTERM or SIGINT; then put the running tasks back into the queue."""
    arguments = _parser().parse_args()
    configure_logging(level=arguments.log_level)
    settings = CompactorSettings(
        worker_id=arguments.worker_id,
        scratch_dir=arguments.scratch_dir,
        memory_bytes_max=arguments.memory_bytes_max,
        threads=arguments.threads,
        poll_interval_s=arguments.poll_interval_s,
        lease_ttl_s=arguments.lease_ttl_s,
        listen=arguments.listen,
    )
    asyncio.run(_run(settings, arguments.metadata_url, arguments.object_store_url))


async def _run(settings: CompactorSettings, metadata_url: str, object_store_url: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    meta = open_meta_store(metadata_url)
    objects = open_object_store(object_store_url)
    try:
        await serve_compactor(settings, meta, objects, stop=stop, kernels=KernelSupply())
    finally:
        await objects.close()
        await meta.close()


def _parser() -> argparse.ArgumentParser:
    defaults = CompactorSettings(worker_id=f"compactor-{socket.gethostname()}")
    parser = argparse.ArgumentParser(prog="python -m annheal.compactor", description=__doc__)
    parser.add_argument("--metadata-url", required=True, help="sqlite:///path or etcd://host:2379")
    parser.add_argument("--object-store-url", required=True, help="/path or s3://bucket/prefix")
    parser.add_argument("--worker-id", default=defaults.worker_id)
    parser.add_argument("--scratch-dir", type=Path, default=defaults.scratch_dir)
    parser.add_argument("--memory-bytes-max", type=int, default=defaults.memory_bytes_max)
    parser.add_argument("--threads", type=int, default=defaults.threads, help="0: all cores")
    parser.add_argument("--poll-interval-s", type=float, default=defaults.poll_interval_s)
    parser.add_argument("--lease-ttl-s", type=float, default=defaults.lease_ttl_s)
    parser.add_argument("--listen", default=defaults.listen, help="address of the health service")
    parser.add_argument("--log-level", default="info")
    return parser


if __name__ == "__main__":
    main()
