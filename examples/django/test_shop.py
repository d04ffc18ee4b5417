"""Starts the authority and the shop as processes, and calls each route with each kind of token."""

from pathlib import Path

from tests.shop import check_shop


def test_each_route_lets_the_right_sessions_pass(tmp_path: Path) -> None:
    """Runs the cases that all examples share."""
    check_shop(Path(__file__).with_name("shop.py"), tmp_path)
