"""A reader's own shop: its files read as they are, a report, a service (`recutils` on the command line).

Reading, report and rules need the extra `shop` and no torch; `serving` needs the extra `service` too."""

from recutils.shop.reading import Shop, read_shop

__all__ = ["Shop", "read_shop"]
