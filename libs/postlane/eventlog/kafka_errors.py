"""librdkafka's errors, translated once into what the caller must do."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException

from postlane.eventlog.errors import (
    Fatal,
    Fenced,
    LogError,
    OffsetGone,
    Retriable,
    TooLarge,
    UnknownTopic,
    Unreachable,
)

FENCED = frozenset(
    {
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError._FENCED,
    }
)
_GONE = frozenset({KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE})
_UNKNOWN_TOPIC = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION})
UNREACHABLE = frozenset(
    {KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE, KafkaError._TIMED_OUT}
)
_TOO_LARGE = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})
_FATAL = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError._AUTHENTICATION,
        KafkaError.UNSUPPORTED_VERSION,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
        KafkaError.INVALID_CONFIG,
        KafkaError.INVALID_TRANSACTION_TIMEOUT,
        KafkaError.INCONSISTENT_GROUP_PROTOCOL,
        KafkaError._UNSUPPORTED_FEATURE,
        KafkaError._INVALID_ARG,
    }
)


def kafka_error(error: BaseException) -> KafkaError | None:
    """The KafkaError within an exception, if it carries one."""
    if isinstance(error, KafkaException) and error.args and isinstance(error.args[0], KafkaError):
        return error.args[0]
    return None


def describe(error: KafkaError) -> str:
    return f"{error.name()}: {error.str()}"


def translate(error: KafkaError, doing: str) -> LogError:
    """What a failed call means for its caller, outside transactions. `doing` says what was attempted."""
    code = error.code()
    text = f"{doing}: {describe(error)}"
    if code in FENCED:
        return Fenced(f"{text}; another process is this one")
    if code in _GONE:
        return OffsetGone(text)
    if code in _UNKNOWN_TOPIC:
        return UnknownTopic(f"{text}; run `postlane topics apply`")
    if code in _TOO_LARGE:
        return TooLarge(text)
    if code == KafkaError._BAD_MSG:
        return Fatal(
            f"{text}; nothing behind it is read, or what the batch holds would be passed over. Let a healthy replica "
            "lead the partition, and rebuild this one: docs/runbooks/under-replicated.md"
        )
    if error.fatal() or code in _FATAL:
        return Fatal(text)
    if code in UNREACHABLE:
        return Unreachable(text)
    return Retriable(text)


def translated(error: BaseException, doing: str) -> BaseException:
    """`error` in our words when it is the library's, else as it is."""
    known = kafka_error(error)
    return error if known is None else translate(known, doing)
