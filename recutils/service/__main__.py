"""`python -m recutils.service`: build what is missing (a version, a key), then serve."""

import argparse
import logging
import sys
from pathlib import Path

import lightgbm  # noqa: F401  before `threadpool_limits`, which sees only what has been loaded
import uvicorn
from threadpoolctl import threadpool_limits

from recutils.service.app import create_app
from recutils.service.auth import ServiceSettings, create_first_key, default_folder, load_settings
from recutils.service.build import build_book_shop
from recutils.service.middleware import JsonFormatter


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m recutils.service", description="Serve the book's shop.")
    parser.add_argument("--folder", type=Path, default=default_folder(), help="artefacts (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--rate", type=float, help="requests a second for one key (default: RECUTILS_RATE, else 50)")
    return parser.parse_args()


def prepare(folder: Path, address: str, limits: dict[str, float]) -> ServiceSettings:
    """Settings for a folder in which there is a version and a key: what is missing is made."""
    settings = load_settings(folder, **limits)
    if not (folder / "CURRENT").exists():
        print("Building what is to be served: half a minute, or some minutes where the book's cache is empty.")
        try:
            build_book_shop(folder, settings.secret)
        except ImportError as error:
            missing = f"what builds one is not installed ({error.name})"
            sys.exit(f"No version in {folder}, and {missing}; save one there.")
    return with_key(folder, address, **limits)


def with_key(folder: Path, address: str, **limits: float) -> ServiceSettings:
    """Settings for a folder in which there is a key; a first one is made and shown."""
    settings = load_settings(folder, **limits)
    if not settings.keys:
        key = create_first_key(folder)  # None where another process has just made it, and shown it
        settings = load_settings(folder, **limits)
        if key is not None:
            print(f"A key, shown this once: {key}\nThe page: {address}/#key={key}", flush=True)
    return settings


def main() -> None:
    """Serve until a signal ends it; requests that are in flight are answered first."""
    asked = arguments()
    limits = {"rate": asked.rate, "burst": 2 * asked.rate} if asked.rate else {}
    run(prepare(asked.folder, f"http://{asked.host}:{asked.port}", limits), asked.host, asked.port)


def run(settings: ServiceSettings, host: str, port: int) -> None:
    """Answer requests, until a signal ends it."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    threadpool_limits(1)  # small products: a second thread costs more than it brings
    uvicorn.run(
        create_app(settings),
        host=host,
        port=port,
        access_log=False,
        log_level="warning",
        log_config=None,
        server_header=False,
        limit_concurrency=500,
        timeout_graceful_shutdown=20,
    )


if __name__ == "__main__":
    main()
