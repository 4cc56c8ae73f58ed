"""From files to lines: every row gets its fields as values, and a reason where it cannot be used."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from recutils.data.schema import StoreError
from recutils.shop import sql
from recutils.shop.columns import FIELDS
from recutils.shop.files import ShopFile

READABLE = "0.5"  # the share of days that must be understood


@dataclass
class ReadSettings:
    """What a reader tells of the own shop, kept in `shop.toml`.

    - `columns`: the column of a field, as `{"item": "sku"}`; `exclude`: items that are no products
    - `dates`: `day-first` or `month-first`, where both are possible
    """

    columns: dict[str, str] = field(default_factory=dict)
    exclude: list[str] = field(default_factory=list)
    dates: str = "day-first"


@dataclass
class LineTable:
    """The table `lines` of a DuckDB connection: a row for each row of the files.

    Its columns: `basket`, `household`, `item`, `name`, `grp`, `store` (text), `moment`, `quantity`, `price` (of one
    unit), `promoted`, and `reason` (NULL: the row is used). `known` are the fields that some file holds; `hours`: are
    there times of day; `notes`: what was decided; `unit`: what a row is.
    """

    con: Any
    known: set[str]
    notes: list[str]
    unit: str = "lines"
    hours: bool = False


def connect(folder: Path, memory: str = "1200MB") -> Any:
    """A DuckDB database in `folder`, on two threads and in so much memory; what is more goes to the disk."""
    con = duckdb.connect(str(folder / "shop.duckdb"))
    for setting in (
        f"memory_limit={sql.quoted(memory)}",
        "threads=2",
        f"temp_directory={sql.quoted(str(folder))}",
        "autoinstall_known_extensions=false",
        "autoload_known_extensions=false",
    ):
        con.execute(f"SET {setting}")
    with contextlib.suppress(duckdb.InvalidInputException):  # in Jupyter without ipywidgets it can draw none anyway
        con.execute("SET enable_progress_bar=false")
    return con


def make_lines(con: Any, files: list[ShopFile], settings: ReadSettings) -> LineTable:
    """Read all files of lines into the table `lines`. Raises StoreError where they cannot be receipts."""
    known = set().union(*(f.fields for f in files if f.kind in ("lines", "heads")))
    table = LineTable(con, known, [note for f in files for note in f.notes])
    if any(f.a_basket_a_line for f in files):
        table.known, table.unit = known | {"item"}, "items in baskets"
    _check_fields(files, table.known)
    parts = [_raw(con, f, table.notes) for f in files if f.kind == "lines"]
    con.execute("CREATE VIEW raw AS " + " UNION ALL ".join(parts))
    if heads := [f for f in files if f.kind == "heads"]:
        _join_heads(con, heads, table)
    moment = _moment(table, settings) if "time" in table.known else "NULL::TIMESTAMP"
    values = {name: _number(table, name) for name in ("quantity", "price", "total")}
    con.execute(f"""
        CREATE TABLE typed AS SELECT {sql.identity("basket")} AS basket, {sql.identity("household")} AS household,
            coalesce({sql.identity("item")}, {"NULL" if "item" in known else sql.text("name")}) AS item,
            {sql.text("name")} AS name, {sql.text('"group"')} AS grp, {sql.identity("store")} AS store,
            {sql.text("time")} AS written, CAST({moment} AS TIMESTAMP_S) AS moment,
            {sql.text("quantity")} AS written_quantity, CAST({values["quantity"]} AS FLOAT) AS quantity,
            CAST({values["price"]} AS FLOAT) AS price, CAST({values["total"]} AS FLOAT) AS total,
            coalesce(lower({sql.text("promotion")}) NOT IN ('0', '0.0', '0.00', 'no', 'n', 'false', 'f', 'nein'), false)
                AS promoted, lower({sql.text("status")}) AS status, extra_ FROM raw""")
    _give_reasons(table, settings)
    _check_moments(table)
    return table


def _check_fields(files: list[ShopFile], known: set[str]) -> None:
    """Raises StoreError where no file holds receipts."""
    if any(f.a_basket_a_line or (f.kind == "lines" and "basket" in known) for f in files):
        return
    if any(f.kind == "lines" for f in files) and {"household", "time"} <= known:
        return
    has = "; ".join(f"{f.name}: {', '.join(f.columns[:12])}" for f in files)
    missing = "an item" if not {"item", "name", "items"} & known else "a receipt number (or a customer and a date)"
    raise StoreError(
        f"No file has the columns of receipts; {missing} was not found. The columns are: {has}. Say which is which: "
        f"--columns basket=...,item=...,time=..., with names from this list."
    )


def _raw(con: Any, file: ShopFile, notes: list[str]) -> str:
    """A SELECT of all `FIELDS` of one file as text, and `extra_`; opens the file once to see how it can be read."""
    try:
        rows = con.execute(f"SELECT count(*) FROM {sql.source(file)}").fetchone()[0]
        origin = sql.source(file)
    except duckdb.Error:
        origin = sql.source(file, parallel=False)
        rows = _count(con, file, origin)
    if not rows:
        raise StoreError(f"{file.name} has a header and no rows; export it again.")
    if file.delimiter is not None and not file.listed and file.lines - file.skip > rows:
        origin, rows = _without_quotes(con, file, origin, rows, notes)
        if joined := file.lines - file.skip - rows:
            notes.append(f"{file.name}: {joined} lines of the file are blank or go on with the row before (in quotes).")
    listed = _list_of(con, file, origin, notes)
    return f"SELECT {', '.join(_columns(file, listed))}, extra_ FROM {origin}"


def _without_quotes(con: Any, file: ShopFile, origin: str, rows: int, notes: list[str]) -> tuple[str, int]:
    """How a file is read whose quotes may be signs within names (5" pipe): a stray one swallows whole lines.

    Where reading without quotes gives a hundredth more rows, they are taken for signs. Returns the source and its rows.
    """
    file.quote = ""
    plain = sql.source(file, parallel=False)
    found = _count(con, file, plain)
    if found > 1.01 * rows:
        notes.append(
            f"{file.name}: quotes are read as signs within names, since they would swallow {found - rows} lines."
        )
        return plain, found
    file.quote = '"'
    return origin, rows


def _columns(file: ShopFile, listed: str) -> list[str]:
    """The fields of a file, each as an expression of SQL; a basket without a number is numbered by its row."""
    found = []
    for name in (n for n in FIELDS if n != "items"):
        value = f"CAST({sql.column(file.fields[name])} AS VARCHAR)" if name in file.fields else "NULL::VARCHAR"
        if listed and name == "item":
            value = f"unnest({listed})"
        elif listed and name == "basket" and name not in file.fields:
            value = f"CAST(row_number() OVER () AS VARCHAR) || {sql.quoted(' of ' + file.name)}"
        found.append(f"{value} AS {sql.column(name)}")
    return found


def _count(con: Any, file: ShopFile, origin: str) -> int:
    try:
        return int(con.execute(f"SELECT count(*) FROM {origin}").fetchone()[0])
    except duckdb.Error as error:
        first = str(error).splitlines()[0]
        raise StoreError(f"{file.name} cannot be read ({first}); write it again.") from error


def _list_of(con: Any, file: ShopFile, origin: str, notes: list[str]) -> str:
    """The items of a row as a list of SQL, for files of one line a basket; empty for all others."""
    if file.wide:
        notes.append(f"{file.name}: one line a basket, its items in {len(file.wide)} columns.")
        cells = ", ".join(f"CAST({sql.column(c)} AS VARCHAR)" for c in file.wide)
        return _at_least_one(f"[x FOR x IN [{cells}] IF trim(x) <> '']")
    if not file.a_basket_a_line:
        return ""
    name = file.columns[0] if file.listed else file.fields["items"]
    delimiter = file.delimiter or ","
    if not file.listed:
        counts = {}
        for sign in ("|", ";", "\n", "\t", ","):
            at = f"SELECT count(*) FROM (SELECT {sql.column(name)} AS x FROM {origin} LIMIT 2000) WHERE "
            counts[sign] = con.execute(f"{at} contains(CAST(x AS VARCHAR), {sql.quoted(sign)})").fetchone()[0]
        delimiter = max(counts, key=lambda sign: counts[sign])
        notes.append(f"{file.name}: one line a basket, its items in {name!r}, separated by {delimiter!r}.")
    bare = rf"regexp_replace(CAST({sql.column(name)} AS VARCHAR), '^\s*[\[{{(](.*)[\])}}]\s*$', '\1', 's')"
    one = "trim(x, ' \"''\t\r\n')"
    return _at_least_one(f"[{one} FOR x IN string_split({bare}, {sql.quoted(delimiter)}) IF {one} <> '']")


def _at_least_one(cells: str) -> str:
    """A list that is never empty, so that a row without items is counted too."""
    return f"(CASE WHEN coalesce(len({cells}), 0) = 0 THEN [NULL::VARCHAR] ELSE {cells} END)"


def _join_heads(con: Any, heads: list[ShopFile], table: LineTable) -> None:
    """Household, moment and the rest of a receipt from a table of its own, one row a receipt."""
    notes: list[str] = []
    con.execute("ALTER VIEW raw RENAME TO raw_lines")
    con.execute("CREATE TABLE heads AS " + " UNION ALL ".join(_raw(con, f, notes) for f in heads))
    names = [n for n in FIELDS if n not in ("basket", "items")]
    taken = ", ".join(f"coalesce(l.{sql.column(n)}, h.{sql.column(n)}) AS {sql.column(n)}" for n in names)
    columns = ", ".join(f"any_value({sql.column(n)}) AS {sql.column(n)}" for n in names)
    con.execute(f"""
        CREATE VIEW raw AS SELECT l.basket, {taken}, l.extra_ FROM raw_lines l LEFT JOIN
        (SELECT {sql.identity("basket")} AS key, {columns} FROM heads GROUP BY 1) h
        ON {sql.identity("l.basket")} = h.key""")
    table.notes.append(f"Receipts' own columns are taken from {', '.join(f.name for f in heads)}.")


def _number(table: LineTable, name: str) -> str:
    """How a column of numbers is read: with a decimal comma where the values say so."""
    if name not in table.known:
        return "NULL"
    comma, point = table.con.execute(rf"""
        SELECT count(*) FILTER (regexp_matches(x, ',\d{{1,2}}$|\.\d{{3}},|^[^.]*,\d{{4,}}$')),
               count(*) FILTER (regexp_matches(x, '\.\d{{1,2}}$|,\d{{3}}\.|\.\d{{4,}}$'))
        FROM (SELECT regexp_replace({name}, '[^0-9.,]', '', 'g') AS x FROM raw LIMIT 50000)""").fetchone()
    if comma > point:
        table.notes.append(f"The numbers of {name} have a decimal comma.")
    return sql.number(sql.text(name), comma > point)


def _moment(table: LineTable, settings: ReadSettings) -> str:
    """How the moments are read. Raises StoreError where most of the days are not understood."""
    value, clock = sql.text("time"), sql.text("clock") if "clock" in table.known else None
    counts = ", ".join(
        f"coalesce(sum(n) FILTER (year({sql.day_of('day', way)}) BETWEEN 1990 AND 2100), 0)" for way in sql.DAYS
    )
    table.con.execute(f"""
        CREATE TEMP TABLE days AS SELECT {sql.day_text(value)} AS day, count(*) AS n FROM raw WHERE {value} IS NOT NULL
        GROUP BY 1 LIMIT 500000""")
    found = dict(zip(sql.DAYS, table.con.execute(f"SELECT {counts} FROM days").fetchone(), strict=True))
    total = table.con.execute("SELECT coalesce(sum(n), 0) FROM days").fetchone()[0]
    if not total:
        table.known.discard("time")
        table.notes.append("No line has a date.")
        return "NULL::TIMESTAMP"
    if found["day-month-year"] == found["month-day-year"] > 0:
        first, other = "day-month-year", "month-day-year"
        first, other = (other, first) if settings.dates == "month-first" else (first, other)
        found[other] = 0
        way = "month-first" if settings.dates == "day-first" else "day-first"
        table.notes.append(f"The dates could be read in two ways; taken as {first} (--dates {way} for the other).")
    ways = sorted((way for way in found if found[way]), key=lambda way: -found[way])
    best = ways[:1]
    rest = total - (found[best[0]] if best else 0)
    others = [way for way in ways[1:] if way not in ("day-month-year", "month-day-year") and rest]
    if best:
        table.notes.append(f"Days are written as {', '.join([*best, *others])}.")
    return sql.moment(value, [*best, *others], clock)


def _check_moments(table: LineTable) -> None:
    """Raises StoreError where most dates were not understood; says whether there are times of day."""
    if "time" not in table.known:
        return
    n, bad, first = table.con.execute(
        "SELECT count(*), count(*) FILTER (reason LIKE 'date%'), any_value(written) FILTER (reason LIKE 'date%') "
        "FROM lines WHERE reason IS NULL OR reason LIKE 'date%'"
    ).fetchone()
    if n and bad > float(READABLE) * n:
        raise StoreError(
            f"{bad} of {n} dates are not understood, one of them {first!r}. Write them as 2017-01-31 18:30:00, or name "
            f"the column of the dates: --columns time=..."
        )
    distinct = table.con.execute(
        "SELECT count(DISTINCT hour(moment)) FROM lines WHERE reason IS NULL AND CAST(moment AS TIME) <> '00:00:00'"
    ).fetchone()[0]
    table.hours = distinct > 1


def _give_reasons(table: LineTable, settings: ReadSettings) -> None:
    """The table `lines`: `typed` and a `reason` for each row that is not used, the first that holds."""
    con, known = table.con, table.known
    codes = con.execute(
        "SELECT count(*) FILTER (regexp_matches(basket, '^[Cc]\\d+$')), count(*) FILTER (regexp_matches(basket, "
        "'^\\d+$')) FROM typed"
    ).fetchone()
    marked = "regexp_matches(basket, '^[Cc]\\d+$')" if 0 < codes[0] < codes[1] else "false"
    prices = con.execute("SELECT count(*) FILTER (price > 0), count(price) FROM typed").fetchone()
    paid = prices[0] > 0.5 * max(prices[1], 1)
    excluded = sql.strings(settings.exclude) if settings.exclude else "[]::VARCHAR[]"
    no_basket = "basket IS NULL" if "basket" in known or table.unit != "lines" else "household IS NULL"
    reasons = {
        "more fields than the header has": "extra_ IS NOT NULL",
        "no product": "item IS NULL",
        "no receipt number" if "basket" in known else "no customer, and no receipt number either": no_basket,
        "no date": "written IS NULL" if "time" in known else "false",
        "date not understood": "moment IS NULL" if "time" in known else "false",
        "date before 1990 or in the future": "moment < '1990-01-01' OR moment > now()::TIMESTAMP + INTERVAL 2 DAY",
        "cancelled": f"{marked} OR coalesce(regexp_matches(status, {sql.quoted(sql.CANCELLED)}), false)",
        "quantity not understood": "written_quantity IS NOT NULL AND quantity IS NULL",
        "quantity below zero (returned or written off)": "quantity < 0",
        "quantity of zero": "quantity = 0",
        "price of zero or less (gifts, write-offs)": f"price <= 0 AND {str(paid).lower()}",
        "no product, but postage, a fee or a voucher": f"regexp_matches(lower(coalesce(name, item)), "
        f"{sql.quoted(sql.NO_PRODUCT)})",
        "left out by shop.toml": f"list_contains({excluded}, item)",
    }
    cases = " ".join(f"WHEN {test} THEN {sql.quoted(reason)}" for reason, test in reasons.items())
    con.execute(f"""
        CREATE TABLE lines AS SELECT basket, household, item, name, grp, store, written, moment,
            coalesce(quantity, 1)::FLOAT AS quantity, coalesce(price, total / nullif(quantity, 0), total)::FLOAT
            AS price, promoted, CASE {cases} END AS reason FROM typed""")
    con.execute("DROP TABLE typed")
