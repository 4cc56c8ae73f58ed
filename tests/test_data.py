"""The store, the split, the features, and what happens with files that are wrong."""

import multiprocessing
import os
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sample import FOLDER, draw, write

from recutils import data, settings
from recutils.data import complete_journey, schema

# ------------------------------------------------------------------------------------ Complete Journey


def test_no_line_of_complete_journey_vanishes(journey):
    raw = data.journey_table("transactions")
    assert len(raw) == 1_469_307 == len(journey.transactions) + journey.dropped["lines"].sum()
    assert set(journey.transactions["item_id"]) <= set(journey.items["item_id"])
    assert journey.items["item_id"].is_unique


def test_the_shop_clock_reproduces_the_package_weeks(journey):
    assert (schema.week_numbers(journey.transactions["timestamp"]) == journey.transactions["week"]).all()


def test_an_item_is_a_distinct_description(journey):
    assert not journey.items.duplicated(complete_journey.ITEM_TEXT_COLUMNS).any()


def test_split_of_the_protocol(journey, journey_split):
    split, weeks = journey_split, journey.transactions.groupby("basket_id")["week"].first()
    assert split.train.matrix.shape == (115_411, 6_263)
    assert str(split.validation_start)[:10] == "2017-10-30" and str(split.test_start)[:10] == "2017-11-27"
    assert split.train.timestamps.max() < np.datetime64(split.validation_start) <= split.validation.timestamps.min()
    assert split.validation.timestamps.max() < np.datetime64(split.test_start) <= split.test.timestamps.min()
    assert set(split.train.matrix.data) == {1.0}
    assert np.asarray(split.train.matrix.sum(axis=0)).min() >= 20
    assert weeks.between(1, 44).sum() >= len(split.train)


def test_promotion_flags_agree_with_the_raw_table(journey):
    """A hundred bought lines, looked up in the 20.9 million rows in another way."""
    lines = journey.transactions.sample(100, random_state=0)
    keys = ["product_id", "store_id", "week"]
    columns = [*keys, "display_location", "mailer_location"]
    filters = [("product_id", "in", lines["product_id"].tolist())]
    raw = pd.read_parquet(complete_journey.journey_file("promotions"), columns=columns, filters=filters)
    expected = lines[keys].merge(raw.drop_duplicates(keys), on=keys, how="left").fillna("0")
    got = data.promotion_exposure().reindex(complete_journey.promotion_key(*(lines[k] for k in keys)), fill_value=False)
    assert (got["display"].to_numpy() == (expected["display_location"] != "0").to_numpy()).all()
    assert (got["mailer"].to_numpy() == (expected["mailer_location"] != "0").to_numpy()).all()
    assert 0 < got["mailer"].sum() < 100


@pytest.mark.parametrize("table", [data.household_features, data.item_features])
def test_features_do_not_move_when_the_future_does(table, journey, journey_split):
    lines = journey.transactions
    future = lines["timestamp"] >= journey_split.validation_start
    garbled = lines.assign(
        price=lines["price"].where(~future, 1e6),
        household_id=lines["household_id"].where(~future, lines["household_id"].iloc[0]),
        item_id=lines["item_id"].where(~future, lines["item_id"].iloc[0]),
    )
    moved = table(replace(journey, transactions=garbled), journey_split)
    pd.testing.assert_frame_equal(table(journey, journey_split), moved)


def test_features_by_hand(tmp_path):
    lines = pd.DataFrame(
        {
            "basket_id": ["a", "a", "b", "c", "z"],
            "household_id": ["h", "h", "h", "g", "h"],
            "item_id": ["x", "y", "x", "x", "x"],
            # Monday morning, Saturday evening, Sunday night; "z" lies in the test weeks
            "timestamp": ["2024-01-01 08:00"] * 2 + ["2024-01-06 18:00", "2024-01-07 23:00", "2024-01-23 12:00"],
            "quantity": [2, 1, 1, 1, 9],
            "price": [1.5, 4.0, 2.0, 5.0, 99.0],
        }
    )
    shop = _shop(tmp_path, lines, pd.DataFrame({"item_id": ["x", "y"], "kind": ["bread", "tea"]}))
    store = data.load_store(shop)
    split = data.time_split(store, validation_weeks=1, test_weeks=1, min_baskets=1)
    h = data.household_features(store, split).loc["h"]
    assert (h["baskets"], h["lines_per_basket"], h["spend_per_basket"]) == (2, 1.5, 4.5)
    assert h["recency_days"] == pytest.approx(9 - 0.75)  # validation starts on Monday the 15th
    assert (h["share_morning"], h["share_evening"], h["share_weekend"]) == pytest.approx((2 / 3, 1 / 3, 1 / 3))
    assert h["spend_bread"] == pytest.approx(5 / 9)
    x = data.item_features(store, split).set_index("item_id").loc["x"]
    assert (x["baskets"], x["households"], x["repeat_share"], x["price"], x["spend"]) == (3, 2, 0.5, 2.0, 10.0)


