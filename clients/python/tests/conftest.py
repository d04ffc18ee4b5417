"""What tests share. To start a service takes long, so those that do not stop it use one."""

from collections.abc import Iterator

import pytest

from tests.support import Server, Site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="session")
def server(site: Site) -> Iterator[Server]:
    with site.start() as server:
        yield server
