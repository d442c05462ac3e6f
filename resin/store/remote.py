"""Prometheus remote write, version 1: samples as a snappy-compressed protobuf WriteRequest.

Label set of an entity: host, component, pid, start_time, job_group; metric `anon_bytes` becomes
`resin_anon_bytes`. https://prometheus.io/docs/specs/prw/remote_write_spec/
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from ..model import Entity, Sample

PREFIX = "resin_"
CONTENT_TYPE = "application/x-protobuf"
HEADERS = {
    "Content-Type": CONTENT_TYPE,
    "Content-Encoding": "snappy",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}


def labels_of(entity: Entity) -> dict[str, str]:
    """Labels that carry an entity through Prometheus and back (see `entity_of`)."""
    labels = {"component": entity.component, "host": entity.host}
    if entity.pid is not None:
        labels["pid"] = str(entity.pid)
    if entity.start_time_s is not None:
        labels["start_time"] = repr(float(entity.start_time_s))
    if entity.group:
        labels["job_group"] = entity.group
    return labels


def entity_of(labels: Mapping[str, str]) -> Entity | None:
    """Entity from the labels of a series; None for series that no agent of resin wrote."""
    if not labels.get("host") or not labels.get("component"):
        return None
    try:
        pid = int(labels["pid"]) if labels.get("pid") else None
        start_s = float(labels["start_time"]) if labels.get("start_time") else None
    except ValueError:
        return None
    return Entity(labels["host"], labels["component"], pid, start_s, labels.get("job_group") or None)


def write_request(samples: Iterable[Sample]) -> bytes:
    """Uncompressed WriteRequest with one time series per entity and metric, samples in order of time."""
    series: dict[tuple[Entity, str], list[tuple[int, float]]] = {}
    for sample in samples:
        at = round(sample.time_s * 1000)
        for metric, value in sample.values.items():
            series.setdefault((sample.entity, metric), []).append((at, value))
    request = _message_class()()
    for (entity, metric), points in series.items():
        one = request.timeseries.add()
        labels = {"__name__": PREFIX + metric, **labels_of(entity)}
        for name in sorted(labels):
            one.labels.add(name=name, value=labels[name])
        for at, value in sorted(points):
            one.samples.add(value=value, timestamp=at)
    return request.SerializeToString()


def read_request(body: bytes) -> list[tuple[dict[str, str], list[tuple[int, float]]]]:
    """Label sets and (time in ms, value) points of an uncompressed WriteRequest."""
    request = _message_class()()
    request.ParseFromString(body)
    return [
        ({label.name: label.value for label in one.labels}, [(s.timestamp, s.value) for s in one.samples])
        for one in request.timeseries
    ]


def compress(body: bytes) -> bytes:
    """Snappy block format, as remote write asks for."""
    import cramjam

    return bytes(cramjam.snappy.compress_raw(body))


@functools.cache
def _message_class() -> Any:
    """The message class, described here field by field so that no generated code has to fit a protobuf version."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="resin/remote_write.proto", package="resin.prometheus", syntax="proto3"
    )

    def message(name: str, *fields: tuple[str, int, int, str | None, bool]) -> None:
        described = file.message_type.add(name=name)
        for field_name, number, kind, type_name, repeated in fields:
            label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            described.field.add(name=field_name, number=number, type=kind, label=label, type_name=type_name)

    message(
        "Label", ("name", 1, field.TYPE_STRING, None, False), ("value", 2, field.TYPE_STRING, None, False)
    )
    message(
        "Sample",
        ("value", 1, field.TYPE_DOUBLE, None, False),
        ("timestamp", 2, field.TYPE_INT64, None, False),
    )
    message(
        "TimeSeries",
        ("labels", 1, field.TYPE_MESSAGE, ".resin.prometheus.Label", True),
        ("samples", 2, field.TYPE_MESSAGE, ".resin.prometheus.Sample", True),
    )
    message("WriteRequest", ("timeseries", 1, field.TYPE_MESSAGE, ".resin.prometheus.TimeSeries", True))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("resin.prometheus.WriteRequest"))
