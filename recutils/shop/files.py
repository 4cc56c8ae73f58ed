"""The files of a shop as they lie there: which they are, how they are encoded and separated, where the header is."""

import codecs
import csv
import io
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recutils.data.schema import StoreError
from recutils.shop.columns import guess_columns, plain

ENDINGS = (".csv", ".tsv", ".txt", ".parquet", ".xlsx", ".xlsm")
ENCODINGS = ["cp1252", "gb18030", "big5", "shift_jis", "euc_kr", "cp1251", "cp1250"]  # beside UTF-8 and UTF-16
BLOCK = 1 << 20


@dataclass
class ShopFile:
    """One table: `path` to UTF-8 csv, parquet or a folder of parquet (of another form: its copy), and how to read it.

    - `columns`: its header; `fields`: the column of each field (see `columns.SYNONYMS`)
    - `skip`: lines up to the header and with it; `delimiter`, `encoding`: None for parquet; `quote`: empty where cells
      are not quoted
    - `listed`: one line a basket, all its cells being items; `notes`: sentences on what was decided
    """

    name: str
    path: Path
    columns: list[str]
    fields: dict[str, str]
    skip: int = 1
    delimiter: str | None = None
    encoding: str | None = None
    quote: str = '"'
    listed: bool = False
    lines: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def wide(self) -> list[str]:
        """Columns such as item_1, item_2, ..., which hold a basket's items side by side."""
        found = [
            c for c in self.columns if re.fullmatch(r"(item|product|article|artikel|produkt|商品)[ _]?\d+", c.lower())
        ]
        return found if len(found) > 1 else []

    @property
    def a_basket_a_line(self) -> bool:
        """Is a row a whole basket?"""
        return self.listed or bool(self.wide) or "items" in self.fields

    @property
    def kind(self) -> str:
        """`lines` (receipts), `heads` (one row a receipt, without items), `items` (the catalogue) or `other`."""
        if self.a_basket_a_line:
            return "lines"
        heads = {"basket", "household", "time"} & set(self.fields)
        if "item" in self.fields or "name" in self.fields:
            return "lines" if "basket" in heads or {"household", "time"} <= heads else "items"
        return "heads" if "basket" in heads and len(heads) > 1 else "other"


def find_files(folder: Path, copies: Path, named: Mapping[str, str]) -> list[ShopFile]:
    """All data files of a folder, or the one file that `folder` is; copies in UTF-8 are made in `copies`.

    A folder in it that holds parquet files, partitioned (`week=12/`) or not, is one table, and so is `folder` itself
    where its own folders are partitions. Raises StoreError where there is none that could hold receipts.
    """
    if not folder.exists():
        raise StoreError(f"{folder} does not exist; name a folder with a shop's files, or one file.")
    inside = [folder] if folder.is_file() else sorted(folder.iterdir())
    if any(p.is_dir() and "=" in p.name for p in inside):
        inside = [folder]
    paths = [p for p in inside if (parquet_files(p) if p.is_dir() else p.suffix.lower() in ENDINGS or p == folder)]
    paths = [p for p in paths if not p.name.startswith((".", "~$")) and "readme" not in p.name.lower()]
    if not paths:
        raise StoreError(f"{folder} holds no data; put receipts there as {', '.join(ENDINGS)}.")
    return [file for path in paths for file in open_file(path, copies, named)]


