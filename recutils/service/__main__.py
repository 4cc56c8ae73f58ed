"""`python -m recutils.service`: build what is missing (a version, a key), then serve; or look after what is served."""

import argparse
import sys
from pathlib import Path

from recutils.service.artifact import prune, roll_back, set_canary
from recutils.service.auth import (
    SCOPES,
    ServiceSettings,
    create_first_key,
    create_key,
    default_folder,
    load_settings,
    revoke_key,
)
from recutils.service.build import build_book_shop
from recutils.service.feedback import FeedbackStore
from recutils.service.gate import THRESHOLD, release
from recutils.service.pseudonyms import pseudonym
from recutils.service.server import run


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m recutils.service", description="Serve the book's shop.")
    parser.add_argument("--folder", type=Path, default=default_folder(), help="artefacts (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--health-port", type=int, help="a port of its own for /health and /ready (default: none)")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the port (default: %(default)s)")
    parser.add_argument("--rate", type=float, help="requests a second for one key (default: RECUTILS_RATE, else 50)")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", help="without one: serve")
    add = commands.add_parser("add-key", help="make a key and show it once")
    add.add_argument("client")
    add.add_argument("--days", type=float, help="how long it holds (default: for ever)")
    add.add_argument("--scopes", default=",".join(SCOPES), help="what it may do (default: %(default)s)")
    commands.add_parser("revoke-key", help="forget a client's key").add_argument("client")
    canary = commands.add_parser("canary", help="try a version out on a share of the known households")
    canary.add_argument("version")
    canary.add_argument("--share", type=float, default=0.1, help="0 ends it (default: %(default)s)")
    gate = commands.add_parser("release", help="serve a version, if it ranks no worse than the current one")
    gate.add_argument("version")
    gate.add_argument("--threshold", type=float, default=THRESHOLD, help="how much it may fall (default: %(default)s)")
    gate.add_argument("--force", action="store_true", help="without a comparison")
    commands.add_parser("roll-back", help="serve the version before the current one")
    keep = commands.add_parser("prune", help="delete old versions")
    keep.add_argument("--keep", type=int, default=3, help="how many stay (default: %(default)s)")
    erase = commands.add_parser("erase", help="delete the feedback that was kept of a household")
    erase.add_argument("household", help="its id in the shop")
    return parser.parse_args()


def operate(asked: argparse.Namespace) -> str:
    """Do what a command asks in a folder that may be served meanwhile; returns what to say."""
    folder = asked.folder
    if asked.command == "add-key":
        return f"Shown this once: {create_key(folder, asked.client, asked.days, asked.scopes.split(','))}"
    if asked.command == "revoke-key":
        return "Revoked." if revoke_key(folder, asked.client) else f"{asked.client} has no key."
    if asked.command == "roll-back":
        return f"Current: {roll_back(folder)}"
    if asked.command == "release":
        passed, said = release(folder, asked.version, asked.threshold, asked.force)
        if not passed:
            raise ValueError(said)
        return f"Current: {asked.version}. {said}"
    if asked.command == "canary":
        set_canary(folder, asked.version, asked.share)
        return f"{asked.version}: {asked.share:.0%}"
    if asked.command == "prune":
        return f"Deleted: {' '.join(prune(folder, asked.keep)) or 'none'}"
    settings = load_settings(folder)
    erased = FeedbackStore(folder, settings.feedback).erase(pseudonym(asked.household, settings.secret))
    return f"Rows erased: {erased}"


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
    if asked.command:
        try:
            print(operate(asked))
        except ValueError as error:
            sys.exit(str(error))
        return
    limits = {"rate": asked.rate, "burst": 2 * asked.rate} if asked.rate else {}
    settings = prepare(asked.folder, f"http://{asked.host}:{asked.port}", limits)
    run(settings, asked.host, asked.port, asked.health_port, asked.workers)


if __name__ == "__main__":
    main()
