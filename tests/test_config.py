"""Settings: bad ones are refused, all at once and by name, before any work; good ones survive a file."""

import dataclasses
import inspect
import math
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dswag.config import PAPER, Config, ConfigError, differences
from dswag.config.parts import ExploreSettings, ServerSettings, TrainSettings
from dswag.core.validation import defaults, flat
from dswag.federation.client_sampling import cohort_size
from dswag.lab.experiments.recipe import Recipe

COUNTS = (
    "clients",
    "rounds",
    "local_epochs",
    "explore_epochs",
    "cycles",
    "snapshots_per_cycle",
    "batch_size",
    "samples",
)
RATES = ("learning_rate", "final_learning_rate", "explore_learning_rate", "explore_final_learning_rate")
OTHER_RATES = (
    "server_learning_rate",
    "server_epsilon",
    "clip_gradient",
    "clip_update",
    "client_time_limit",
    "max_loss_growth",
)
MOMENTA = ("momentum", "server_momentum", "server_second_momentum")
FLOATS = (*RATES, *OTHER_RATES, *MOMENTA, "stop_accuracy", "weight_decay", "proximal", "scale", "holdout")
SHARES = ("clients_per_round", "explorers", "min_clients", "byzantine")
NO_SHARES = (0.0, 0.3, 1.0, -0.5, 1.5, math.nan, math.inf, "0%", "101%", "-3%", "30 %", "some", "")

BAD = [
    *((name, value) for name in COUNTS for value in (0, -1, 1.0, 2.5, True, "3", None, math.nan)),
    *(("explore_rounds", value) for value in (0, -1, 1.0, True, "3", 2)),  # 2 does not divide five epochs
    *((name, value) for name in (*RATES, *OTHER_RATES) for value in (0, 0.0, -0.1)),
    *((name, value) for name in FLOATS for value in (math.nan, math.inf, -math.inf, "0.1", True, [0.1])),
    *((name, None) for name in ("learning_rate", "momentum", "weight_decay", "scale")),
    *((name, value) for name in SHARES for value in (0, -1, 11, True, "3", None, *NO_SHARES)),
    *(("seed", value) for value in (-1, 0.5, True, "0", None)),
    *(("rank", value) for value in (1, -1, 10**9, 2.0, True, "20")),
    *(("batch_norm_examples", value) for value in (0, 1, -5, 100.0, True, "all")),
    *(("stop_accuracy", value) for value in (0, 0.0, 1.01, 97)),
    *((name, value) for name in MOMENTA for value in (1, 1.0, -0.1)),
    *(("weight_decay", value) for value in (-1e-4,)),
    *(("scale", value) for value in (-1.0,)),
    *(("holdout", value) for value in (1.0, 1, -0.1, None)),
    *(("calibrate", value) for value in (True, 1, "yes", None)),  # True alone: nothing is held out
    *(("aggregation", value) for value in ("mode", "Mean", 0, None)),
    *(("moments", value) for value in ("trimmed-mean", "Mean", None)),
    *(
        ("rate_factors", value)
        for value in ((1.0,) * 9, (0.0,) * 10, (-1.0,) * 10, (math.nan,) * 10, ("1",) * 10, 1.0, None)
    ),
    *(("server_optimizer", value) for value in ("fedadam", "Adam", None)),
    *(("optimizer", value) for value in ("adam", "SGD", None)),
    *(("nesterov", value) for value in (1, "yes", None)),
    *(("proximal", value) for value in (-0.1, None)),
    *(("on_failure", value) for value in ("ignore", None)),
    *(("upload", value) for value in ("float16", "bf16", None)),
    *(("precision", value) for value in ("float16", "bf16", 32)),
    *(("columns", value) for value in ("first", "SVD", None)),
    *(("kind", value) for value in ("full", "SWAG", None)),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda part: repr(part))
def test_an_impossible_value_is_refused_with_its_name(name, value):
    with pytest.raises(ConfigError, match=name) as in_python:
        Config(**{name: value})
    with pytest.raises(ConfigError, match=rf"(?m)^run\.toml: .*{name}") as in_a_file:
        Config.checked({name: value}, source="run.toml")
    assert [f"run.toml: {fault}" for fault in str(in_python.value).splitlines()] == str(in_a_file.value).splitlines()