def open_file(path: Path, copies: Path, named: Mapping[str, str]) -> Iterator[ShopFile]:
    """The tables of one file: the sheets of a workbook, else one. Raises StoreError where it cannot be read."""
    ending = ".parquet" if path.is_dir() else path.suffix.lower()
    if path.is_file() and path.stat().st_size == 0:
        raise StoreError(f"{path.name} is empty; it needs a header line and rows.")
    try:
        if ending == ".parquet":
            yield _parquet(path, named)
        elif ending in (".xlsx", ".xlsm"):
            yield from _workbook(path, copies, named)
        elif ending in ENDINGS:
            yield _text(path, path.name, copies, named)
        else:
            raise StoreError(f"{path.name} is no kind of file that is read; write it as {', '.join(ENDINGS)}.")
    except StoreError:
        raise
    except (OSError, ValueError, KeyError, EOFError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise StoreError(f"{path.name} cannot be read ({first}); write it again.") from error
    except Exception as error:  # zipfile and openpyxl raise classes of their own for damaged workbooks
        raise StoreError(f"{path.name} cannot be read ({type(error).__name__}); write it again.") from error


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files below a folder, however deep, those of engines' own folders (`_temporary`, `.hidden`) apart."""
    found = sorted(p for p in folder.rglob("*.parquet") if p.is_file())
    return [p for p in found if not any(part.startswith(("_", ".")) for part in p.relative_to(folder).parts)]


def _parquet(path: Path, named: Mapping[str, str]) -> ShopFile:
    import pyarrow.parquet as pq

    parts, zones = parquet_files(path) if path.is_dir() else [path], set()
    for name in ("_temporary", "_delta_log"):
        if (path / name).exists():
            raise StoreError(
                f"{path.name} holds {name}: it was not written to its end, or keeps rows that were deleted; export it."
            )
    names = [folder.split("=")[0] for folder in parts[0].relative_to(path).parts[:-1] if "=" in folder]
    for part in parts:
        try:
            schema = pq.read_schema(part)
        except (OSError, ValueError) as error:
            raise StoreError(f"{part.relative_to(path.parent)} cannot be read; write it again.") from error
        names += [n for n in schema.names if n not in names and not n.startswith("__index_level")]
        zones |= {str(tz) for n in schema.names if (tz := getattr(schema.field(n).type, "tz", None))}
    notes = [f"{path.name}: times are on the clock of {zone}." for zone in sorted(zones)]
    if path.is_dir():
        notes.append(f"{path.name}: a folder of {len(parts)} parquet files is read as one table.")
    return ShopFile(path.name, path, names, guess_columns(names, named), notes=notes)


def _workbook(path: Path, copies: Path, named: Mapping[str, str]) -> Iterator[ShopFile]:
    """Each sheet that is not empty, by way of a csv copy."""
    import openpyxl

    book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    found = 0
    for sheet in book.worksheets:
        copy = copies / f"{len(list(copies.iterdir()))}.csv"
        with copy.open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out)
            rows = (row for row in sheet.iter_rows(values_only=True) if any(v is not None for v in row))
            n = sum(1 for row in rows if writer.writerow([_cell(v) for v in row]))
        if n:
            found += 1
            file = _text(copy, f"{path.name} ({sheet.title})", copies, named)
            file.encoding = None
            yield file
    if not found:
        raise StoreError(f"{path.name} has only empty sheets; export it again.")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


def _text(path: Path, name: str, copies: Path, named: Mapping[str, str]) -> ShopFile:
    notes: list[str] = []
    encoding = detect_encoding(path)
    if encoding != "utf-8":
        path = _as_utf8(path, encoding, copies, notes, name)
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        head = list(itertools.islice(stream, 200))
    if not any(line.strip() for line in head):
        raise StoreError(f"{name} is empty; it needs a header line and rows.")
    delimiter = detect_delimiter(head)
    rows = list(csv.reader(io.StringIO("".join(head)), delimiter=delimiter))
    lines = _count_lines(path)
    scores = [len(guess_columns(row, named)) for row in rows[:15]]
    best = max(range(len(scores)), key=lambda n: (scores[n], -n))
    if scores[best] >= 2 or (scores[best] == 1 and "items" in guess_columns(rows[best], named)):
        columns, skip = _unique(rows[best]), sum(1 + cell.count("\n") for r in rows[: best + 1] for cell in r[:1])
        if best:
            notes.append(f"{name}: the header was found in line {best + 1}; the lines above it are no data.")
        file = ShopFile(name, path, columns, guess_columns(columns, named), skip, delimiter, encoding, lines=lines)
    elif _is_listed(rows):
        notes.append(f"{name}: one line a basket without a header; every cell is read as an item.")
        file = ShopFile(name, path, ["cells"], {}, 0, delimiter, encoding, listed=True, lines=lines)
    else:
        columns = _unique(rows[0])
        file = ShopFile(name, path, columns, guess_columns(columns, named), 1, delimiter, encoding, lines=lines)
    file.notes += notes
    return file


