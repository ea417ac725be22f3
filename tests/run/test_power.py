"""A power cut at any moment: the run resumes from what the disk has, to the same weights."""

import shutil

import pytest

from nin import files
from nin.cli import compose
from nin.run.train import train
from power import cuts_of_a_run, rebuild
from runs import SHORT, in_a_fork, results

RUN = [*SHORT, "trainer.limit_train_batches=3", "trainer.limit_test_batches=2", "data.batch_size=16", "resume=auto"]


@pytest.fixture(scope="module")
def cuts(tmp_path_factory):
    """The calls of a run, the folders that a cut may leave, mixtures, its files' versions, and its own folder."""
    folder = tmp_path_factory.mktemp("power") / "run"
    return *in_a_fork(cuts_of_a_run, RUN, folder), folder


def test_nothing_is_renamed_before_it_is_on_the_disk(cuts):
    calls, disks, *_ = cuts
    renamed = [place for place, call in enumerate(calls) if call.startswith("os.rename")]
    assert len(renamed) == 10  # settings, two records, metrics and checkpoint of two epochs, weights, metrics, curves
    for place in renamed:
        part = calls[place].partition(" ")[2]
        assert calls[place - 1 : place + 2] == [f"fsync {part}", f"os.rename {part}", "fsync folder"]
    written = {call.partition(" ")[2] for call in calls if call.startswith("open ")} - {"run", ".lock"}
    assert written == {calls[place].partition(" ")[2] for place in renamed}  # nothing is written in place
    assert len(disks) > 30


@pytest.mark.tries(40)
def test_every_file_of_a_run_is_whole_after_any_mixture_of_writes(cuts, tried):
    """Whatever part of the renames and blocks has reached the disk, a file under its own name is one of its versions:
    what is cut has a temporary name."""
    _, _, mixtures, versions, _ = cuts
    assert len(mixtures) >= 40
    cut = 0
    for number, disk in enumerate(mixtures):
        for name, content in disk:
            assert name.startswith(files.TEMPORARY) or content in versions[name], (name, len(content))
            cut += content not in versions[name]
        if number < 40:
            tried(disk)
    assert cut > 5  # else nothing was torn


@pytest.mark.slow
@pytest.mark.tries(16)
def test_a_run_resumes_after_a_power_cut_with_the_same_weights(cuts, tmp_path, tried):
    _, disks, mixtures, _, whole = cuts
    for disk in [*disks[1 :: len(disks) // 10][:10], *mixtures[1 :: len(mixtures) // 6][:6]]:
        rebuild(disk, tmp_path / "run")
        train(compose(RUN), tmp_path / "run")
        assert results(tmp_path / "run") == results(whole), [(name, len(content)) for name, content in disk]
        assert not list((tmp_path / "run").glob(f"{files.TEMPORARY}*"))  # what a cut left half-written is removed
        shutil.rmtree(tmp_path / "run")
        tried(disk)
