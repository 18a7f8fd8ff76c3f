"""What tests put on RabbitMQ's queues themselves, and see there."""

import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel

from support.waiting import wait_until


def put(channel: BlockingChannel, queue: str, body: bytes, properties: pika.BasicProperties | None = None) -> None:
    """Publish a message until RabbitMQ has it safe.

    A quorum queue that is just declared, or whose node is just back, may have no leader yet: RabbitMQ then refuses what it
    is sent without having looked at it, so that nothing comes twice.

    Args:
        channel: confirms deliveries.
        queue: where to; it exists.
        body: what.
        properties: AMQP's.
    """

    def kept() -> bool:
        try:
            channel.basic_publish("", queue, body, properties, mandatory=True)
        except pika.exceptions.NackError:
            return False
        return True

    wait_until(kept, f"{queue} has a leader")


def messages(channel: BlockingChannel, queue: str) -> int:
    """How many wait on a queue."""
    return int(channel.queue_declare(queue, passive=True).method.message_count)
