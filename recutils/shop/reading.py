"""A shop's files to its baskets, with an account in which every row stands."""

import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
from scipy import sparse

from recutils.data.schema import ANONYMOUS, Baskets, StoreError
from recutils.shop import sql
from recutils.shop.files import ShopFile, find_files
from recutils.shop.lines import LineTable, ReadSettings, connect, make_lines

Progress = Callable[[str], None]
UNDATED = np.datetime64("2000-01-03", "ns")  # the moment of baskets whose own is unknown


@dataclass
class Shop:
    """A shop as it was understood.

    - `baskets`: in order of time; `households` (n_households,): their ids; `values` (n_baskets,): what was paid, nan
      where unknown
    - `items`: a row an item, the most sold first: `item_id`, text columns (`name`, `department`, ...), `lines`,
      `units`, `spend`, `price` (median of one unit); `words`: which columns hold words
    - `account`: `what`, `lines`: rows read, used, and left out for each reason; it adds up
    - `notes`: what was decided on reading, a sentence each; `fields`: file, field and column
    - `promotions`: a row an item that was sold at a reduced price, see `promotion_effects`
    - `known`: which of `household`, `time`, `hours`, `price`, `words`, `promotion` there are
    """

    name: str
    baskets: Baskets
    households: pd.Index
    values: np.ndarray
    items: pd.DataFrame
    words: list[str]
    account: pd.DataFrame
    notes: list[str]
    fields: pd.DataFrame
    promotions: pd.DataFrame
    known: set[str]
    excluded: list[str] = field(default_factory=list)


def load_shop_settings(folder: Path) -> ReadSettings:
    """What `shop.toml` of a folder says. Raises StoreError where it cannot be read."""
    file = folder / "shop.toml"
    if not file.exists():
        return ReadSettings()
    try:
        known = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"shop.toml cannot be read ({error}); mend it or remove it.") from error
    if wrong := set(known) - {"columns", "exclude", "dates"}:
        raise StoreError(f"shop.toml has {', '.join(sorted(wrong))}; it may have columns, exclude and dates.")
    return ReadSettings(**known)


