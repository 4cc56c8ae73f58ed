"""Pieces of SQL (DuckDB's) that read a shop's text: numbers, dates, ids, and what is no product."""

from collections.abc import Sequence

from recutils.shop.files import ShopFile, parquet_files

OFFSET = r"([T ]\d{1,2}:\d{2}[\d:.]*( ?[AaPp][Mm])?)\s*([Zz]|UTC|[+-]\d{2}(:?\d{2})?)$"  # a UTC offset behind a time
CLOCK = r"[T ]+(\d{1,2}:\d{2}.*)$"
# How days are written; with [./] as -, and the Chinese and Japanese signs too. The first that reads the most is taken.
DAYS = {
    "year-month-day": ["%Y-%m-%d"],
    "day-month-year": ["%d-%m-%y", "%d-%m-%Y"],
    "month-day-year": ["%m-%d-%y", "%m-%d-%Y"],
    "yearmonthday": ["%Y%m%d"],
    "with the month's name": ["%d-%b-%y", "%d-%b-%Y", "%d %b %Y", "%b %d, %Y", "%d %B %Y", "%B %d, %Y", "%d-%B-%Y"],
}
CLOCKS = ["%H:%M:%S", "%H:%M", "%H:%M:%S.%f", "%I:%M:%S %p", "%I:%M %p"]
NO_PRODUCT = (
    r"^((dotcom )?postage|shipping( (cost|fee|charge)s?)?|delivery( (cost|fee|charge)s?)?|carriage|freight|manual|"
    r"bank charges|amazon ?fee|(order )?discount|rounding|deposit|pfand|leergut|versand(kosten)?|porto|"
    r"frais de port|livraison|gastos de env[ií]o|env[ií]o|spedizione|gift ?card|gift ?voucher|gutschein|coupon|"
    r"voucher|(sub)?total|gesamt(summe)?|zwischensumme|summe|adjust bad debt|cruk commission|samples|"
    r"运费|邮费|包装费|押金|合计|总计|送料)$"
)
CANCELLED = r"cancel|annul|storn|void|return|refund|retour|devol|anulad|reso|取消|退"


def quoted(text: str) -> str:
    """A string of SQL."""
    return "'" + text.replace("'", "''") + "'"


