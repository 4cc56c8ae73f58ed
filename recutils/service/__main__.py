"""`python -m recutils.service`: see `recutils.service.app.main`."""

from recutils.service.app import main

main()
