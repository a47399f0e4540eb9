"""The trials of a search on clusters of two workers: the same plan as here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import tncompiler as tnc
from tests.test_plans_search import hyper_options, regular

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TNC_CACHE", "0")


@pytest.fixture
def dask_client() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    options = dict(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        yield client


@pytest.fixture
def ray_cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


def test_dask_gives_the_same_plan(dask_client: Any) -> None:
    alone = tnc.plan(regular(24), options=hyper_options())
    plan = tnc.plan(regular(24), options=hyper_options(parallel=dask_client))
    assert plan.ssa_path == alone.ssa_path
    assert not plan.cut


def test_ray_gives_the_same_plan(ray_cluster: Any) -> None:
    from cotengra.parallel import RayExecutor

    alone = tnc.plan(regular(24), options=hyper_options())
    for parallel in ("ray", RayExecutor()):
        plan = tnc.plan(regular(24), options=hyper_options(parallel=parallel))
        assert plan.ssa_path == alone.ssa_path
        assert not plan.cut
