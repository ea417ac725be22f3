from nin.cli import compose, variant_of
from nin.config import settings_of
from nin.plan import BLOCKS
from nin.studies import papers


def test_the_papers_figures():
    errors = {number: [run.error for run in runs] for number, runs in papers.TABLES.items()}
    assert errors == {1: [10.41, 8.81], 2: [35.68], 3: [2.35], 4: [0.47], 5: [11.59, 10.88, 10.41, 17.56, 15.99, 16.46]}


def test_each_run_composes_to_the_net_and_the_set_that_its_rows_must_have():
    for runs in papers.TABLES.values():
        for run in runs:
            if run.blocks not in BLOCKS:
                continue
            config = compose(run.overrides)
            assert (config.model.blocks, config.data.name, config.head.name) == (run.blocks, run.data, run.head)
            assert run.augmented in (None, bool(config.data.pad or config.data.flip))
            assert config.recipe.name.startswith("paper")


def test_other_overrides_replace_those_of_a_run():
    run = papers.TABLES[2][0]
    assert papers.overrides_of(run, ["recipe=quick", "seed=1"]) == ["data=cifar100", "recipe=quick", "seed=1"]


def test_the_papers_figures_stand_beside_ours(frame, row):
    plain = {"data__pad": 0, "data__flip": False, "recipe__name": "paper"}
    made = [row(seed=seed, error=9.0 + seed) for seed in range(2)]
    made += [row(error=12.0, **plain), row(error=30.0, trainer__max_epochs=2), row("fc", error=13.0)]
    made += [row(error=20.0, model__blocks="mnist", recipe__name="other"), row(status="dead", seed=9)]
    made += [row(error=1.0, data__share=0.5, recipe__name="other")]
    lines = papers.table(1, frame(*made)).splitlines()
    assert lines[0] == "**The paper's Table 1: CIFAR-10**"
    assert lines[4].endswith("| 10.41 | 12.00 | 1 | recipe paper, 8 epochs |")
    assert lines[5].endswith("| 8.81 | 9.50 ± 0.71 | 2 | recipe quick, 8 epochs |") and len(lines) == 6
    whole = papers.tables(frame(*made))
    assert "Table 5" in whole and "Table 2" not in whole
    assert "| CNN, fc `recipe=paper model=cnn head=fc` | 17.56 | not run |  |  |" in whole
    assert papers.tables(frame()) == ""


def test_a_table_finds_the_rows_of_its_own_runs():
    """As `ablate.py table=N train=true` labels them."""
    for runs in papers.TABLES.values():
        for run in runs:
            if run.blocks in BLOCKS:
                assert variant_of(settings_of(compose(run.overrides))) in run.labels


def test_the_conventional_cnns_rows_are_its_own(frame, row):
    made = [row(error=13.0, model__blocks="cnn", variant="model=cnn"), row(error=9.0)]
    made += [row(error=14.0, model__blocks="cnn", variant="model=cnn model.dropout=0.3", model__dropout=0.3)]
    lines = papers.table(5, frame(*made)).splitlines()
    assert [line.split("|")[3].strip() for line in lines[4:]] == [
        "not run",
        "not run",
        "9.00",
        "not run",
        "not run",
        "13.00",
    ]


def test_a_table_lists_its_runs_and_trains_none(script, tmp_path):
    code, printed, _ = script("ablate.py", f"study={tmp_path / 'runs.csv'}", "table=2", "seed=0,1")
    assert code == 0 and "The paper's Table 2" in printed and "35.68 | not run" in printed
    for seed in (0, 1):
        assert f"python scripts/train.py data=cifar100 recipe=paper_cifar100 seed={seed}\n" in printed
    assert f"python scripts/ablate.py table=2 study={tmp_path / 'runs.csv'} seed=0,1 train=true" in printed
    study = f"study={tmp_path / 'my.csv'}"
    _, printed, _ = script("ablate.py", "seed=0", "jobs=2", "table=2", study)
    assert printed.rstrip().endswith(f"python scripts/ablate.py table=2 jobs=2 {study} seed=0 train=true")
    code, _, error = script("ablate.py", "table=6")
    assert code == 2 and error == "error: table=6: must be one of 1, 2, 3, 4, 5\n"
