import subprocess
import sys
import time
from dataclasses import asdict
from itertools import product

import pytest
from conftest import CONF, ROOT

from nin.command import compose, overrides_of
from nin.config import ConfigError
from nin.heads import HEADS
from nin.run import QUICK_EPOCHS


def choices(group):
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize(("recipe", "head"), product(choices("recipe"), HEADS))
def test_every_recipe_composes_with_every_head_and_set(recipe, head):
    for data in choices("data"):
        config = compose(CONF, [f"recipe={recipe}", f"head={head}", f"data={data}"])
        assert (config.recipe.name, config.head.name, config.data.name) == (recipe, head, data)


@pytest.mark.parametrize("experiment", choices("experiment"))
@pytest.mark.parametrize("head", choices("head"))
def test_every_experiment_composes_with_every_head(experiment, head):
    config = compose(CONF, [f"experiment={experiment}", f"head={head}"])
    assert (config.head.name, config.data.name, config.recipe.name) == (head, "flowers17", experiment)


def test_the_experiments_are_the_articles():
    config = compose(CONF, ["experiment=flowers17_vgg19"])
    assert (config.model.backbone, config.model.weights, config.data.size) == ("vgg19", "imagenet", 224)
    assert (config.recipe.optimiser, config.recipe.lr, config.recipe.momentum) == ("rmsprop", 1e-4, 0)
    assert (config.data.batch_size, config.trainer.max_epochs) == (32, 50)


@pytest.mark.parametrize("group", ["model", "trainer", "logger"])
def test_every_other_choice_composes(group):
    for choice in choices(group):
        if (group, choice) == ("trainer", "gpu"):
            continue  # refused where there is none
        needed = {"ddp": ["trainer.accelerator=cpu"], "inception_v3": ["data=flowers17", "data.size=96"]}
        compose(CONF, [f"{group}={choice}", *needed.get(choice, ())])


def test_the_literal_paper_recipe_is_the_authors():
    config = compose(CONF, ["recipe=paper_literal"])
    net = config.build_net()
    assert sum(p.numel() for p in net.parameters()) == 966_986
    assert config.data.preprocessing == "whiten"
    assert (config.data.pad, config.data.flip, config.data.batch_size) == (0, False, 128)
    recipe = config.recipe
    assert (recipe.lr, recipe.bias_lr, recipe.last_lr, recipe.last_bias_lr) == (0.1, 2, 0.1, 0.2)
    assert (recipe.momentum, recipe.nesterov, recipe.weight_decay) == (0.9, False, 1e-4)
    assert config.trainer.max_epochs == 260
    assert [share * 260 for share in recipe.drops] == pytest.approx([200, 230])
    assert (config.model.last_pool, config.model.last_relu, config.model.dropout) == ("max", True, 0.5)
    assert (config.model.init, config.model.norm, config.trainer.gradient_clip_val) == ("gaussian", "none", None)


def test_the_paper_recipe_deviates_in_what_it_says_and_in_nothing_else():
    literal, paper = (asdict(compose(CONF, [f"recipe={name}"])) for name in ("paper_literal", "paper"))
    mend = {"recipe.name=paper", "model.init=kaiming", "model.last_relu=False", "trainer.gradient_clip_val=1.0"}
    differing = {
        f"{group}.{name}={value}"
        for group in ("model", "head", "data", "recipe", "trainer")
        for name, value in paper[group].items()
        if literal[group][name] != value
    }
    assert differing == mend
    caffe = compose(CONF, ["recipe=paper_caffe"])
    assert caffe.model.last_pool == "average"
    assert caffe.trainer.max_epochs == 307
    assert [share * 120_000 for share in caffe.recipe.drops] == pytest.approx([100_000], abs=1)


def test_lengths():
    assert compose(CONF).trainer.max_epochs <= 100
    assert compose(CONF, ["recipe=quick"]).trainer.max_epochs == QUICK_EPOCHS <= 8


def test_an_explicit_override_beats_what_a_set_brings():
    assert compose(CONF, ["data=digits"]).trainer.max_epochs != 3
    config = compose(CONF, ["data=digits", "trainer.max_epochs=3", "data.batch_size=16"])
    assert (config.trainer.max_epochs, config.data.batch_size) == (3, 16)