def test_every_setting_has_bad_values_here():
    assert {name for name, _ in BAD} == defaults(Config).keys()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"rank": 1},
            r"rank must be 0 or at least 2, got 1: the covariance divides by the number of columns minus one",
        ),
        ({"explore_epochs": 10, "cycles": 3}, r"cycles must divide explore_epochs, got 3 cycles in 10 epochs"),
        ({"explore_epochs": 2, "cycles": 4}, r"cycles must divide explore_epochs, got 4 cycles in 2 epochs"),
        ({"explore_epochs": 6, "cycles": 2, "snapshots_per_cycle": 4}, r"snapshots_per_cycle must be at most 3.*got 4"),
        ({"clients": 1}, r"one snapshot in all gives a posterior without spread: raise explorers, cycles or snap"),
        ({"explorers": 1}, r"one snapshot in all"),
        ({"explorers": "10%"}, r"one snapshot in all"),
        ({"clients_per_round": 11}, r"clients_per_round: the number of clients.* between 1 and 10, got 11"),
        ({"explorers": 1.0}, r'explorers must be a number of clients such as 3, a share .* "30%", or "all", got 1\.0$'),
        ({"explorers": 0.25}, r'explorers must be .* a share such as "25%", or "all", got 0\.25$'),
        ({"rounds": 0}, r"rounds must be at least 1, got 0"),
        ({"learning_rate": math.nan}, r"learning_rate must be finite, got nan"),
        ({"learning_rate": "0.1"}, r"learning_rate must be a number, got '0\.1'"),
        ({"aggregation": "mode"}, r"aggregation must be 'mean', 'weighted-mean', .* or 'nnm-krum', got 'mode'"),
        (
            {"aggregation": "krum", "byzantine": 4},
            r"aggregation: krum needs at least 11 clients where 4 may be malicious, got 10: let more clients take part",
        ),
        ({"aggregation": "median", "clients_per_round": 4, "byzantine": 2}, r"aggregation: median needs .* 5 .* got 4"),
        ({"moments": "median", "explorers": 3}, r"moments: median needs at least 4 .* 1 may be malicious, got 3"),
        ({"moments": "trimmed", "columns": "svd"}, r"principal directions do not withstand .* columns last"),
        (
            {"rate_factors": (1.0, 2.0)},
            r"rate_factors must be one factor for each of the 10 clients, or none at all, got 2",
        ),
        ({"optimizer": "adamw", "nesterov": True}, r"nesterov is a form of SGD's momentum: use optimizer sgd"),
        ({"momentum": 0.0, "nesterov": True}, r"nesterov is a form of SGD's momentum: .* a momentum above 0"),
        ({"rounds": 2.0}, r"rounds must be a whole number, got 2\.0$"),
        ({"learning_rate": -1}, r"learning_rate must be above 0, got -1$"),
        ({"momentum": 1.0}, r"momentum must be below 1, got 1\.0$"),
        ({"stop_accuracy": 97}, r"stop_accuracy must be at most 1, got 97$"),
        ({"nesterov": 1}, r"nesterov must be true or false, got 1$"),
        ({"explore": {"epoch": 3}}, r"unknown setting explore\.epoch: did you mean epochs\?$"),
        ({"explore": {"epochs": 0}}, r"explore_epochs must be at least 1, got 0$"),
        ({"explore": 3}, r"explore must be a part with its settings, got 3$"),
        ({"rate_factors": 1.0}, r"rate_factors must be a list, got 1\.0$"),
        ({"rate_factors": [1.0, -2.0]}, r"rate_factors\[1\] must be above 0, got -2\.0$"),
        ({"learnin_rate": 0.1}, r"unknown setting learnin_rate: did you mean learning_rate\?$"),
        ({"batch-norm-examples": 100}, r"unknown setting batch-norm-examples: did you mean batch_norm_examples\?$"),
        ({"phase1": {"rounds": 3}}, r"unknown setting phase1$"),
    ],
)
def test_a_fault_is_put_in_words(values, words):
    with pytest.raises(ConfigError, match=f"^run.toml: {words}"):
        Config.checked(values, source="run.toml")


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"rounds": 0, "momentum": 2.0, "sample": 3}, ["rounds", "momentum", "unknown setting sample: did you mean"]),
        (
            {"clients_per_round": 11, "explorers": 12, "explore_epochs": 10, "cycles": 3, "rank": 1},
            ["clients_per_round", "explorers", "cycles", "rank"],
        ),
    ],
)
def test_several_faults_are_named_at_once_a_line_each(values, names):
    with pytest.raises(ConfigError) as caught:
        Config.checked(values, source="--set")
    lines = str(caught.value).splitlines()
    assert len(lines) == len(names)
    for name, line in zip(names, lines, strict=True):
        assert line.startswith(f"--set: {name}")


@pytest.mark.parametrize(
    "values",
    [
        {"clients": 1, "explore_epochs": 10, "cycles": 2},  # one worker works with several snapshots
        {"clients": 1, "explore_epochs": 10, "snapshots_per_cycle": 10},
        {"explorers": 2},
        {"rank": 0},
        {"rank": 2},
        {"clients_per_round": 1},
        {"clients_per_round": "10%"},
        {"byzantine": "2.5%"},
        {"learning_rate": 1},  # a whole number is a rate too
        {"momentum": 0, "weight_decay": 0, "scale": 0},
        {"stop_accuracy": 1},
        {"seed": 2**62},
    ],
)
def test_an_edge_that_makes_sense_is_accepted(values):
    config = Config(**values)
    assert {name: getattr(config, name) for name in values} == values
    assert flat(config) == {**defaults(Config), **values}


