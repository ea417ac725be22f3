"""A configuration is data: whatever a file, a row or a flag brings, no program runs and no file outside is included."""

import pickle
import random
import shutil

import pytest

from builders import CONF, Payload
from nin import cli
from nin.cli import compose
from nin.cli import conf as of_files
from nin.config import Config, settings_of
from nin.run.record import Record
from nin.studies import report, rows

TARGETS = ["pathlib.Path.touch", "os.mkdir", "subprocess.Popen", "builtins.open", "nin.run.processes.launch"]
PLACES = ["callbacks.x", "callbacks", "launcher", "sweeper", "sweeper.sampler", "job.config", "job.env_set"]
PLACES += ["job_logging", "hydra_logging", "help", "env", "run", "sweep", "searchpath", "verbose", "nosuch"]
COMMANDS = ["train.py", "evaluate.py", "benchmark.py", "ablate.py"]
HEAD = "# @package _global_\n"


def payload(marker, moments) -> str:
    """A mapping that Hydra instantiates, in one of the spellings of YAML."""
    key = moments.choice(["_target_", '"_target_"', "'_target_'", '"\\x5ftarget_"', '"_tar\\u0067et_"'])
    return f"{{{key}: {moments.choice(TARGETS)}, _args_: ['{marker}'], path: '{marker}', args: ['touch', '{marker}']}}"


def nested(place: str, content: str) -> str:
    for part in reversed(place.split(".")):
        content = f"{{{part}: {content}}}"
    return content


def files_of(marker, moments):
    """Files that a stranger may leave in conf/: their names and contents, and the overrides that choose them."""
    evil = payload(marker, moments)
    for place in PLACES:
        yield {"experiment/evil": f"{HEAD}hydra: {nested(place, evil)}\n"}, ["experiment=evil"]
        yield {"recipe/evil": f"{HEAD}defaults: [quick]\nhydra: {nested(place, evil)}\n"}, ["recipe=evil"]
    for field in ("recipe.lr", "model.blocks", "data.root", "logger", "seed", "checkpoint"):
        yield {"experiment/evil": f"{HEAD}{nested(field, evil)[1:-1]}\n"}, ["experiment=evil"]
    for kind in ("launcher", "sweeper", "callbacks", "job_logging", "help"):
        own = {f"hydra/{kind}/evil": f"{evil[1:-1].replace(', ', chr(10))}\n"}
        yield own, [f"hydra/{kind}=evil"]
        yield {**own, "experiment/evil": f"{HEAD}defaults: [override /hydra/{kind}: evil]\n"}, ["experiment=evil"]
    for path in ("../outside", "../../outside", "/../outside", "../../../../../..{outside}"):
        path = path.format(outside=marker.with_name("outside"))
        yield {"experiment/evil": f'{HEAD}defaults: ["{path}"]\n'}, ["experiment=evil"]
        yield {"experiment/evil": f'{HEAD}defaults: [{{"/recipe@_global_": "{path}"}}]\n'}, ["experiment=evil"]
        yield {}, [f"experiment='{path}'"]
        yield {}, [f"recipe='{path}'"]
    yield (
        {"config": (CONF / "config.yaml").read_text().replace("hydra:\n", f"hydra:\n  callbacks: {{x: {evil}}}\n")},
        [],
    )
    ours = (CONF / "config.yaml").read_text()
    for own in (f"callbacks: {{x: {evil}}}", "searchpath: [pkg://evil]"):
        yield {"config": ours.replace("hydra:\n", f"hydra:\n  {own}\n")}, []


def flags_of(marker, moments):
    """Command lines that were made to run something."""
    evil = payload(marker, moments).replace("'", "").replace('"', "").replace("\\x5f", "_").replace("\\u0067", "g")
    for place in PLACES:
        for plus in ("", "+", "++"):
            yield [f"{plus}hydra.{place}={evil}"]
    yield from ([f"hydra.{name}._target_={TARGETS[0]}"] for name in ("launcher", "sweeper", "sweeper.sampler"))
    yield from ([f"{name}={evil}"] for name in ("model.blocks", "recipe", "data.root", "checkpoint", "seed"))
    yield from ([f"hydra.searchpath=[{where}]"] for where in ("pkg://evil", f"file://{marker.parent}"))
    yield from ([f"hydra/{kind}={marker.parent}/evil"] for kind in ("launcher", "sweeper"))
    options = ["--experimental-rerun", "--config-dir", "--config-path", "--config-name", "-cd", "-cp", "-cn", "--cfg"]
    yield from ([option, str(marker.with_name("pickled"))] for option in options)
    yield from ([f"{option}={marker.with_name('pickled')}"] for option in options)
    yield from ([name] for name in ("--info", "--run", "--shell-completion", "--package", "--hydra-help", "-s"))
    yield from ([f"data.root=${{{resolver}:{marker}}}"] for resolver in ("unused", "new_folder", "oc.create", "hydra"))


