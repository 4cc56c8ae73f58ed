"""Shops as they come: files that are unusual but can be read, and files that cannot, each with what is said of it."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

PRODUCTS = [
    *("bread", "butter", "milk", "jam", "pasta", "sauce", "cheese", "tea", "biscuit", "soap"),
    *("rice", "salt", "eggs", "plums", "honey", "candles", "onions", "juice", "olives", "corn"),
]


def lines(n_baskets: int = 240, seed: int = 0) -> pd.DataFrame:
    """Lines of twenty products, 20 weeks, 30 customers: receipt, customer, sku, product name, date, qty, price.

    Pasta (504) always brings sauce (505).
    """
    rng = np.random.default_rng(seed)
    rows = []
    for basket in range(n_baskets):
        day = pd.Timestamp("2024-01-01 08:15") + pd.Timedelta(hours=int(rng.integers(20 * 7 * 24)))
        chosen = set(rng.choice(20, size=rng.integers(1, 5), replace=False).tolist())
        chosen |= {5} if 4 in chosen else set()
        rows += [
            (1000 + basket, 1 + basket % 30, 500 + i, PRODUCTS[i], day, int(rng.integers(1, 4)), 1.25 + i)
            for i in sorted(chosen)
        ]
    return pd.DataFrame(rows, columns=["receipt", "customer", "sku", "product name", "date", "qty", "price"])


def csv(folder: Path, table: pd.DataFrame, name: str = "sales.csv", encoding: str = "utf-8", **how) -> None:
    """A table as a file of text."""
    out = io.StringIO()
    table.to_csv(out, index=False, **how)
    (folder / name).write_bytes(out.getvalue().encode(encoding))


@dataclass
class Strange:
    """A shop that is written by `write(folder)`; `says`: pieces of text of the check; `used`: lines, where known."""

    write: Callable[[Path], None]
    says: list[str]
    used: int | None = None


def _german(folder: Path) -> None:
    table = lines()
    table.columns = ["Belegnr.", "Kundennr.", "Artikelnr.", "Bezeichnung", "Datum", "Menge", "Einzelpreis"]
    table["Bezeichnung"] = table["Bezeichnung"].replace({"cheese": "Käse", "jam": "Früchte-Süßmus"})
    table["Datum"] = table["Datum"].dt.strftime("%d.%m.%Y %H:%M")
    csv(folder, table, encoding="cp1252", sep=";", decimal=",")


def _chinese(folder: Path) -> None:
    names = dict(
        zip(
            PRODUCTS,
            [
                "全麦面包",
                "黄油",
                "纯牛奶",
                "草莓果酱",
                "意大利面",
                "番茄酱",
                "奶酪片",
                "绿茶",
                "苏打饼干",
                "香皂",
                "大米",
                "食盐",
                "鸡蛋",
                "李子",
                "蜂蜜",
                "蜡烛",
                "洋葱",
                "果汁",
                "橄榄",
                "玉米",
            ],
            strict=True,
        )
    )
    table = lines()
    table["product name"] = table["product name"].map(names)
    table.columns = ["订单号", "会员号", "商品编号", "商品名称", "下单时间", "数量", "单价"]
    table["下单时间"] = table["下单时间"].dt.strftime("%Y年%m月%d日 %H:%M")
    csv(folder, table, encoding="gb18030")


def _bad_lines(folder: Path) -> None:
    table = lines().astype(object)
    table.loc[0, "qty"], table.loc[1, "qty"], table.loc[2, "sku"] = -1, 0, None
    table.loc[3, "receipt"], table.loc[4, "date"], table.loc[5, "date"] = None, None, "soon"
    table.loc[6, "qty"], table.loc[7, "price"], table.loc[8, "date"] = "many", 0, "1970-01-01"
    table.loc[9, "product name"] = "Postage"
    csv(folder, table)
    with (folder / "sales.csv").open("a") as out:
        out.write("1,2,3,tea,2024-02-01,1,1.0,one,too,many\n")


def _cancelled(folder: Path) -> None:
    table = lines().rename(columns={"receipt": "InvoiceNo"})
    back = table.head(7).assign(InvoiceNo=[f"C{n}" for n in table["InvoiceNo"].head(7)], qty=-1)
    csv(folder, pd.concat([table, back]))


def _offsets(folder: Path) -> None:
    table = lines()
    table["date"] = [f"{d:%Y-%m-%dT%H:%M:%S}{('+01:00', 'Z')[n % 2]}" for n, d in enumerate(table["date"])]
    csv(folder, table)


def _sheets(folder: Path) -> None:
    with pd.ExcelWriter(folder / "sales.xlsx") as book:
        lines().head(300).to_excel(book, sheet_name="spring", index=False)
        lines().iloc[300:].to_excel(book, sheet_name="summer", index=False, startrow=3)


def _heads(folder: Path) -> None:
    table = lines()
    csv(folder, table[["receipt", "sku", "qty"]], "positions.csv")
    csv(folder, table[["receipt", "customer", "date"]].drop_duplicates("receipt"), "receipts.csv")
    csv(folder, table[["sku", "product name"]].drop_duplicates(), "catalogue.csv")


def _listed(folder: Path) -> None:
    baskets = lines().groupby("receipt")["product name"].agg(",".join)
    (folder / "baskets.csv").write_text("\n".join(baskets) + "\n")


def _in_cells(folder: Path) -> None:
    table = lines().groupby("receipt").agg({"customer": "first", "date": "first", "product name": "|".join})
    csv(folder, table.reset_index().rename(columns={"product name": "products"}))


def _stray_quotes(folder: Path) -> None:
    table = lines()
    table["product name"] = table["product name"].replace("candles", 'candles 5"')
    rows = [",".join(map(str, row)) for row in table.itertuples(index=False)]
    rows[10] = rows[10].replace(table["product name"][10], '"odd')
    rows[300] = rows[300].replace(table["product name"][300], '"odder')
    (folder / "sales.csv").write_text("\n".join([",".join(table.columns), *rows]) + "\n")


def _numbers_again(folder: Path) -> None:
    table = lines()
    table["receipt"] = table["receipt"] % 7
    csv(folder, table.rename(columns={"receipt": "order"}))


def _everywhere(folder: Path) -> None:
    table = lines()
    bag = table.drop_duplicates("receipt").iloc[::2].assign(sku=999, **{"product name": "carrier"})
    csv(folder, pd.concat([table, bag]))


def _month_first(folder: Path) -> None:
    table = lines()
    csv(folder, table.assign(date=table["date"].dt.strftime("%m/%d/%Y %I:%M %p")))


def _week(folder: Path) -> None:
    table = lines()
    hours = (table["date"] - pd.Timestamp("2024-01-01 08:15")) // pd.Timedelta("1h")
    csv(folder, table.assign(date=pd.Timestamp("2024-01-01 08:15") + pd.to_timedelta(hours / 20, unit="h")))


def _partitioned(folder: Path) -> None:
    """A folder a week, as engines write it, a column that came later, and the catalogue beside it."""
    table = lines().assign(week=lambda t: t["date"].dt.isocalendar().week)
    for week, part in table.groupby("week"):
        (folder / f"receipts/week={week}").mkdir(parents=True)
        part = part.drop(columns="week" if week % 2 else ["week", "product name"])
        part.to_parquet(folder / f"receipts/week={week}/part-0.snappy.parquet")
    (folder / "receipts/_SUCCESS").write_bytes(b"")
    lines()[["sku", "product name"]].drop_duplicates().to_parquet(folder / "items.parquet")


def _gap(folder: Path) -> None:
    table = lines()
    csv(folder, table[(table["date"] < "2024-02-01") | (table["date"] > "2024-02-20")])


def _beside(name: str) -> Callable[[Path], None]:
    """Partitions with another folder beside them."""
    return lambda folder: (_partitioned(folder), (folder / "receipts" / name).mkdir())[0]


N = len(lines())
WITHOUT = {
    "customer": "No customer is known",
    "product name": "Products have no names",
    "price": "No prices are known",
    "date": "Nothing is dated",
}
GOOD: dict[str, Strange] = {
    "plain": Strange(lambda f: csv(f, lines()), ["basket = receipt", "household = customer", "item = sku"], N),
    "german": Strange(_german, ["not UTF-8; read as cp1252", "decimal comma", "day-month-year", "= Kundennr."], N),
    "chinese": Strange(_chinese, ["read as gb18030", "item = 商品编号", "time = 下单时间"], N),
    "parquet": Strange(lambda f: lines().to_parquet(f / "sales.parquet"), ["item = sku"], N),
    "partitions": Strange(_partitioned, ["receipts: a folder of", "item = sku"], N),
    "weeks without a basket": Strange(_gap, ["No basket is of the 2"], None),
    "two sheets": Strange(_sheets, ["sales.xlsx (spring)", "sales.xlsx (summer)"], N),
    "tabs, utf-16": Strange(lambda f: csv(f, lines(), "s.tsv", "utf-16", sep="\t"), ["read as utf-16"], N),
    "bad lines": Strange(
        _bad_lines,
        [
            "no product\n",
            "no receipt number",
            "no date",
            "date not understood",
            "before 1990",
            "quantity not understood",
            "returned",
            "quantity of zero",
            "price of zero",
            "postage",
            "more fields than the header",
        ],
        N - 10,
    ),
    "cancelled": Strange(_cancelled, ["7  left out: cancelled"], N),
    "utc offsets": Strange(_offsets, [], N),
    "three files": Strange(_heads, ["taken from receipts.csv", "name = product name"], N),
    "lists": Strange(_listed, ["one line a basket without a header", "Nothing is dated"], N),
    "lists in cells": Strange(_in_cells, ["one line a basket", "separated by '|'"], N),
    "stray quotes": Strange(_stray_quotes, ["quotes are read as signs"], N),
    "numbers again": Strange(_numbers_again, ["Receipt numbers are used again"], N),
    "month first": Strange(_month_first, ["month-day-year"], N),
    "no hours": Strange(
        lambda f: csv(f, lines().assign(date=lines()["date"].dt.strftime("%Y-%m-%d"))), ["no time of day"], N
    ),
    "no receipt number": Strange(lambda f: csv(f, lines().drop(columns="receipt")), ["There is no receipt number"], N),
    "200 baskets": Strange(lambda f: csv(f, lines(200)), ["200 baskets are few"], len(lines(200))),
    "one product everywhere": Strange(_everywhere, ["carrier: in more than 30 %"], None),
    "a single week": Strange(_week, ["a single week or less"], N),
    **{
        f"no {column}": Strange(lambda f, c=column: csv(f, lines().drop(columns=c)), [said], N)
        for column, said in WITHOUT.items()
    },
}


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing there": (lambda folder: None, "holds no data; put receipts there"),
    "an empty file": (_write("sales.csv", b""), "sales.csv is empty"),
    "only a header": (_write("sales.csv", b"receipt,sku\n"), "has a header and no rows"),
    "other columns": (
        lambda f: csv(f, pd.DataFrame({"alpha": [1, 2], "beta": [3, 4]})),
        "Say which is which: --columns",
    ),
    "no items": (lambda f: csv(f, lines()[["receipt", "date"]]), "an item was not found"),
    "a damaged parquet": (_write("sales.parquet", b"PAR1 and then nothing"), "sales.parquet cannot be read"),
    "partitions cut short": (_beside("_temporary"), "receipts holds _temporary: it was not written to its end"),
    "a Delta table": (_beside("_delta_log"), "receipts holds _delta_log"),
    "a damaged partition": (
        lambda f: (_partitioned(f), next(f.glob("receipts/*/*")).write_bytes(b"PAR1"))[0],
        "cannot be read; write it again",
    ),
    "a damaged workbook": (_write("sales.xlsx", b"PK and then nothing"), "sales.xlsx cannot be read"),
    "dates that are none": (lambda f: csv(f, lines().assign(date="some day")), "dates are not understood, one of them"),
    "only returns": (lambda f: csv(f, lines().assign(qty=-1)), "No line can be used"),
    "settings that are none": (
        lambda f: (csv(f, lines()), (f / "shop.toml").write_text("columns = ["))[0],
        "shop.toml cannot be read",
    ),
    "a column that is not there": (
        lambda f: (csv(f, lines()), (f / "shop.toml").write_text('[columns]\nitem = "x"\n'))[0],
        "No file has the column 'x'",
    ),
}
