"""Test what processes of a shared run know of each other."""

import pytest
import torch

from synboost_monai.distributed import in_all_processes, is_main_process, launched_as, num_processes, rank


@pytest.mark.parametrize(("rank", "world_size"), [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "")])
def test_senseless_rank_is_refused(monkeypatch: pytest.MonkeyPatch, rank: str, world_size: str) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(ValueError, match=f"RANK is '{rank}' and WORLD_SIZE '{world_size}'.* unset both"):
        launched_as()


def test_rank_of_a_launch_is_not_that_of_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched_as() == (1, 2)
    assert (rank(), num_processes(), is_main_process()) == (0, 1, True)  # no process group was joined
    assert in_all_processes(lambda: "alone") == ["alone"]


def test_error_in_another_process_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(answers: list, own: object) -> None:
        answers[:] = [own, (None, ValueError("of rank 1"))]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    with pytest.raises(ValueError, match="of rank 1"):
        in_all_processes(lambda: "here")
