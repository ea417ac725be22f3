"""Scripts: exit codes, streams, folders, several runs and sweepers."""

import errno
import io
import os
import signal
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from builders import tree
from nin import cli, errors
from nin.cli import conf as of_files
from nin.errors import NINError, SettingError, UsageError
from nin.run import processes


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (SettingError("seed", -1, "expected more"), 2, "seed=-1: expected more"),
        (UsageError("two\nlines"), 2, "two lines"),
        (errors.DataError("no data"), 1, "no data"),
        (errors.DeadNetError("dead"), 3, "dead"),
        (errors.InterruptedRunError("stopped by SIGTERM", 143), 143, "stopped by SIGTERM"),
        (KeyboardInterrupt(), 130, "stopped"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "FILE"), 1, "FILE: No space left on device"),
        (PermissionError(errno.EACCES, "no"), 1, "[Errno 13] no"),
    ],
)
def test_an_error_is_one_sentence_and_an_exit_code(run, error, code, said):
    def main(*_):
        raise error

    assert run(cli.run_script, main=main) == (code, "", f"error: {said}\n")
    assert run(cli.command, "seed=3", main=main) == (code, "", f"error: {said}\n")


@pytest.mark.parametrize("raised", [SettingError("defaults", 1, "unknown setting"), UsageError("x"), RuntimeError("x")])
def test_ctrl_c_that_comes_back_as_another_error_is_ctrl_c(run, raised):
    """Hydra's and OmegaConf's except clauses turn KeyboardInterrupt into errors of their own."""

    def main(*_):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise raised from None

    assert run(cli.run_script, main=main) == (130, "", "error: stopped\n")


def test_a_study_that_ctrl_c_ends_keeps_its_sentence(run):
    def main(*_):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise errors.StudyStoppedError("interrupted; the rest", 130) from error

    assert run(cli.run_script, main=main) == (130, "", "error: interrupted; the rest\n")


@pytest.mark.parametrize("kind", ["destructor", "weakref", "destructor, twice"])
def test_ctrl_c_in_a_destructor_ends_the_command(run, kind):
    """Python prints and drops what is raised there, as in the callbacks of weak references."""
    alarm = signal.getsignal(signal.SIGALRM)

    class Lost:
        def __del__(self):
            if kind != "weakref":
                signal.raise_signal(signal.SIGINT)

    def main(*_):
        for _ in range(1 + ("twice" in kind)):
            lost = Lost()
            watched = weakref.ref(lost, lambda _: kind == "weakref" and signal.raise_signal(signal.SIGINT))
            del lost
        assert watched() is None
        time.sleep(20)

    began = time.monotonic()
    assert run(cli.run_script, main=main) == (130, "", "error: stopped\n")
    assert time.monotonic() - began < 15 and signal.getsignal(signal.SIGALRM) is alarm


def test_every_error_of_ours_has_an_exit_code():
    ours = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, NINError)]
    assert len(ours) > 10 and {each.exit_code for each in ours} == {1, 2, 3}


def raises_an_error_of_no_file(_):
    raise OSError("of no file")


