"""What a collection says about its texts: specifications, templates, and their stored forms."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annheal.cli.user_commands.assignments import parse_embedder
from annheal.client.collection_calls import as_embedder
from annheal.embedding.checks import validate_text_models
from annheal.embedding.source import NoSource, render_records
from annheal.errors import InvalidArgument
from annheal.metastore.codec import decode_value, encode_value
from annheal.metastore.keys import collection_key
from annheal.model.collection import Collection, Metric, ModelSpec
from annheal.model.texts.spec import EmbedderSpec, Pooling, TextModel, embedder_violations
from annheal.model.texts.template import parse_template
from annheal.v1 import collections_pb2
from annheal.wire.lifecycle import collections as wire

SPEC = EmbedderSpec(
    "openai",
    url="https://api.example.com/v1",
    remote_model="text-embedding-3-small",
    key_env="ANNHEAL_EMBEDDER_KEY_EXAMPLE",
    query_prefix="query: ",
    send_dimension=True,
    batch_texts=100,
    requests_per_minute=300.0,
    retries=0,
    options=(("a", "1"), ("b", "2")),
)
PLAIN = Collection(
    id="c1", name="papers", models=(ModelSpec("m", 8, Metric.COSINE),), schema=(), shard_count=1
)
COLLECTION = replace(PLAIN, text_models=(TextModel("m", SPEC, "{name}: {summary?}"),))

# ------------------------------------------------------------------------------- stored and sent

# As version 0.1 stored a collection before there were embedders.
OLD_METADATA = (
    b'{"id":"c1","name":"papers","models":[{"name":"m","dimension":8,"metric":"cosine"}],"sche'
    b'ma":[],"shard_count":1,"replica_count":1,"index":{"m":16,"ef_construction":100},"setting'
    b's":{"recall_objective":0.95,"recall_k":10,"seal_rows_max":16384,"seal_bytes_max":6710886'
    b'4,"seal_age_s":5.0,"tombstone_ratio_max":0.2,"tombstone_rows_min":1000,"segment_rows_max'
    b'":1000000,"unindexed_rows_max":500000,"segment_bytes_max":2147483648,"segment_idle_s":60'
    b'.0,"walk_cost_ratio_max":1.5,"compaction_automatic":true,"storage":"float32","recall_bud'
    b'get":16.0,"recall_tail_objective":0.0,"recall_objective_share":0.0},"created_at_s":0.0,"'
    b'revision":0}'
)
# A ModelSpec of that version on the wire: name, dimension, metric.
OLD_MODEL = bytes.fromhex("0a016d10081801")
NEW_METADATA = (
    b'"text_models":[{"model":"m","embedder":{"kind":"openai","url":"https://api.example.com/v'
    b'1","remote_model":"text-embedding-3-small","folder":"","key_env":"ANNHEAL_EMBEDDER_KEY_E'
    b'XAMPLE","key_file":"","query_prefix":"query: ","document_prefix":"","pooling":"mean","no'
    b'rmalize":true,"tokens_max":0,"send_dimension":true,"batch_texts":100,"batch_tokens":1638'
    b'4,"text_characters_max":32768,"requests_per_minute":300.0,"tokens_per_minute":0.0,"timeo'
    b'ut_s":30.0,"retries":0,"concurrency":4,"options":[["a","1"],["b","2"]]},"source":"{name}'
    b': {summary?}"}]'
)


def test_old_metadata_is_read() -> None:
    assert decode_value(OLD_METADATA, Collection, key=collection_key("papers")) == PLAIN


def test_metadata_keeps_its_form() -> None:
    stored = encode_value(COLLECTION)
    assert NEW_METADATA in stored
    assert decode_value(stored, Collection, key=collection_key("papers")) == COLLECTION


def test_old_messages_are_read() -> None:
    message = collections_pb2.Collection(
        id="c1", name="papers", models=[collections_pb2.ModelSpec.FromString(OLD_MODEL)]
    )
    found = wire.decode_collection(message)
    assert found.models == PLAIN.models
    assert found.text_models == ()


def test_a_collection_without_embedder_is_sent_as_before() -> None:
    assert wire.encode_collection(PLAIN).models[0].SerializeToString() == OLD_MODEL


def test_embedders_survive_the_wire() -> None:
    found = wire.decode_collection(wire.encode_collection(COLLECTION))
    assert found == replace(COLLECTION, serving="m")
    request = wire.encode_create_collection(
        "papers", models=COLLECTION.models, text_models=COLLECTION.text_models
    )
    found = wire.decode_create_collection(request, collection_id="", created_at_s=0)
    assert found.text_models == COLLECTION.text_models


def test_what_is_not_set_has_the_default() -> None:
    message = collections_pb2.ModelSpec(name="m", dimension=8, metric=collections_pb2.METRIC_COSINE)
    message.embedder.kind = "minilm_l6"
    found = wire.decode_collection(collections_pb2.Collection(models=[message]))
    assert found.text_models == (TextModel("m", EmbedderSpec("minilm_l6")),)


# ------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"kind": "Open AI"}, "kind"),
        ({"url": "ftp://h"}, "url"),
        ({"url": "http://user:secret@h/v1"}, "url"),
        ({"url": "http://h/v1?key=secret"}, "url"),
        ({"url": "http://h/a/../b"}, "url"),
        ({"url": "http://h\\@x/"}, "url"),
        ({"url": "http://h:99999/"}, "url"),
        ({"key_env": "AWS_SECRET_ACCESS_KEY"}, "key_env"),
        ({"key_env": "ANNHEAL_ETCD_PASSWORD"}, "key_env"),
        ({"key_env": "ANNHEAL_EMBEDDER_KEYX"}, "key_env"),
        ({"key_file": "openai"}, "key_file"),
        ({"key_env": "", "key_file": "../../etc/shadow"}, "key_file"),
        ({"key_env": "", "key_file": ".."}, "key_file"),
        ({"folder": "/models"}, "folder"),
        ({"batch_texts": 0}, "batch_texts"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"retries": 21}, "retries"),
        ({"requests_per_minute": -1.0}, "requests_per_minute"),
        ({"query_prefix": "x" * 1_025}, "query_prefix"),
        ({"options": (("a", "x" * 1_025),)}, "options"),
    ],
)
def test_wrong_options_are_named(change: dict[str, object], field: str) -> None:
    found = embedder_violations(replace(SPEC, **change), field="embedder")  # type: ignore[arg-type]
    assert {one.field for one in found} == {f"embedder.{field}"}
    assert not any("secret" in one.description for one in found)


def test_a_good_specification_is_accepted() -> None:
    assert embedder_violations(SPEC, field="embedder") == []
    validate_text_models(COLLECTION)


@pytest.mark.parametrize(
    ("text_model", "field"),
    [
        (TextModel("other", SPEC), "text_models"),
        (TextModel("m", EmbedderSpec(""), "{name}"), r"models\[0\].embedder"),
        (TextModel("m", SPEC, "{"), r"models\[0\].source"),
        (TextModel("m", replace(SPEC, retries=99)), r"models\[0\].embedder.retries"),
    ],
)
def test_validation_names_the_field(text_model: TextModel, field: str) -> None:
    with pytest.raises(InvalidArgument, match=field):
        validate_text_models(replace(PLAIN, text_models=(text_model,)))


def test_the_sdk_takes_a_kind_or_options() -> None:
    assert as_embedder("minilm_l6") == EmbedderSpec("minilm_l6")
    given = {"kind": "onnx", "folder": "m", "pooling": "cls", "options": {"b": "2", "a": "1"}}
    expected = EmbedderSpec(
        "onnx", folder="m", pooling=Pooling.CLS, options=(("a", "1"), ("b", "2"))
    )
    assert as_embedder(given) == expected
    for wrong, said in (
        ({"url": "http://h"}, "embedder.kind"),
        ({"kind": "onnx", "foldr": "m"}, r"embedder.foldr: .*did you mean folder"),
        ({"kind": "onnx", "retries": "many"}, "embedder.retries"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            as_embedder(wrong)


def test_the_command_line_takes_options() -> None:
    texts = ["url=http://h/v1", "remote-model=7", "retries=3", "options.region=eu=1"]
    found = parse_embedder("openai", texts)
    assert found == {
        "kind": "openai",
        "url": "http://h/v1",
        "remote_model": "7",
        "retries": 3,
        "options": {"region": "eu=1"},
    }
    assert parse_embedder(None, []) is None
    with pytest.raises(InvalidArgument, match="needs --embedder"):
        parse_embedder(None, ["a=b"])


# -------------------------------------------------------------------------------------- templates

ATTRIBUTES = pa.RecordBatch.from_pydict(
    {
        "name": pa.array(["faiss", None], type=pa.string()),
        "tags": pa.array([["a", "b"], []], type=pa.list_(pa.string())),
        "year": pa.array([2024, None], type=pa.int64()),
        "good": pa.array([True, False]),
    }
)
PAYLOADS = pa.array([b'{"summary":"fast","author":{"name":"Eva"},"n":1.5}', None], type=pa.binary())


def render(source: str) -> list[str]:
    found = render_records(parse_template(source), attributes=ATTRIBUTES, payloads=PAYLOADS)
    return [f"! {one.reason}" if isinstance(one, NoSource) else one for one in found]


def test_attributes_and_payload_are_filled_in() -> None:
    source = "{name}: {summary} by {author.name}, {tags} {year} {good} {n} {{x}}"
    assert render(source)[0] == "faiss: fast by Eva, a, b 2024 true 1.5 {x}"


def test_what_is_missing_is_a_reason_for_its_record_alone() -> None:
    found = render("{name}: {summary}")
    assert found[0] == "faiss: fast"
    assert found[1].startswith("! 'name' of its source is missing; write {name?}")
    assert render("{name?}{summary?}{author.name?}{tags?}-") == ["faissfastEvaa, b-", "-"]
    assert "'author' of its source is no text" in render("{author}")[0]
    assert "'summary.deep' of its source is missing" in render("{summary.deep}")[0]


def test_a_declared_attribute_hides_a_field_of_the_payload() -> None:
    payloads = pa.array([b'{"name":"other"}', b'{"name":"other"}'], type=pa.binary())
    found = render_records(parse_template("{name?}-"), attributes=ATTRIBUTES, payloads=payloads)
    assert found == ["faiss-", "-"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "has 0 names"),
        ("no names", "has 0 names"),
        ("{name", "lone '{' at position 0"),
        ("name}", "lone '}' at position 4"),
        ("{}", "'' in braces"),
        ("{a b}", "'a b' in braces"),
        ("{a.}", "'a.' in braces"),
        ("{name!r}{", "lone '{'"),
        ("{a}" * 65, "has 65 names"),
        ("x" * 4_097, "more than 4096"),
    ],
)
def test_wrong_templates_say_what_is_wrong(source: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said.replace("{", r"\{").replace("}", r"\}")):
        parse_template(source)


@given(st.text(alphabet="{}a.? b", max_size=20))
def test_any_template_is_parsed_or_refused(source: str) -> None:
    try:
        template = parse_template(source)
    except InvalidArgument:
        return
    assert any(not isinstance(part, str) for part in template)