def _unique(header: list[str]) -> list[str]:
    """The header with a name for every column, none twice."""
    found: list[str] = []
    for place, cell in enumerate(header):
        name = cell.strip().lstrip("\ufeff") or f"column {place + 1}"
        found.append(name if name not in found else f"{name} ({place + 1})")
    return found


def _is_listed(rows: list[list[str]]) -> bool:
    """Lines of different lengths, none of them a number, no header: baskets as lists of item names."""
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    cells = [cell for row in rows for cell in row if cell.strip()]
    repeated = len({plain(cell) for cell in cells}) < 0.9 * len(cells)
    return len({len(row) for row in rows}) > 2 and repeated and len(rows) > 1


def detect_encoding(path: Path) -> str:
    """`utf-8`, `utf-16`, or the most likely of `ENCODINGS`, judged by the bytes that are not ASCII."""
    from charset_normalizer import from_bytes

    with path.open("rb") as stream:
        start = stream.read(BLOCK)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        decoder, block = codecs.getincrementaldecoder("utf-8")(), start
        try:
            while block:
                decoder.decode(block)
                block = stream.read(BLOCK)
            decoder.decode(b"", final=True)
            return "utf-8"
        except UnicodeDecodeError:
            lines = [line for line in (block + b"\n" + start).split(b"\n") if not line.isascii()]
    sample = b"\n".join(lines[:400]) or start
    best = from_bytes(sample, cp_isolation=ENCODINGS).best()
    if best is None or str(best) == sample.decode("cp1252", errors="ignore"):  # several code pages share most letters
        return "cp1252"
    return best.encoding.replace("_", "-")


def _as_utf8(path: Path, encoding: str, copies: Path, notes: list[str], name: str) -> Path:
    """A copy in UTF-8; what cannot be decoded becomes a mark, and is counted."""
    copy, marks = copies / f"{len(list(copies.iterdir()))}.csv", 0
    with (
        path.open(encoding=encoding, errors="replace", newline="") as source,
        copy.open("w", encoding="utf-8", newline="") as out,
    ):
        while block := source.read(BLOCK):
            marks += block.count("\ufffd")
            out.write(block)
    lost = f"; {marks} characters could not be read and are shown as a mark" if marks else ""
    notes.append(f"{name}: not UTF-8; read as {encoding}{lost}.")
    return copy


def detect_delimiter(head: list[str]) -> str:
    """The separator of the first lines: the one that gives the most lines the most common number of cells above one."""
    best, most = ",", 0.0
    for delimiter in ("\t", ";", "|", ","):
        rows = list(csv.reader(io.StringIO("".join(head)), delimiter=delimiter))
        sizes = [len(row) for row in rows if row]
        usual = max(set(sizes), key=lambda size: (sizes.count(size), size)) if sizes else 1
        wide = sum(size > 1 for size in sizes) / max(len(sizes), 1)
        score = sizes.count(usual) / len(sizes) * min(usual, 20) if usual > 1 else wide
        if score > most:
            best, most = delimiter, score
    return best


def _count_lines(path: Path) -> int:
    """Lines of the file as it lies there, a last one without its end counted too."""
    count, last = 0, b"\n"
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            count, last = count + block.count(b"\n"), block[-1:]
    return count + (last != b"\n")