@pytest.fixture
def conf(tmp_path, monkeypatch):
    shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.setattr(of_files, "CONF", tmp_path / "conf")
    (tmp_path / "outside.yaml").write_text("seed: 7\n")
    return tmp_path / "conf"


def assert_refused(script, command, arguments, place):
    before = sorted(place.rglob("*"))
    code, said, errors = script(command, *arguments)
    assert code == 2, (command, arguments, said, errors)
    assert errors.startswith("error: ") and errors.count("\n") == 1 and len(errors) < 1500
    assert sorted(place.rglob("*")) == before, (command, arguments)


@pytest.mark.tries(67)
def test_no_file_runs_a_program(conf, script, tmp_path, tried):
    moments, marker = random.Random(3), tmp_path / "marker"
    for texts, overrides in files_of(marker, moments):
        for name, text in texts.items():
            (conf / f"{name}.yaml").parent.mkdir(parents=True, exist_ok=True)
            (conf / f"{name}.yaml").write_text(text)
        command = moments.choice(COMMANDS)
        several = [["--multirun", "seed=0,1"], []][moments.randrange(2)] if command == "train.py" else []
        assert_refused(script, command, [*several, *overrides], tmp_path)
        assert not marker.exists()
        tried((texts, overrides))
        shutil.rmtree(conf)
        shutil.copytree(CONF, conf)


@pytest.mark.tries(86)
def test_no_flag_runs_a_program(script, tmp_path, tried):
    moments, marker = random.Random(4), tmp_path / "marker"
    (tmp_path / "pickled").write_bytes(pickle.dumps(Payload(marker)))
    for arguments in flags_of(marker, moments):
        command = moments.choice(COMMANDS)
        several = ["--multirun"] if command == "train.py" and moments.randrange(2) else []
        assert_refused(script, command, [*several, *arguments], tmp_path)
        tried(arguments)
    assert not marker.exists()


FACTS = {"parameters": 1, "precision": "32-true", "device": "cpu", "versions": {"torch": "2"}, "commit": "c" * 40}
FACTS |= {"clean": True, "start": None, "test_error": 9.0, "train_error": 4.0}


@pytest.mark.tries(30)
def test_no_row_is_composed(tmp_path, tried):
    """Whatever a row says, it is read and reported as text."""
    marker, moments, file = tmp_path / "marker", random.Random(5), tmp_path / "runs.csv"
    row = rows.row_of(Record("finished", settings_of(Config()), **FACTS))
    for _ in range(30):
        column = moments.choice(["variant", "start_name", "hardware", "torch", "commit"])
        words = [
            payload(marker, moments),
            "hydra.searchpath=[pkg://evil]",
            f"${{unused:{marker}}}",
            f"`touch {marker}`",
        ]
        altered = {**row, column: moments.choice(words)}
        rows.append(file, [altered])
        assert altered[column] in list(rows.read(file)[column])
        report.table(rows.ended(file))
        tried(altered)
    assert not marker.exists()


def test_what_honest_people_do_still_works(conf, script, tmp_path):
    (conf / "recipe" / "mine.yaml").write_text(f"{HEAD}defaults: [quick]\nrecipe: {{name: mine, lr: 1e-3}}\n")
    (conf / "experiment" / "both.yaml").write_text(
        f"{HEAD}defaults: [override /recipe: mine, override /logger: tensorboard]\n"
        "hydra: {sweeper: {params: {seed: '0,1'}}}\ndata: {root: '${oc.env:HOME}/data'}\n"
    )
    config = compose(["experiment=both"])
    assert (config.recipe.name, config.recipe.lr, config.logger.name) == ("mine", 1e-3, "tensorboard")
    assert config.data.root.endswith("/data")
    assert compose(cli.overrides_of(settings_of(config))).recipe.lr == 1e-3
    assert compose(["hydra/launcher=basic", "hydra.run.dir=x", "hydra.sweep.dir=y", "hydra.sweep.subdir=z"]).seed == 0
    assert len(cli.sweep(["experiment=both", "seed=0,1"])) == 2