# ------------------------------------------------------------------------------------ a reader's own shop


def _shop(folder, transactions, items, ending="csv"):
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in (("transactions", transactions), ("items", items)):
        if ending == "csv":
            table.to_csv(folder / f"{name}.csv", index=False)
        else:
            table.to_parquet(folder / f"{name}.parquet")
    return folder


def test_the_committed_sample_is_what_its_script_draws(tmp_path):
    write(tmp_path)
    for name in ("transactions.csv", "items.csv"):
        assert (tmp_path / name).read_text() == (FOLDER / name).read_text()


def test_csv_and_parquet_give_the_same_store(tmp_path, sample):
    other = data.load_store(_shop(tmp_path, *draw(), ending="parquet"))
    pd.testing.assert_frame_equal(other.transactions, sample.transactions, check_dtype=False)
    pd.testing.assert_frame_equal(other.items, sample.items, check_dtype=False)


def _change(column, value, row=0):
    def change(transactions, items):
        transactions[column] = transactions[column].astype(object)
        transactions.loc[row, column] = value

    return change


BAD = {
    "missing column": (lambda t, i: t.pop("basket_id"), "transactions.csv lacks the column basket_id"),
    "missing item column": (lambda t, i: i.pop("item_id"), "items.csv lacks the column item_id"),
    "no text": (lambda t, i: i.drop(columns=["department", "name"], inplace=True), "items.csv has no text column"),
    "wrong type": (_change("quantity", "two", 3), "quantity are not numbers, the first in row 4: 'two'"),
    "infinite price": (_change("price", "inf"), "price are not numbers"),
    "unparsable date": (_change("timestamp", "31/12/2024 noon", 1), "timestamp are not dates, the first in row 2"),
    "no basket": (_change("basket_id", None), "1 rows have no basket_id"),
    "no date": (_change("timestamp", None), "1 rows have no timestamp"),
    "duplicate item": (lambda t, i: i.__setitem__("item_id", ["i00"] * len(i)), "29 rows repeat an item_id"),
    "two owners": (_change("household_id", "h99", 2), "belong to more than one household_id"),
    "nothing matches": (lambda t, i: i.__setitem__("item_id", i["item_id"] + "x"), "no line is left"),
}


@pytest.mark.parametrize("change, message", BAD.values(), ids=BAD)
def test_bad_shop_gets_one_clear_error(tmp_path, change, message):
    transactions, items = draw()
    change(transactions, items)
    with warnings.catch_warnings(), pytest.raises(data.StoreError, match=message):
        warnings.simplefilter("ignore", data.StoreWarning)
        data.load_store(_shop(tmp_path, transactions, items))