def column(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def strings(values: Sequence[str]) -> str:
    """A list of strings in SQL."""
    return "[" + ", ".join(map(quoted, values)) + "]"


def source(file: ShopFile, parallel: bool = True) -> str:
    """The rows of one file as text, an additional column `extra_` holding what stands behind the last one."""
    if file.delimiter is None:
        parts = strings([str(p) for p in parquet_files(file.path)]) if file.path.is_dir() else quoted(str(file.path))
        how = "union_by_name=true, hive_partitioning=true" if file.path.is_dir() else "hive_partitioning=false"
        return f"(SELECT *, NULL::VARCHAR AS extra_ FROM read_parquet({parts}, {how}))"
    names = [*file.columns, "extra_"]
    delimiter, quote = ("\x01", "") if file.listed else (file.delimiter, file.quote)
    types = "{" + ", ".join(f"{quoted(n)}: 'VARCHAR'" for n in names) + "}"
    return (
        f"read_csv({quoted(str(file.path))}, auto_detect=false, header=false, skip={file.skip}, columns={types}, "
        f"delim={quoted(delimiter)}, quote={quoted(quote)}, escape={quoted(quote)}, null_padding=true, "
        f"strict_mode=false, max_line_size=4000000, parallel={str(parallel).lower()})"
    )


def text(value: str) -> str:
    """A value without blanks around; blank, NULL, nan and the like are no value."""
    trimmed = f"trim(CAST({value} AS VARCHAR))"
    nothing = strings(["", "null", "nan", "none", "n/a", "na", "#n/a"])
    return f"(CASE WHEN list_contains({nothing}, lower({trimmed})) THEN NULL ELSE {trimmed} END)"


def identity(value: str) -> str:
    """An id as text: a number's decimal zero goes, as spreadsheets write it (17850.0)."""
    return rf"regexp_replace({text(value)}, '^(\d+)\.0$', '\1')"


def number(value: str, comma: bool) -> str:
    """A number, NULL where it is none: currency signs and blanks go, `5-` and `(5)` are below zero."""
    bare = rf"regexp_replace({value}, '[^0-9,.()+\-eE]', '', 'g')"
    bare = f"replace(replace({bare}, '.', ''), ',', '.')" if comma else f"replace({bare}, ',', '')"
    signed = rf"regexp_replace({bare}, '^(?:\((.*)\)|([^-].*)-)$', '-\1\2')"
    return f"(CASE WHEN isfinite(TRY_CAST({signed} AS DOUBLE)) THEN TRY_CAST({signed} AS DOUBLE) END)"


def clean_moment(value: str) -> str:
    """A moment as text without its UTC offset: the shop's own clock stays."""
    return rf"regexp_replace({value}, {quoted(OFFSET)}, '\1')"


def day_text(value: str) -> str:
    """The day within a moment, its parts joined by a hyphen."""
    alone = f"regexp_replace({clean_moment(value)}, {quoted(CLOCK)}, '')"
    return rf"trim(regexp_replace({alone}, '^(\w{{1,4}})[./年-](\w{{1,3}})[./月-](\d{{1,4}})日?', '\1-\2-\3'))"


def clock_text(value: str) -> str:
    """The time of day within a moment, empty where there is none."""
    return f"trim(regexp_extract({clean_moment(value)}, {quoted(CLOCK)}, 1))"


def day_of(value: str, way: str) -> str:
    """The day of a text from `day_text`, written in one of the `DAYS`; NULL where it is none."""
    return f"TRY_CAST(try_strptime({value}, {strings(DAYS[way])}) AS TIMESTAMP)"


def epoch(value: str) -> str:
    """Seconds or milliseconds since 1970, the numbers of spreadsheets, and 14 digits; NULL for all else."""
    return (
        rf"(CASE WHEN regexp_full_match({value}, '\d{{14}}') THEN try_strptime({value}, '%Y%m%d%H%M%S') "
        rf"WHEN regexp_full_match({value}, '\d{{10}}(\.\d+)?') THEN make_timestamp(CAST(TRY_CAST({value} AS DOUBLE) "
        rf"* 1000000 AS BIGINT)) WHEN regexp_full_match({value}, '\d{{13}}') THEN make_timestamp(CAST({value} AS "
        rf"BIGINT) * 1000) WHEN regexp_full_match({value}, '[2-5]\d{{4}}(\.\d+)?') THEN TIMESTAMP '1899-12-30' + "
        rf"to_milliseconds(CAST(TRY_CAST({value} AS DOUBLE) * 86400000 AS BIGINT)) END)"
    )


def moment(value: str, ways: Sequence[str], clock: str | None = None) -> str:
    """The moment of a text, by the ways in which its days are written; `clock`: another column with the time of day."""
    if list(ways) == ["year-month-day"] and clock is None:
        iso = f"TRY_CAST({clean_moment(value)} AS TIMESTAMP)"
        return f"coalesce({iso}, {_by_parts(value, ways, clock_text(value))})"
    return f"coalesce({_by_parts(value, ways, clock or clock_text(value))}, {epoch(value)})"


def _by_parts(value: str, ways: Sequence[str], clock: str) -> str:
    day = "coalesce(" + ", ".join([*(day_of(day_text(value), way) for way in ways), "NULL::TIMESTAMP"]) + ")"
    hour = rf"CASE WHEN regexp_full_match({clock}, '\d{{1,2}}') THEN {clock} || ':00' ELSE {clock} END"
    return (
        f"({day} + coalesce(to_seconds(epoch(CAST(try_strptime({hour}, {strings(CLOCKS)}) AS TIME))), to_seconds(0)))"
    )