def test_one_client_and_all_clients_cannot_be_mistaken_for_each_other(tmp_path):
    for share, number in ((1, 1), ("all", 10), ("100%", 10), ("10%", 1), ("25%", 2)):
        config = Config(clients_per_round=share)
        config.to_toml(tmp_path / "config.toml")
        assert Config.from_toml(tmp_path / "config.toml") == config
        assert cohort_size(config.train.clients_per_round, 10) == number
    assert Config(clients_per_round="100%") == Config()


def test_a_setting_is_given_and_read_by_its_own_name_or_in_its_part():
    config = Config(rounds=7, explore_epochs=9, server_learning_rate=0.5)
    parts = {"train": TrainSettings(rounds=7), "explore": ExploreSettings(epochs=9)}
    assert config == Config(**parts, server=ServerSettings(learning_rate=0.5))
    assert config == Config(train={"rounds": 7}, explore={"epochs": 9}, server={"learning_rate": 0.5})
    assert (config.train.rounds, config.explore.epochs, config.server.learning_rate) == (7, 9, 0.5)
    assert (config.rounds, config.explore_epochs, config.server_learning_rate) == (7, 9, 0.5)
    assert config.replaced(explore_epochs=3).explore == ExploreSettings(epochs=3)
    assert Config(explore=ExploreSettings(epochs=9, cycles=3), explore_epochs=6).explore.epochs == 6
    for name in ("round", "epochs", "explore_rounds_", "__length__"):
        with pytest.raises(AttributeError):
            getattr(config, name)


def test_a_setting_that_did_not_exist_yet_counts_as_its_default():
    before = {name: value for name, value in flat(Config(rounds=3)).items() if name not in ("upload", "columns")}
    assert differences(flat(Config(rounds=3)), before) == ()
    assert differences(flat(Config(rounds=3, upload="bfloat16")), before) == ('upload ("bfloat16", not "float32")',)
    assert differences(flat(Config()), before) == ("rounds (20, not 3)",)


def test_shares_that_were_written_as_fractions_are_the_same_as_percentages():
    before = {**flat(Config()), "explorers": 1.0, "byzantine": 0.2, "min_clients": 0.5, "centering": "final"}
    assert differences(flat(Config()), before) == ()
    assert differences(flat(Config()), {**before, "explorers": 1}) == ('explorers ("all", not 1)',)
    assert differences(flat(Config()), {**before, "centering": "running"}) == ('centering ("final", not "running")',)


def test_a_setting_that_stands_twice_in_a_file_is_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("explore_epochs = 3\n[explore]\nepochs = 4\n")
    with pytest.raises(ConfigError, match=r"explore_epochs stands there twice, also as epochs in \[explore\]"):
        Config.from_toml(path)


configs = st.builds(
    Config,
    clients=st.integers(3, 10**9),
    seed=st.integers(0, 2**63 - 1),  # TOML's integers have 64 bits
    learning_rate=st.floats(1e-300, 1e300),
    final_learning_rate=st.none() | st.floats(1e-9, 1.0),
    clients_per_round=st.integers(1, 3) | st.integers(1, 100).map("{}%".format) | st.just("all"),
    stop_accuracy=st.none() | st.floats(0.01, 1.0),
    momentum=st.floats(0, 1, exclude_max=True),
    aggregation=st.sampled_from(["mean", "weighted-mean"]),
    batch_norm_examples=st.none() | st.integers(2, 10**6),
    rank=st.just(0) | st.integers(2, 100),
)


