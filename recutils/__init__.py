"""The small shared package of the book *What Goes With What*: one module an idea, met in full in a chapter first."""

__version__ = "0.1.0"
