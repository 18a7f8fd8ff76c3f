import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.rabbit_node import ControlledNode

from trialfleet_shared.errors import BrokerError


@pytest.fixture(scope="session")
def rabbitmq_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlledNode]:
    """A private node for all tests. Without the program: skipped on a laptop, failed where CI is set."""
    try:
        node = ControlledNode(Path(tmp_path_factory.mktemp("rabbitmq")))
    except BrokerError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    with ExitStack() as stack:
        try:
            stack.enter_context(node)
        except BrokerError:
            # A port that was free may be taken by the time that Erlang has started.
            node = stack.enter_context(ControlledNode(Path(tmp_path_factory.mktemp("rabbitmq"))))
        yield node


@pytest.fixture(scope="session")
def rabbitmq(rabbitmq_node: ControlledNode) -> str:
    """The URL of a running broker."""
    return rabbitmq_node.url


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the tests marked `last` end their file, whatever order was drawn: what they look at has run meanwhile."""
    files: dict[Path, int] = {}
    for item in items:
        files.setdefault(item.path, len(files))
    items.sort(key=lambda item: (files[item.path], item.get_closest_marker("last") is not None))
