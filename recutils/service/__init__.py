"""The service: recommendations, search, bundles and reasons over HTTP, with keys, limits and metrics (chapter 07).

`make serve` (or `python -m recutils.service`) starts it. Needs the extra `service`, and no PyTorch."""
