"""Where the safety token and its probes sit, and who may attend to whom."""

from safealign.layout.documents import document_layout, document_row
from safealign.layout.layout import Layout, RowKind, SafetyRow, build_layout, refresh_row, request_row, window_row
from safealign.layout.packed import pack_layouts
from safealign.layout.spans import Rendered, Span

__all__ = [
    "Layout",
    "Rendered",
    "RowKind",
    "SafetyRow",
    "Span",
    "build_layout",
    "document_layout",
    "document_row",
    "pack_layouts",
    "refresh_row",
    "request_row",
    "window_row",
]
