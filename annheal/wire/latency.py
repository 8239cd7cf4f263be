"""How searches take now against earlier ones: reported by nodes, shown to operators."""

from __future__ import annotations

from annheal.model.measures.latency import LatencyTrend, TrendRatio, TrendVerdict
from annheal.v1 import admin_pb2
from annheal.wire.enums import TREND_VERDICT


def encode_trend(trend: LatencyTrend) -> admin_pb2.LatencyTrend:
    """Return the trend of one node."""
    return admin_pb2.LatencyTrend(
        verdict=TREND_VERDICT.encode(trend.verdict),
        reason=trend.reason,
        window_s=trend.window_s,
        queries_per_s=trend.queries_per_s,
        windows=trend.windows,
        baseline_windows=trend.baseline_windows,
        p50=_encode_ratio(trend.p50),
        p99=_encode_ratio(trend.p99),
        visited=_encode_ratio(trend.visited),
    )


def decode_trend(message: admin_pb2.LatencyTrend) -> LatencyTrend:
    """Return the trend of one node."""
    return LatencyTrend(
        verdict=TREND_VERDICT.decode_or(message.verdict, TrendVerdict.UNKNOWN),
        reason=message.reason,
        window_s=message.window_s,
        queries_per_s=message.queries_per_s,
        windows=message.windows,
        baseline_windows=message.baseline_windows,
        p50=_decode_ratio(message.p50) if message.HasField("p50") else None,
        p99=_decode_ratio(message.p99) if message.HasField("p99") else None,
        visited=_decode_ratio(message.visited) if message.HasField("visited") else None,
    )


def _encode_ratio(ratio: TrendRatio | None) -> admin_pb2.TrendRatio | None:
    if ratio is None:
        return None
    return admin_pb2.TrendRatio(now=ratio.now, ratio=ratio.ratio, low=ratio.low, high=ratio.high)


def _decode_ratio(message: admin_pb2.TrendRatio) -> TrendRatio:
    return TrendRatio(message.now, message.ratio, message.low, message.high)