def test_a_bug_is_a_traceback(run):
    def main(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(cli.run_script, main=main)
    with pytest.raises(ZeroDivisionError):
        run(cli.command, main=main)
    with pytest.raises(OSError, match="of no file"):
        run(cli.run_script, main=raises_an_error_of_no_file)


def test_only_its_own_settings_are_taken(run):
    taken = []
    options = {"main": lambda config, folder: taken.append(config), "settings": ("checkpoint", "data.root", "trainer")}
    assert run(cli.command, "checkpoint=a", "data.root=b", "trainer=cpu", "trainer.devices=1", **options)[0] == 0
    assert (taken[0].checkpoint, taken[0].data.root, taken[0].trainer.accelerator) == ("a", "b", "cpu")
    for wrong in ("head=fc", "data=digits", "data.size=9", "seed=3"):
        code, _, said = run(cli.command, wrong, **options)
        assert code == 2 and f"error: {wrong}: has no effect" in said and "data.root, trainer" in said
    assert len(taken) == 1


def test_a_terminal_of_ascii_and_a_closed_one_are_written_to(run, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert run(cli.command, "--help", main=test_a_bug_is_a_traceback)[0] == 0
    assert b"recipe.lr=0.04" in written.getvalue()
    for name in ("sys.stdout", "sys.stderr"):
        monkeypatch.setattr(name, None)
    assert run(cli.command, "--help", main=test_a_bug_is_a_traceback)[0] == 0
    assert run(cli.command, "head=gpa", main=test_a_bug_is_a_traceback)[0] == 2


def test_a_reader_that_leaves_is_no_bug(run, monkeypatch):
    class Left(io.StringIO):
        def flush(self):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("sys.stdout", Left())
    assert run(cli.run_script, "--help", main=test_a_bug_is_a_traceback)[0] == 0


# folders --------------------------------------------------------------------------------------------------------------


def test_a_folder_of_a_name_is_made_once(tmp_path):
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: cli.new_folder(tmp_path / "runs" / "a"), range(24)))
    assert len(set(made)) == 24
    assert sorted(path.name for path in made) == sorted(["a", *(f"a_{number}" for number in range(2, 25))])
    assert all(path.is_dir() for path in made)
    (tmp_path / "file").touch()
    with pytest.raises(errors.RunError, match="cannot be created"):
        cli.new_folder(tmp_path / "file" / "x")


def test_a_command_gets_the_folder_that_it_asks_for(run):
    seen = []

    def main(config, folder):
        seen.append((str(folder), folder.is_dir()))
        (folder / "result").touch()

    run(cli.command, main=main)
    run(cli.command, main=main, folder=lambda config: f"runs/{config.head.name}")
    run(cli.command, "head=fc", main=main, folder=lambda config: f"runs/{config.head.name}")
    run(cli.command, main=main, folder=lambda config: f"runs/{config.head.name}")
    run(cli.command, "hydra.run.dir=mine/${data.name}", "data=digits", main=main, folder=lambda config: "runs/x")
    run(cli.command, "hydra.run.dir=.", main=main, folder=lambda config: "runs/x")
    assert [name for name, _ in seen] == [".", "runs/gap", "runs/fc", "runs/gap_2", "mine/digits", "."]
    assert all(there for _, there in seen)
    assert not Path("runs/x").exists()


def test_a_folder_that_cannot_be_resolved_or_is_not_shared_is_refused(run, monkeypatch):
    code, _, said = run(cli.command, "hydra.run.dir=${nothing}", "seed=3", main=lambda *_: 1 / 0)
    assert (code, said) == (2, "error: hydra.run.dir=${nothing}: Interpolation key 'nothing' not found\n")
    monkeypatch.setattr(processes, "ending_at_once", nullcontext)  # it would end this process
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    code, _, said = run(cli.command, "seed=3", main=lambda *_: 1 / 0)
    assert code == 2 and "error: hydra.run.dir=FOLDER is required" in said
    assert tree() == []


@pytest.mark.parametrize("given", [[], ["hydra.run.dir=new/er"]])
def test_what_fails_leaves_no_folder(run, given):
    def fails(config, folder):
        assert folder.is_dir()
        raise errors.DataError("no data")

    def locks_and_fails(config, folder):
        from nin.run.folder import training_in

        with training_in(folder):
            raise errors.DataError("no data")

    def is_refused(config):
        assert tree() == []
        raise SettingError("seed", 0, "no")

    for options in ({"main": fails}, {"main": locks_and_fails}, {"main": fails, "check": is_refused}):
        assert run(cli.command, *given, folder=lambda config: "runs/x", **options)[0] in (1, 2)
        assert tree() == []
    assert run(cli.command, "seed=-1", *given, main=fails, folder=lambda config: "runs/x")[0] == 2
    assert tree() == []


def test_what_was_there_stays(run):
    Path("mine").mkdir()

    def main(config, folder):
        raise errors.DataError("no data")

    assert run(cli.command, "hydra.run.dir=mine", main=main)[0] == 1
    assert run(cli.command, "hydra.run.dir=.", main=main)[0] == 1
    assert tree() == ["mine"]
    Path("file").touch()
    for folder in ("file", "file/x"):
        code, _, said = run(cli.command, f"hydra.run.dir={folder}", main=main)
        assert code == 1 and f"error: hydra.run.dir={folder}: cannot be created" in said


