"""Every limit of the public contract, in one place (INV-9). docs/limits.md explains them."""

from __future__ import annotations

ID_BYTES_MAX = 512
NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]{0,63}$"
ATTRIBUTE_NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"
DIMENSION_MAX = 32_768
MODELS_MAX = 4
"""Models of a collection at a time."""
MODELS_EVER_MAX = 32
"""Models of a collection, with those that were removed: their names are not used again."""
SHARD_COUNT_MAX = 1_024
ATTRIBUTE_FIELDS_MAX = 64
KEYWORD_BYTES_MAX = 4_096
KEYWORD_LIST_LENGTH_MAX = 1_024
PAYLOAD_BYTES_MAX = 1 << 20
PAYLOAD_DEPTH_MAX = 256
WRITE_ROWS_MAX = 10_000
K_MAX = 16_384
EF_MAX = 16_384
SEARCH_QUERIES_MAX = 1_000
SEARCH_HITS_MAX = 1_000_000
"""Queries times k of one call."""
RECALL_BUDGET_MAX = 10_000
"""Times the usual cost of a search that one query may cost to keep the recall objective."""
UPSERT_TEXTS_MAX = 2_048
"""Records of one write that the server embeds."""
QUERY_TEXTS_MAX = 256
GET_IDS_MAX = 10_000
SCAN_PAGE_ROWS_MAX = 10_000
REQUEST_BYTES_MAX = 64 << 20
RESPONSE_BYTES_MAX = 256 << 20
ANSWER_BYTES_MAX = 224 << 20
"""Of the records in one answer; what the message adds fits beside them."""
SCAN_PAGE_BYTES = 32 << 20
"""A page of a scan ends before the record that would make it larger; one record is always in it."""
TIMEOUT_DEFAULT_S = 60.0
TIMEOUT_MAX_S = 600.0