def test_blocks_from_the_command_line():
    config = compose(CONF, ["model.blocks=[{widths: 8, kernel_size: 5, dropout: true}, {widths: [8, 8, 10]}]"])
    assert config.build_net().blocks.block1.conv1.kernel_size == (5, 5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe.lr=-1", "recipe.lr=-1.0: a number greater than 0"),
        ("model.blocks=[]", r"model.blocks=\[\]: 0 of them, where a net has from 1"),
        ("model.blocks=[3]", r"model.blocks=\[3\]: block 1"),
        ("model.blocks=[{width: 3}]", r"model.blocks=\[.*width.*\]: block 1"),
        ("model.blocks=7", "model.blocks=7"),
        ("model.blocks=[{widths: [8, 8]}]", r"model.blocks=\[.*block 1 has widths=\[8, 8\]"),
        ("model.blocks=[{widths: 8, kernel_size: 40, padding: 0}]", "model.blocks: block 1 leaves nothing"),
        ("model.blocks=imagenet", "model.blocks: block 3 leaves nothing"),
        ("model.blocks=[{widths: [8, 8, 3]}]", "head.name=gap .*3 maps for 10 classes"),
        ("head.name=gpa", "head.name=gpa: choose one of gap, gmp, fc, fc_dropout"),
        ("trainer.max_epochs=-3", "trainer.max_epochs=-3: at least 1"),
        ("trainer.gradient_clip_val=0", "trainer.gradient_clip_val=0.0: a norm greater than 0"),
        ("model=inception_v3", "data.size=32: inception_v3 takes from 75 pixels a side"),
        ("data.size=64", "data.size=64: the images of cifar10 have 32 pixels"),
        ("trainer.precision=fp8", "trainer.precision=fp8: choose one of auto, 32-true"),
        ("trainer.accelerator=tpu", "trainer.accelerator=tpu: choose one of auto, cpu"),
        ("trainer.limit_train_batches=0", "trainer.limit_train_batches=0"),
        ("logger.name=wandb", "logger.name=wandb: choose one of csv, tensorboard"),
        ("seed=-1", "seed=-1: from 0 to"),
        ("data.val=50000", "data.val=50000: from 0 to 49999"),
    ],
)
def test_impossible_values_are_refused_by_name(override, message):
    with pytest.raises(ConfigError, match=message):
        compose(CONF, [override])


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (["head=gpa"], 2, ["head=gpa", "fc_dropout, gap, gap_article, gmp"]),
        (["nosuch=1"], 2, ["nosuch=1", "model, head, data"]),
        (["recipe.lrr=1"], 2, ["recipe.lrr=1", "momentum"]),
        (["+recipe.lrr=1"], 2, ["+recipe.lrr", "momentum"]),
        (["hydra.foo=1"], 2, ["hydra.foo=1"]),
        (["recipe=null"], 2, ["recipe"]),
        (["data.urls=[https://a.b/~c]"], 2, ["data.urls", "quotes"]),
        (["model.blocks=[]"], 2, ["model.blocks=[]", "a net has from 1"]),
        (["trainer.max_epochs=-3"], 2, ["trainer.max_epochs=-3", "at least 1"]),
        (["trainer.limit_test_batches=0.3", "data=digits"], 2, ["trainer.limit_test_batches=0.3"]),
        (["trainer.limit_test_batches=0.6", "data=digits", "data.share=0.1"], 2, ["limit_test_batches=0.6: less than"]),
        (["trainer.limit_test_batches=0.6", "data=digits", "data.val=9"], 2, ["limit_test_batches=0.6: less than"]),
        (["seed=abc"], 2, ["seed=abc", "Integer"]),
        (["recipe.lr=-1"], 2, ["recipe.lr=-1", "greater than 0"]),
        (["data.root=/nonexistent", "data.download=false"], 1, ["/nonexistent", "data=digits"]),
        (["checkpoint=/nonexistent", "data=digits"], 1, ["checkpoint=/nonexistent"]),
    ],
)
def test_a_refusal_is_one_sentence_and_an_exit_code(overrides, code, words, script, tmp_path):
    ended, said, errors = script("train.py", *overrides)
    assert ended == code
    assert said == ""
    assert len(errors.strip().splitlines()) == 1
    assert all(word in errors for word in ("error: ", *words))
    assert not list(tmp_path.glob("runs/*"))


def test_a_refusal_takes_seconds(tmp_path):
    start = time.monotonic()
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "head=gpa"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert time.monotonic() - start < 120  # 10 on a machine with nothing else to do
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)


def test_a_refusal_leaves_the_users_folder_alone(script, tmp_path):
    for name in ("evaluate.py", "train.py"):
        assert script(name, "checkpoint=/nonexistent", f"hydra.run.dir={tmp_path}")[0] == 1
        assert tmp_path.is_dir()
    assert script("evaluate.py", "checkpoint=cifar10-fc", "data.root=.", "data.download=false")[0] == 1
    assert tmp_path.is_dir()


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([], "data=cifar10 head=gap recipe=modern seed=0"),
        (["recipe=quick", "seed=3", "head=fc", "resume=auto"], "data=cifar10 head=fc recipe=quick seed=3"),
        (["data=digits", "model.norm=none"], "data=digits head=gap recipe=modern seed=0 model.norm=none"),
        (["recipe=paper", "recipe.drops=[]", "eval_curve=true"], None),
        (["model=equal", "checkpoint='a,b=c/d'", "trainer.limit_train_batches=0.5"], None),
        (["experiment=flowers17_inception_v3", "head=fc_article", "model.weights=none"], None),
        (["recipe.name=mine", "checkpoint='a b'", "trainer.gradient_clip_val=1e-3"], None),
    ],
)
def test_the_overrides_of_a_configuration_compose_to_it_again(given, found):
    config = compose(CONF, given)
    overrides = overrides_of(asdict(config), CONF)
    if found:
        assert " ".join(overrides) == found
    again = compose(CONF, overrides)
    again.resume = config.resume
    assert again == config