def save_shop_settings(folder: Path, settings: ReadSettings) -> None:
    """Write `shop.toml`, from which the next call reads."""

    def text(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    lines = [f"dates = {text(settings.dates)}", f"exclude = [{', '.join(map(text, settings.exclude))}]", "[columns]"]
    lines += [f"{field} = {text(column)}" for field, column in settings.columns.items()]
    (folder / "shop.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_shop(folder: Path, settings: ReadSettings | None = None, progress: Progress = lambda step: None) -> Shop:
    """Read a shop's folder (or one file). `settings`: else what `shop.toml` says.

    Memory is bounded, however many lines there are: DuckDB reads, and what does not fit lies on the disk. Raises
    StoreError with the file and the mend where it cannot be used.
    """
    folder = Path(folder)
    settings = settings or load_shop_settings(folder if folder.is_dir() else folder.parent)
    with tempfile.TemporaryDirectory(prefix="recutils-shop-") as scratch:
        try:
            return _read(folder, Path(scratch), settings, progress)
        except duckdb.Error as error:
            first = str(error).splitlines()[0]
            raise StoreError(f"{folder.name} cannot be read as it is ({first}); write the files again.") from error


def _read(folder: Path, scratch: Path, settings: ReadSettings, progress: Progress) -> Shop:
    progress("looking at the files")
    files = find_files(folder, scratch, settings.columns)
    _check_named(files, settings)
    with connect(scratch) as con:
        _set_clock(con, files)
        progress("reading lines")
        table = make_lines(con, files, settings)
        account = _account(table)
        progress("making baskets")
        _name_baskets(table)
        return _assemble(folder, files, table, account)


def _check_named(files: list[ShopFile], settings: ReadSettings) -> None:
    """Raises StoreError where a column that was named is in no file."""
    for name, column in settings.columns.items():
        if not any(column in f.columns for f in files):
            has = "; ".join(f"{f.name}: {', '.join(f.columns[:12])}" for f in files)
            raise StoreError(f"No file has the column {column!r} that was named for {name}. The columns are: {has}.")


def _set_clock(con: Any, files: list[ShopFile]) -> None:
    """Moments of parquet files with a zone are read on that zone's clock."""
    for note in (note for f in files for note in f.notes if "on the clock of" in note):
        con.execute(f"SET TimeZone={sql.quoted(note.rsplit(' ', 1)[1].rstrip('.'))}")


def _account(table: LineTable) -> pd.DataFrame:
    """Rows read, used, left out by reason. Raises StoreError where none is used."""
    counts = table.con.execute("SELECT reason, count(*) FROM lines GROUP BY reason").fetchall()
    left = sorted(((r, n) for r, n in counts if r is not None), key=lambda pair: (-pair[1], pair[0]))
    read, used = sum(n for _, n in counts), sum(n for r, n in counts if r is None)
    rows = [(f"{table.unit} read", read), *((f"left out: {r}", n) for r, n in left), (f"{table.unit} used", used)]
    account = pd.DataFrame(rows, columns=["what", "lines"])
    if not used:
        said = "; ".join(f"{n} {r}" for r, n in left)
        raise StoreError(f"No line can be used ({said}). Look at the columns, or name them with --columns.")
    return account


def _name_baskets(table: LineTable) -> None:
    """The column `key` of `lines`: what makes a basket, with store, day and household where the number repeats."""
    con, known = table.con, table.known
    parts = ["basket"] if "basket" in known or table.unit != "lines" else ["household", "CAST(moment AS DATE)"]
    if parts[0] == "household":
        table.notes.append("There is no receipt number; what a customer bought on a day is taken as one basket.")
    else:
        tests = {"store": "store", "household": "household", "CAST(moment AS DATE)": "time"}
        for value, name in tests.items():
            if name in known and _repeats(con, parts, value):
                parts.append(value)
                what = {"store": "store", "household": "customer", "time": "day"}[name]
                table.notes.append(f"Receipt numbers are used again; a basket is one number of one {what}.")
    key = "concat_ws(chr(31), " + ", ".join(f"coalesce(CAST({p} AS VARCHAR), '')" for p in parts) + ")"
    con.execute(f"CREATE VIEW used AS SELECT *, {key} AS key FROM lines WHERE reason IS NULL")


def _repeats(con: Any, parts: list[str], value: str) -> bool:
    """Do more than one in a hundred baskets (for customers: any) have two values?"""
    n, more = con.execute(f"""
        SELECT count(*), count(*) FILTER (low <> high) FROM (SELECT min({value}) AS low, max({value}) AS high FROM
        lines WHERE reason IS NULL GROUP BY {", ".join(parts)})""").fetchone()
    return more > (0 if value == "household" else 0.01 * n)


def _assemble(folder: Path, files: list[ShopFile], table: LineTable, account: pd.DataFrame) -> Shop:
    con = table.con
    con.execute("""
        CREATE TABLE item AS SELECT item AS item_id, row_number() OVER (ORDER BY n DESC, item) - 1 AS code, n AS lines,
            units, spend, price FROM (SELECT item, count(*) AS n, sum(quantity) AS units,
            sum(quantity * price) AS spend, approx_quantile(price, 0.5) AS price FROM used GROUP BY item)""")
    con.execute("""
        CREATE TABLE basket AS SELECT key, moment, household, value, (row_number() OVER (ORDER BY moment, key) - 1)::INT
            AS code FROM (SELECT key, min(moment) AS moment, max(household) AS household, sum(quantity * price) AS value
            FROM used GROUP BY key)""")
    heads = con.execute("SELECT moment, household, value FROM basket ORDER BY code").df()
    households = pd.Index(np.sort(heads["household"].dropna().unique()), name="household_id")
    numbers = households.get_indexer(heads["household"]).astype(np.int32)
    items = _items(con, files, table)
    matrix = _matrix(con, len(heads), len(items))
    moments = heads["moment"].to_numpy("datetime64[ns]")
    moments = np.where(np.isnat(moments), UNDATED, moments)
    known = _known(table, heads, items)
    baskets = Baskets(matrix, np.where(heads["household"].isna(), ANONYMOUS, numbers), moments)
    values = heads["value"].to_numpy(float)
    fields = pd.DataFrame(
        [(f.name, name, column) for f in files for name, column in f.fields.items()],
        columns=["file", "field", "column"],
    )
    words = [c for c in items if c not in ("item_id", "lines", "units", "spend", "price")] if "words" in known else []
    excluded = [
        row[0]
        for row in con.execute(
            "SELECT DISTINCT coalesce(name, item) FROM lines WHERE reason LIKE '%postage%' ORDER BY 1 LIMIT 20"
        ).fetchall()
    ]
    promotions = promotion_effects(con, known)
    name = folder.stem if folder.is_file() else folder.resolve().name
    return Shop(
        name, baskets, households, values, items, words, account, table.notes, fields, promotions, known, excluded
    )


def _known(table: LineTable, heads: pd.DataFrame, items: pd.DataFrame) -> set[str]:
    """Which kinds of evidence there are."""
    found = {"time"} & table.known
    found |= {"hours"} if table.hours else set()
    found |= {"household"} if heads["household"].notna().any() else set()
    found |= {"price"} if items["price"].notna().any() else set()
    found |= {"promotion"} & table.known
    named = (items["name"] != items["item_id"]).any() or items["name"].str.contains(
        r"[^\W\d_]{3}", regex=True
    ).mean() > 0.5
    return found | ({"words"} if named else set())


def _matrix(con: Any, n_baskets: int, n_items: int) -> sparse.csr_matrix:
    """The 0/1 matrix (n_baskets, n_items), two lines of one item in one basket being one purchase."""
    pairs = con.execute("""
        SELECT basket.code::INT AS row, item.code::INT AS place FROM used JOIN basket ON used.key = basket.key
        JOIN item ON used.item = item.item_id""").fetchnumpy()
    ones = np.ones(len(pairs["row"]), np.float32)
    matrix = sparse.csr_matrix((ones, (pairs["row"], pairs["place"])), (n_baskets, n_items))
    matrix.data[:] = 1.0
    return matrix


def _items(con: Any, files: list[ShopFile], table: LineTable) -> pd.DataFrame:
    """The items with their most frequent name and department, and what the catalogue says."""
    best = ", ".join(
        f"(SELECT item, arg_max({c}, n) AS {c} FROM (SELECT item, {c}, count(*) AS n FROM used WHERE {c} IS NOT NULL "
        f"GROUP BY item, {c}) GROUP BY item) AS of_{c}"
        for c in ("name", "grp")
    ).replace(") AS of_name, ", ") AS of_name ON of_name.item = item_id LEFT JOIN ")
    items = con.execute(
        f"SELECT item_id, name, grp AS department, lines, units, spend, price FROM item LEFT JOIN {best} "
        f"ON of_grp.item = item_id ORDER BY code"
    ).df()
    items = items.astype({"item_id": str, "name": object, "department": object})
    for file in (f for f in files if f.kind == "items"):
        items = _with_catalogue(con, file, items, table)
    nameless = items["name"].isna()
    if nameless.any() and not nameless.all():
        table.notes.append(f"{int(nameless.sum())} items have no name; their id stands for it.")
    items["name"] = items["name"].fillna(items["item_id"]).astype(str)
    if items["department"].isna().all():
        items = items.drop(columns="department")
    else:
        items["department"] = items["department"].fillna("").astype(str)
    return items


def _with_catalogue(con: Any, file: ShopFile, items: pd.DataFrame, table: LineTable) -> pd.DataFrame:
    """The items with the words of a file of items; repeated ids: the first row counts, and how many is said."""
    names = [n for n in file.columns]
    id_column = file.fields.get("item") or file.fields["name"]
    picked = ", ".join(f"{sql.text(sql.column(n))} AS {sql.column(n)}" for n in names)
    found = con.execute(f"SELECT {sql.identity(sql.column(id_column))} AS key_, {picked} FROM {sql.source(file)}").df()
    twice = found["key_"].duplicated() | found["key_"].isna()
    if twice.any():
        table.notes.append(f"{file.name}: {int(twice.sum())} rows repeat an item or have none; the first one counts.")
    found = found[~twice].set_index("key_").reindex(items["item_id"])
    unknown = int(found[names].isna().all(axis=1).sum())
    if unknown:
        table.notes.append(f"{unknown} of {len(items)} items that were sold are not in {file.name}; they are kept.")
    items = items.copy()
    for target, name in (("name", "name"), ("department", "group")):
        if name in file.fields:
            items[target] = pd.Series(found[file.fields[name]].to_numpy(object)).combine_first(items[target])
    used = {file.fields.get(f) for f in ("item", "name", "group", "price")}
    for column in (c for c in names if c not in used and c not in items):
        words = found[column].dropna()
        if len(words) and not pd.to_numeric(words, errors="coerce").notna().mean() > 0.5:
            items[column] = found[column].fillna("").to_numpy(object)
    return items


def promotion_effects(con: Any, known: set[str]) -> pd.DataFrame:
    """Items sold at a reduced price: `code`, `lines`, `reduced` (share of them), `usual`, `during` (units a day sold).

    Reduced is a line that the shop marks as promoted, else one at least a tenth below the item's median price. Days
    without a sale do not count in either mean.
    """
    columns = ["code", "lines", "reduced", "usual", "during"]
    if "time" not in known or not {"price", "promotion"} & known:
        return pd.DataFrame(columns=columns)
    low = "promoted" if "promotion" in known else "used.price < 0.9 * item.price"
    return con.execute(f"""
        WITH days AS (SELECT item.code, CAST(moment AS DATE) AS day, bool_or({low}) AS low, sum(quantity) AS units,
            count(*) AS n, count(*) FILTER ({low}) AS n_low FROM used JOIN item ON used.item = item.item_id
            GROUP BY 1, 2)
        SELECT code, sum(n)::BIGINT AS lines, sum(n_low) / sum(n) AS reduced, avg(units) FILTER (NOT low) AS usual,
            avg(units) FILTER (low) AS during FROM days GROUP BY code HAVING count(*) FILTER (low) >= 10 AND
            count(*) FILTER (NOT low) >= 10 ORDER BY lines DESC, code LIMIT 500""").df()[columns]
