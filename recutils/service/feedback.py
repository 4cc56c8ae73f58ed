"""What became of offers, in a database: SQLite beside the versions, or PostgreSQL by a URL (chapters 07, 07b)."""

from functools import cached_property
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy import Column
from sqlalchemy.exc import SQLAlchemyError

from recutils.service.files import locked

UNAVAILABLE = (SQLAlchemyError, OSError, ImportError)  # what a store raises that cannot be reached, or has no room

FEEDBACK = sql.Table(
    "feedback",
    sql.MetaData(),
    Column("id", sql.Integer, primary_key=True),
    Column("at", sql.Float, index=True, nullable=False),  # seconds since 1970
    Column("request", sql.String(64)),  # x-request-id of the answer that offered the item
    Column("version", sql.String(64)),  # of the artefact that offered it
    Column("household", sql.String(16), index=True),  # its pseudonym
    Column("item", sql.String(64), nullable=False),
    Column("event", sql.String(8), nullable=False),  # shown, added or refused
    Column("rank", sql.Integer),  # its place among the offers, from 1
)


class FeedbackStore:
    """What became of offers: an SQLite file in `folder`, or where `url` says (`postgresql://...`).

    SQLite keeps a log written ahead (WAL): what was acknowledged survives a crash, and processes may write at the same
    time. Its file grows to `max_bytes` at most. Methods wait for a disk or a network: none is for the event loop.
    They raise one of `UNAVAILABLE` where there is no room or no database; the next call tries again.
    """

    def __init__(self, folder: Path, url: str = "", max_bytes: int = 1_000_000_000) -> None:
        self.folder, self.file, self.max_bytes = folder, folder / "feedback.sqlite", max_bytes
        self.url = sql.make_url(url or f"sqlite:///{self.file}")
        if self.url.drivername == "postgresql":
            self.url = self.url.set(drivername="postgresql+psycopg")

    @cached_property
    def engine(self) -> sql.Engine:
        """The connections; the table is made where it is missing."""
        patience = {} if self.url.drivername.startswith("sqlite") else {"connect_timeout": 3}
        engine = sql.create_engine(self.url, pool_pre_ping=True, hide_parameters=True, connect_args=patience)
        with locked(self.folder):
            if engine.dialect.name == "sqlite":
                self.file.touch(0o600)
                sql.event.listen(engine, "connect", self._prepare)
            FEEDBACK.metadata.create_all(engine)
        return engine

    def _prepare(self, connection: Any, _: Any) -> None:
        """A new connection to SQLite: what is deleted is overwritten."""
        for setting in ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 10000", "secure_delete = ON"):
            connection.execute(f"PRAGMA {setting}").close()
        connection.execute(f"PRAGMA max_page_count = {self.max_bytes // 4096}").close()

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Keep rows of `FEEDBACK`, all or none."""
        with self.engine.begin() as connection:
            connection.execute(FEEDBACK.insert(), rows)

    def read(self) -> list[dict[str, Any]]:
        """All that is kept, oldest first."""
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(FEEDBACK.select().order_by(FEEDBACK.c.id)).mappings()]

    def erase(self, household: str) -> int:
        """Delete all that was kept of a household (its pseudonym), while services run; returns how many rows.

        The database's files hold nothing of it afterwards. PostgreSQL's own log and every backup do, until they end.
        """
        with self.engine.begin() as connection:
            n = connection.execute(FEEDBACK.delete().where(FEEDBACK.c.household == household)).rowcount
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if self.engine.dialect.name == "sqlite":
                connection.exec_driver_sql("VACUUM")
                if connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar():
                    raise ValueError("Erased, but its bytes stay in the log while others read; do it again.")
            else:
                connection.exec_driver_sql("VACUUM FULL feedback")
        return n

    def rates(self, since: float) -> dict[str, dict[str, float]]:
        """By version, of the offers shown since then: `offers` and `lists` shown, `click_through`, `conversion`.

        Click-through is the share of shown offers that were added, conversion that of shown lists (the offers of one
        answer) from which something was. An offer that is told of twice counts once.
        """
        kept, count = FEEDBACK.c, sql.func.sum
        shown, added = (
            sql.func.max(sql.case((kept.event == event, 1), else_=0)).label(event) for event in ("shown", "added")
        )
        known = sql.and_(kept.at >= since, kept.version.is_not(None), kept.request.is_not(None))
        by_offer = sql.select(kept.version, kept.request, shown, added).where(known)
        offer = by_offer.group_by(kept.version, kept.request, kept.item).having(shown == 1).subquery().c
        by_list = sql.select(offer.version, count(offer.shown).label("n"), count(offer.added).label("added"))
        shown_list = by_list.group_by(offer.version, offer.request).subquery().c
        some = sql.case((shown_list.added > 0, 1), else_=0)
        counts = sql.select(
            shown_list.version, count(shown_list.n), sql.func.count(), count(shown_list.added), count(some)
        )
        with self.engine.connect() as connection:
            found = connection.execute(counts.group_by(shown_list.version)).all()
        return {
            version: {"offers": int(n), "lists": lists, "click_through": int(a) / int(n), "conversion": int(s) / lists}
            for version, n, lists, a, s in found
        }