def test_resuming_requires_the_folder_of_the_run(run):
    """A new folder has nothing to resume."""
    start = {"main": lambda *_: 1 / 0, "folder": lambda config: "new"}
    code, _, said = run(cli.command, "resume=auto", **start)
    assert (code, said) == (2, "error: resume=auto requires hydra.run.dir=FOLDER, the folder of the run to resume\n")
    assert tree() == []


def test_the_files_that_an_editor_leaves_in_conf_are_none_of_it(run, conf):
    (of_files.CONF / "recipe" / ".#modern.yaml").symlink_to("someone@somewhere:1")  # Emacs' lock
    (of_files.CONF / "recipe" / "._modern.yaml").write_text("\0")  # a Mac's copy
    assert run(cli.command, "recipe=modern", main=lambda *_: None) == (0, "", "")
    code, _, said = run(cli.command, "recipe=nosuch", main=lambda *_: None)
    assert code == 2 and "._" not in said and "modern" in said


# several runs ---------------------------------------------------------------------------------------------------------


def test_multirun_runs_a_job_for_each_value(run):
    seen = []

    def main(config, folder):
        seen.append((config.seed, config.head.name, folder.parent.name, folder.name))
        (folder / "result").touch()

    arguments = ("--multirun", "seed=0,1", "head=fc", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${seed}")
    assert run(cli.command, *arguments, main=main) == (0, "", "")
    assert seen == [(0, "fc", "sweep", "0"), (1, "fc", "sweep", "1")]
    assert {"sweep/0/result", "sweep/1/result"} <= set(tree())


def test_a_job_that_fails_does_not_keep_the_others_from_running(run):
    ran = []

    def main(config, folder):
        ran.append(config.seed)
        if config.seed == 1:
            raise errors.DeadNetError("dead")
        if config.seed == 3:
            raise errors.InterruptedRunError("stopped", 143)

    code, _, said = run(cli.command, "-m", "seed=0,1,2", "hydra.sweep.dir=s", main=main)
    assert (code, said, ran) == (3, "error: dead\n", [0, 1, 2])
    assert not Path("s/1").exists()
    code, _, said = run(cli.command, "-m", "seed=2,3,4", "hydra.sweep.dir=s", main=main)
    assert (code, said.startswith("error: stopped; to resume this job"), ran) == (143, True, [0, 1, 2, 2, 3])


def test_a_stopped_job_says_how_it_alone_is_resumed(run):
    def main(config, folder):
        raise errors.InterruptedRunError("stopped; run the same command", 143)

    code, _, said = run(cli.command, "-m", "seed=2,3", "recipe=quick", "hydra.sweep.dir=s", main=main)
    folder = Path("s/0").resolve()
    assert code == 143 and said == (
        "error: stopped; to resume this job after its last whole epoch, run python scripts/train.py data=cifar10 "
        f"head=gap recipe=quick seed=2 resume=auto hydra.run.dir={folder}; the jobs after it did not run\n"
    )


@pytest.mark.parametrize("path", ["runs/a", "a b"])
def test_a_home_folder_is_meant_by_its_sign(run, monkeypatch, tmp_path, path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    seen = []
    arguments = (f"hydra.run.dir='~/{path}'" if " " in path else f"hydra.run.dir=~/{path}", "checkpoint=~/net")
    start = {"main": lambda config, folder: seen.extend([folder, config.checkpoint])}
    assert run(cli.command, *arguments, folder=lambda config: "new", **start)[0] == 0
    assert seen[1] == str(tmp_path / "home" / "net")
    assert seen[0] == (tmp_path / "home" / path if path == "runs/a" else Path("~") / path)  # in quotes it is a name
    found = []
    run(cli.run_script, "out=~/x", "pictures=[~/a,~/b]", "c=a~/b", main=found.extend)
    home = tmp_path / "home"
    assert found == [f"out={home}/x", f"pictures=[{home}/a,{home}/b]", "c=a~/b"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["seed=0,1", "hydra.run.dir=runs"], "hydra.run.dir has no effect on --multirun; set hydra.sweep.dir=FOLDER"),
        (["seed=0,1", "resume=auto"], "resume=auto requires hydra.sweep.dir=FOLDER"),
        (["head=gap,gpa"], "head=gpa: must be one of"),
        (["seed=0,-1"], "seed=-1: expected an integer"),
        (["seed=0,1", "trainer.devices=2"], "trainer.devices=2: --multirun trains each net in one process"),
        (["seed=0,1", "+hydra.callbacks={x: {y: 1}}"], "hydra.callbacks"),
        (["seed=0,1", "hydra/launcher=nosuch"], "hydra/launcher=nosuch: must be one of basic"),
    ],
)
def test_a_refused_multirun_leaves_nothing(run, overrides, words):
    code, _, said = run(cli.command, "--multirun", *overrides, main=lambda *_: 1 / 0)
    assert code == 2 and said.count("\n") == 1 and words in said
    assert tree() == []