def test_bad_files_get_one_clear_error(tmp_path):
    with pytest.raises(data.StoreError, match=r"holds no transactions.csv or transactions.parquet"):
        data.load_store(tmp_path / "nowhere")
    shop = _shop(tmp_path / "shop", *draw())
    good = (shop / "transactions.csv").read_bytes()
    for content, message in {
        b"": "transactions.csv is empty",
        good.split(b"\n")[0] + b"\n": "transactions.csv has a header and no rows",
        good.replace(b"h02", b"h\xff2"): "transactions.csv is not UTF-8",
        b'a,b\n"1,2\n': "transactions.csv cannot be read",
    }.items():
        (shop / "transactions.csv").write_bytes(content)
        with pytest.raises(data.StoreError, match=message):
            data.load_store(shop)
    (shop / "transactions.csv").unlink()
    (shop / "transactions.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(data.StoreError, match=r"transactions.parquet cannot be read"):
        data.load_store(shop)
    (shop / "transactions.csv").write_bytes(good)
    with pytest.raises(data.StoreError, match="holds both"):
        data.load_store(shop)


def test_numbers_as_dates_are_refused(tmp_path):
    transactions, items = draw()
    shop = _shop(tmp_path, transactions.assign(timestamp=20240131), items, "parquet")
    with pytest.raises(data.StoreError, match="timestamp holds numbers"):
        data.load_store(shop)


def test_utc_offsets_are_dropped_and_the_shop_clock_kept(tmp_path):
    """A shop with summer time writes two offsets; some tills write none."""
    transactions, items = draw()
    plain = pd.to_datetime(transactions["timestamp"])
    endings = ["+01:00", "+02:00", "Z", "", " +0530", "-03"]
    text = pd.Series([f"{t}{endings[n % 6]}" for n, t in enumerate(plain)])
    zoned = pd.Series(
        [t.tz_localize(["Europe/London", "Asia/Tokyo"][n % 2]).to_pydatetime() for n, t in enumerate(plain)]
    )
    for n, written in enumerate([text, zoned.astype(str), plain.dt.tz_localize("Asia/Tokyo")]):
        for ending in ("csv", "parquet"):
            shop = _shop(tmp_path / f"{n}{ending}", transactions.assign(timestamp=written), items, ending)
            assert (data.load_store(shop).transactions["timestamp"] == plain).all()
    uniform = pd.Series([f" {t}+01:00 " for t in plain])  # with blanks around
    for n, written in enumerate([text + " ", uniform]):
        shop = _shop(tmp_path / f"blank{n}", transactions.assign(timestamp=written), items)
        assert (data.load_store(shop).transactions["timestamp"] == plain).all()
    days = transactions.assign(timestamp=plain.dt.strftime("%Y-%m-%d"))  # the -31 of a day is no offset
    assert (
        data.load_store(_shop(tmp_path / "days", days, items)).transactions["timestamp"] == plain.dt.floor("D")
    ).all()
    wrong = transactions.assign(timestamp=text.where(text.index != 7, "1 May +01:00"))
    with pytest.raises(
        data.StoreError, match=r"1 values of timestamp are not dates, the first in row 8: '1 May \+01:00'"
    ):
        data.load_store(_shop(tmp_path / "wrong", wrong, items))


def test_lines_are_left_out_with_a_count(tmp_path):
    transactions, items = draw()
    transactions.loc[:3, "quantity"] = -1
    with pytest.warns(data.StoreWarning, match="4 lines left out: quantity below zero"):
        store = data.load_store(_shop(tmp_path / "returns", transactions, items))
    assert len(store.transactions) + store.dropped["lines"].sum() == len(transactions)
    with pytest.warns(data.StoreWarning, match=r"lines left out: item_id unknown to items.csv"):
        store = data.load_store(_shop(tmp_path / "unknown", draw()[0], items.iloc[5:]))
    assert len(store.transactions) + store.dropped["lines"].sum() == len(transactions)


def test_anonymous_baskets_are_kept(tmp_path):
    transactions, items = draw()
    transactions.loc[transactions["basket_id"] == "b000", "household_id"] = None
    with pytest.warns(data.StoreWarning, match="no household_id"):
        store = data.load_store(_shop(tmp_path, transactions, items))
    split = data.time_split(store, min_baskets=1)
    households = np.concatenate([p.households for p in (split.train, split.validation, split.test)])
    assert (households == data.ANONYMOUS).sum() == 1 and len(households) == 600


def test_number_and_text_ids_meet(tmp_path):
    transactions, items = draw()
    numbers = transactions.assign(item_id=transactions["item_id"].str[1:].astype(int))
    shop = _shop(tmp_path, numbers, items.assign(item_id=[str(n) for n in range(30)]), "parquet")
    assert len(data.load_store(shop).transactions) == len(transactions)


# ------------------------------------------------------------------------------------ split, cold items, cache


def test_periods_and_their_errors(sample):
    split = data.time_split(sample, validation_weeks=2, test_weeks=3, min_baskets=5)
    assert split.test_start - split.validation_start == pd.Timedelta(weeks=2)
    with pytest.raises(ValueError, match="leave no training week"):
        data.time_split(sample, validation_weeks=15, test_weeks=5)
    with pytest.raises(ValueError, match="lower min_baskets"):
        data.time_split(sample, min_baskets=10_000)


def test_warm_items_are_chosen_by_training_baskets_alone(tmp_path):
    """An item that sells only in the test weeks is not warm, however well it sells."""
    transactions, items = draw()
    late = transactions["timestamp"] >= "2024-04-15"
    transactions.loc[late & (transactions["item_id"] == "i00"), "item_id"] = "i29"
    transactions = transactions[~((transactions["item_id"] == "i29") & ~late)]
    split = data.time_split(data.load_store(_shop(tmp_path, transactions, items)), min_baskets=1)
    assert "i29" not in set(split.items["item_id"])


def test_cold_items_are_a_stratified_tenth_hidden_from_training(journey_split):
    cold = data.hide_cold_items(journey_split)
    popularity = np.asarray(journey_split.train.matrix.sum(axis=0)).ravel()
    assert abs(cold.cold.mean() - 0.1) < 0.005
    deciles = np.array_split(np.argsort(popularity), 10)
    assert all(abs(cold.cold[d].mean() - 0.1) < 0.02 for d in deciles)
    assert cold.train.matrix[:, cold.cold].nnz == 0 == cold.validation.matrix[:, cold.cold].nnz
    assert (cold.train.matrix[:, ~cold.cold] != journey_split.train.matrix[:, ~cold.cold]).nnz == 0
    assert (data.hide_cold_items(journey_split).cold == cold.cold).all()
    assert (data.hide_cold_items(journey_split, seed=1).cold != cold.cold).any()


def test_cold_validation_items_are_another_tenth_sold_only_in_validation(journey_split):
    cold = data.hide_cold_items(journey_split)
    inner = data.cold_validation_split(cold)
    assert not (inner.cold & cold.cold).any()
    assert inner.cold.sum() == pytest.approx(0.1 * (~cold.cold).sum(), rel=0.02)
    assert inner.train.matrix[:, inner.cold | cold.cold].nnz == 0
    assert inner.validation.matrix[:, inner.cold].nnz > 0 == inner.validation.matrix[:, cold.cold].nnz
    assert (inner.validation.matrix != cold.validation.matrix).nnz == 0


def _build(folder, queue):
    os.environ["RECUTILS_CACHE"] = str(folder)
    queue.put(len(_slow_result("x")))


@settings.cached()
def _slow_result(name: str) -> str:
    import time
    from pathlib import Path

    time.sleep(0.5)
    with (Path(os.environ["RECUTILS_CACHE"]) / "builds").open("a") as log:
        log.write(f"{name}\n")
    return name * 3


@pytest.mark.slow
def test_a_result_is_built_once_and_again_when_its_cache_breaks(tmp_path, monkeypatch):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_build, args=(tmp_path, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [3, 3]
    for process in processes:
        process.join()
    log = tmp_path / "builds"
    assert log.read_text() == "x\n"
    monkeypatch.setenv("RECUTILS_CACHE", str(tmp_path))
    assert _slow_result("x") == "xxx" and log.read_text() == "x\n"
    (file,) = tmp_path.rglob("*.pkl")
    file.write_bytes(b"damaged")
    assert _slow_result("x") == "xxx" and log.read_text() == "x\nx\n"
    assert _slow_result(name="x") == "xxx" and log.read_text() == "x\nx\n"  # named or not, the same argument
    assert _slow_result("y") == "yyy" and log.read_text() == "x\nx\ny\n"


def test_profile(monkeypatch):
    for wanted in ("cpu", "gpu", "long"):
        monkeypatch.setenv("RECUTILS_PROFILE", wanted)
        assert settings.profile() == wanted
    monkeypatch.setenv("RECUTILS_PROFILE", "fast")
    with pytest.raises(ValueError, match="'auto', 'cpu', 'gpu' or 'long'"):
        settings.profile()