@given(configs)
def test_every_config_survives_a_file(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("config", numbered=True) / "config.toml"
    config.to_toml(path)
    assert Config.from_toml(path) == config


PARTS = ("train", "local", "server", "explore", "posterior", "predict", "calibration", "faults")


def test_settings_without_a_value_are_left_out_of_the_file(tmp_path):
    Config().to_toml(tmp_path / "config.toml")
    text = (tmp_path / "config.toml").read_text()
    absent = {
        "final_learning_rate",
        "explore_rounds",
        "explore_learning_rate",
        "explore_final_learning_rate",
        "stop_accuracy",
        "clip_update",
        "clip_gradient",
        "client_time_limit",
        "batch_norm_examples",
    }
    read = tomllib.loads(text)
    assert read == {**{name: read[name] for name in ("clients", "seed")}, **{name: read[name] for name in PARTS}}
    assert Config(**read) == Config()
    names = [name for part in PARTS for name in read[part]]
    assert len(names) + 2 == len(defaults(Config)) - len(absent)


def test_a_silent_file_means_the_defaults(tmp_path):
    (tmp_path / "empty.toml").write_text("# nothing\n")
    assert Config.from_toml(tmp_path / "empty.toml") == Config()


@pytest.mark.parametrize("content", [b"rounds = ", b"rounds: 3\n", b"\xff\xfe\x00", b'seed = "\n'])
def test_a_file_that_is_no_toml_is_refused_by_name(tmp_path, content):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.toml is no TOML file"):
        Config.from_toml(path)


def test_faults_in_a_file_name_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("rounds = 0\nlearning_rate = nan\nround = 3\n")
    with pytest.raises(ConfigError) as caught:
        Config.from_toml(path)
    assert [line.removeprefix(f"{path}: ").split(",")[0] for line in str(caught.value).splitlines()] == [
        "rounds must be at least 1",
        "learning_rate must be finite",
        "unknown setting round: did you mean rounds?",
    ]


def test_what_is_given_beside_a_file_wins_over_it_and_is_checked_with_it(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("rounds = 3\ncycles = 3\nexplore_epochs = 6\n")
    assert Config.from_toml(path, rounds=4, stop_accuracy=None) == Config(rounds=4, cycles=3, explore_epochs=6)
    with pytest.raises(
        ConfigError, match=r"mine\.toml and overrides: cycles must divide explore_epochs, got 3 .* in 5 e"
    ):
        Config.from_toml(path, explore_epochs=5)


def test_a_file_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Config.from_toml(tmp_path / "none.toml")


def test_a_config_shows_what_is_not_the_default_as_the_call_that_makes_it():
    assert repr(Config()) == "Config()"
    assert repr(Config(rounds=7, upload="bfloat16")) == "Config(rounds=7, upload='bfloat16')"
    number, fraction = Config(cycles=5, explorers=1), Config(cycles=5)
    assert repr(number) == "Config(explorers=1, cycles=5)"
    assert repr(fraction) == "Config(cycles=5)"
    assert repr(Recipe(seed=3, model="cnn")) == "Recipe(seed=3, model='cnn')"


@pytest.mark.parametrize("cls", [Config, Recipe])
def test_help_tells_every_setting_with_its_type_and_default(cls):
    parameters = inspect.signature(cls).parameters
    assert [*parameters] == [*defaults(cls)]
    assert (parameters["rounds"].annotation, parameters["rounds"].default) == (int, 20)
    assert (parameters["explorers"].annotation, parameters["explorers"].default) == (int | str, "all")
    assert (parameters["clip_update"].annotation, parameters["clip_update"].default) == (float | None, None)
    lines = inspect.getdoc(cls).partition("Settings:\n")[2].splitlines()
    assert [line.strip().split(":")[0] for line in lines] == [*parameters]
    assert "    rounds: Global rounds (T)." in lines


def test_settings_are_given_by_name():
    with pytest.raises(ConfigError, match=r"^settings are given by name, such as clients=5$"):
        Config(5)


def test_a_config_cannot_be_changed_but_replaced_with_the_same_checks():
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.rounds = 3
    assert dataclasses.replace(config, rounds=3) == Config(rounds=3)
    with pytest.raises(ConfigError, match="rank must be 0 or at least 2"):
        dataclasses.replace(config, rank=1)


@pytest.mark.parametrize(
    ("values", "phase", "enough"),
    [
        ({"on_failure": "fail", "aggregation": "krum"}, 1, None),
        ({}, None, 5),
        ({"min_clients": 3}, None, 3),
        ({"min_clients": 3}, 1, 3),
        ({"min_clients": 1}, 2, 2),
        ({"min_clients": 1, "explore_epochs": 4, "cycles": 2}, 2, 1),
        ({"min_clients": 1, "aggregation": "krum", "byzantine": 2}, 1, 7),
        ({"min_clients": 1, "aggregation": "krum", "byzantine": 2}, 2, 2),
        ({"min_clients": 9, "aggregation": "median", "byzantine": 2}, 1, 9),
        ({"min_clients": 1, "moments": "median", "byzantine": 3}, 2, 8),
        ({"min_clients": 1, "moments": "median", "byzantine": 3}, 1, 1),
    ],
)
def test_as_many_must_answer_as_were_asked_for_or_a_rule_needs(values, phase, enough):
    assert Config(**{"on_failure": "skip", **values}).enough_of(10, phase=phase) == enough


def test_a_file_that_is_nested_too_deep_is_refused(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("clients = " + "[" * 100_000)
    with pytest.raises(ConfigError, match=r"config\.toml is no TOML file"):
        Config.from_toml(path)


def test_a_part_in_a_file_wins_over_defaults_given_by_their_own_names(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[explore]\nrounds = 5\n")
    config = Config.from_toml(path, PAPER)
    assert (config.explore.rounds, config.explore.learning_rate) == (5, PAPER["explore_learning_rate"])