def test_a_file_that_a_sweep_chooses_sets_no_callbacks(run, conf, tmp_path):
    mark = f"hydra: {{callbacks: {{x: {{_target_: pathlib.Path.touch, self: {tmp_path / 'ran'}}}}}}}"
    conf("experiment/a", f"# @package _global_\n{mark}\n")
    for arguments in (["-m", "experiment=a,flowers17_vgg19"], ["-m", "experiment=a"], ["experiment=a"]):
        code, _, said = run(cli.command, *arguments, main=lambda *_: 1 / 0)
        assert code == 2 and "conf/experiment/a.yaml: settings are values" in said
    assert not (tmp_path / "ran").exists() and tree() == []


# sweepers -------------------------------------------------------------------------------------------------------------

OPTUNA = ["--multirun", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1"]
OPTUNA += ["recipe.lr=interval(0.001,0.1)", "data=digits"]


def optuna(monkeypatch, main, arguments, *, gives_error=True):
    """The exit code of a command of Optuna's, whose jobs call `main`."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="hydra-optuna-sweeper is not installed")
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    try:
        cli.command(main, gives_error=gives_error)
    except SystemExit as ended:
        return ended.code
    return 0


def test_optuna_gets_the_held_out_error(monkeypatch, tmp_path):
    """And calls the run with the least the best."""
    monkeypatch.chdir(tmp_path)
    seen = []

    def main(settings, folder):
        seen.append((settings.recipe.lr, 10 + 100 * settings.recipe.lr))
        return seen[-1][1]

    assert optuna(monkeypatch, main, [*OPTUNA, "data.val=100"]) == 0
    (file,) = tmp_path.rglob("optimization_results.yaml")
    best = yaml.safe_load(file.read_text())
    assert len(seen) == 2 and (best["best_params"]["recipe.lr"], best["best_value"]) == min(
        seen, key=lambda each: each[1]
    )


@pytest.mark.parametrize(
    ("arguments", "words", "gives_error"),
    [
        (OPTUNA, "data.val=0: a sweeper chooses values by the held-out error, never by the test error", True),
        ([*OPTUNA, "data.val=0"], "data.val=0: a sweeper", True),
        ([*OPTUNA, "data.val=100"], "requires a command that returns an error: nin train", False),
    ],
)
def test_no_sweeper_gets_a_test_error(monkeypatch, tmp_path, capsys, arguments, words, gives_error):
    """The refusal comes before the first run."""
    monkeypatch.chdir(tmp_path)

    def main(settings, folder):
        pytest.fail("a run has begun")

    assert optuna(monkeypatch, main, arguments, gives_error=gives_error) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_value_of_data_val_that_a_sweeper_chooses_is_checked_too(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    called = []

    def main(settings, folder):
        called.append(settings.data.val)
        return 1.0

    assert optuna(monkeypatch, main, [*OPTUNA, "data.val=choice(0,0)"]) == 2
    assert "data.val=0: a sweeper" in capsys.readouterr().err and not called
