"""Pixels lent to threads."""

import threading

from embedder.pixel_budget import PixelBudget

WAIT_S = 20.0


def test_a_large_picture_is_not_passed_by_small_ones_for_ever() -> None:
    budget, order = PixelBudget(100), []
    first_in, first_out = threading.Event(), threading.Event()

    def hold() -> None:
        with budget.lent(60):
            first_in.set()
            assert first_out.wait(WAIT_S)

    def take(name: str, pixels: int) -> None:
        with budget.lent(pixels):
            order.append(name)

    holder = threading.Thread(target=hold)
    holder.start()
    assert first_in.wait(WAIT_S)
    large = threading.Thread(target=take, args=("large", 1_000_000))
    large.start()
    while not budget.waiting:
        pass
    small = threading.Thread(target=take, args=("small", 10))
    small.start()
    first_out.set()
    for thread in (holder, large, small):
        thread.join(WAIT_S)
    assert order == ["large", "small"]
