"""What each command takes: its flags with their help texts, and settings from a TOML file and flags together."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from dswag.baselines import METHODS
from dswag.config import ConfigError, differences
from dswag.experiments.recipe import INDIFFERENT, Recipe
from dswag.experiments.scoring import DEFAULT_KINDS
from dswag.tasks import Kind

Output = Annotated[Path | None, arg(aliases=("-o",), metavar="PATH")]
Switch = FlagCreatePairsOff[bool]
"""--json without --no-json; settings have both, so that a flag can win over a file."""

HELD_OUT = 0.1
"""Share of the examples that a comparison keeps from training, for methods that are tuned."""


@dataclass(frozen=True, kw_only=True)
class Configured:
    """What commands take that train: every setting of a recipe, from a file and from flags."""

    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    """TOML file with settings, named as the flags are but with underscores; flags win over it."""
    workers: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: one for each core)")] = None
    """Clients trained at a time; the result does not depend on it."""
    json: Switch = False
    """Print the result as JSON; progress goes to standard error in any case."""

    def recipe(self) -> Recipe:
        """The settings of file and flags, checked together, defaults elsewhere.

        Raises:
            ConfigError: a file that cannot be read, unknown settings, or values that cannot be; a line for each fault.
        """
        if self.config is None:
            return Recipe.checked(self._flags(), source="flags")
        try:
            return Recipe.from_toml(self.config, **self._flags())
        except OSError as error:
            raise ConfigError(f"{self.config} cannot be read: {error.strerror}") from None

    def _flags(self) -> dict[str, object]:
        """The settings given on the command line; `parsing` makes a field of each group of them."""
        values = (getattr(self, field.name) for field in fields(self))
        return {name: value for group in values if isinstance(group, Mapping) for name, value in group.items()}


@dataclass(frozen=True, kw_only=True)
class Train(Configured):
    """Train on a known data set, score all methods on its test set, and write everything into a run folder."""

    output: Annotated[Output, arg(metavar="DIR", help_behavior_hint="(default: runs/DATASET-MODEL-N)")] = None
    """Run folder to write: settings, partition, history, checkpoint, posterior, landscape, metrics and report."""
    overwrite: Switch = False
    """Replace the run that the folder already holds."""
    resume: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="(optional)")] = None
    """Go on with a run that was stopped, in its folder and with its settings."""
    engine: Literal["in-process", "distributed", "flower"] = "in-process"
    """Where the clients run: in this process, in all that torchrun starts, or on nodes that Flower simulates."""
    rank_timeout: Annotated[float, arg(metavar="FLOAT")] = 1800.0
    """Seconds that the processes of a distributed run wait for one another: more than the longest exchange takes."""

    def resumed(self, recipe: Recipe) -> Recipe:
        """The settings of the run that is resumed; file and flags may repeat them, and change what does not matter.

        Raises:
            ConfigError: what `recipe` refuses, settings that differ, or another folder.
        """
        if self.output is not None or self.overwrite:
            raise ConfigError("--resume goes on in the folder of the run: leave --output and --overwrite out")
        asked = self.recipe() if self.config else Recipe.checked({**asdict(recipe), **self._flags()}, source="flags")
        differing = differences(recipe.decisive(), asked.decisive())
        if differing:
            raise ConfigError(
                f"a run that is resumed keeps its settings, all but {', '.join(INDIFFERENT)} and workers: "
                f"got other ones than its own for {', '.join(differing)}"
            )
        return asked


@dataclass(frozen=True, kw_only=True)
class Compare(Configured):
    """Train many methods on one problem at the budget of dswag train, and compare what they predict over several seeds.

    Settings are those of dswag train; 10 % of the examples are held out unless more or fewer are asked for. Results are
    saved one by one, and those that the folder holds already are not computed again.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    """Which methods; all by default."""
    seeds: int = 3
    """How many seeds, from --seed on."""
    output: Annotated[Output, arg(metavar="DIR", help_behavior_hint="(default: runs/compare-DATASET-MODEL)")] = None
    """Folder for a file with the outcome of each method and seed, comparison.json and comparison.html."""
    overwrite: Switch = False
    """Compute again what the folder holds already."""

    def recipe(self) -> Recipe:
        """As for training, with examples held out."""
        recipe = super().recipe()
        return recipe if recipe.holdout else replace(recipe, holdout=HELD_OUT)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score the methods of a run again on the test set, from its posterior and checkpoint."""

    run: Positional[Path]
    """Folder that dswag train wrote."""
    kind: tuple[Kind | Literal["mean"], ...] = DEFAULT_KINDS
    """What to predict with: draws from the posterior or from a part of its covariance, or its mean."""
    samples: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: as trained)")] = None
    """Draws from the posterior (S)."""
    scale: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: as trained)")] = None
    """Factor on the covariance; the paper's is 1."""
    landscape_examples: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: as trained)")] = None
    """Training examples that the loss around the posterior's mean is measured on, 0 to leave it out; for --save."""
    data_dir: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: as trained)")] = None
    """Folder with the data set's files."""
    save: Switch = False
    """Replace the metrics, the landscape and the report of the run by the outcome."""
    json: Switch = False
    """Print the result as JSON."""


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Fit the scales of a run's posterior and a temperature to what its clients held out, and score the run again."""

    run: Positional[Path]
    """Folder that dswag train wrote, with --holdout above 0."""
    data_dir: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: as trained)")] = None
    """Folder with the data set's files."""
    json: Switch = False
    """Print what was fitted as JSON."""


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Predict classes of images, with probabilities and how uncertain they are, in nats."""

    run: Positional[Path]
    """Folder that dswag train wrote."""
    inputs: Annotated[Positional[tuple[Path, ...]], arg(metavar="INPUT ...", help_behavior_hint="(one or more)")]
    """Image files, or .npy or .npz files of uint8 images [n, h, w], [n, c, h, w] or [n, h, w, c]."""
    output: Annotated[Output, arg(metavar="FILE", help_behavior_hint="(default: CSV on standard output)")] = None
    """File to write: CSV or JSON, by its ending."""
    resize: Switch = False
    """Bring images to the size that the model takes, instead of refusing others."""
    kind: Kind | Literal["mean"] = "swag"
    """What to predict with: draws from the posterior or from a part of its covariance, or its mean."""
    samples: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: as trained)")] = None
    """Draws from the posterior (S)."""
    scale: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: as trained)")] = None
    """Factor on the covariance; the paper's is 1."""
    data_dir: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: as trained)")] = None
    """Folder with the data set's files."""
    json: Switch = False
    """Print the predictions as JSON."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one self-contained HTML page over one or many runs."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN ...", help_behavior_hint="(one or more)")]
    """Folders that dswag train wrote."""
    output: Annotated[
        Output, arg(metavar="FILE", help_behavior_hint="(default: report.html, in the folder of a single run)")
    ] = None
    """File to write."""
    json: Switch = False
    """Print where the page is as JSON."""


@dataclass(frozen=True, kw_only=True)
class Collect:
    """Make a posterior of checkpoints that training left, of any model, each of them a snapshot of its weights."""

    files: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILE ...", help_behavior_hint="(two or more)")]
    """Checkpoints in order, .safetensors, .pt, .pth or .ckpt, or folders of them, taken in natural order."""
    output: Annotated[Path, arg(aliases=("-o",), metavar="FILE")]
    """File to write, which ends in .safetensors."""
    rank: int = 20
    """Most deviation columns kept (K); 0 gives a diagonal posterior."""
    columns: Literal["last", "svd"] = "last"
    """Keep the columns of the last K checkpoints, or the K principal directions of all."""
    key: Annotated[str | None, arg(metavar="KEY", help_behavior_hint="(default: at the top)")] = None
    """Where the state dict lies in a nested checkpoint, such as state_dict; a dot leads further down."""
    prefix: Annotated[str, arg(metavar="TEXT", help_behavior_hint="(default: none)")] = ""
    """Take the entries that start with it, such as model., and name them without it."""
    json: Switch = False
    """Print what was collected as JSON."""


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Reproduce the paper's figures and tables: train, measure and draw what has no result yet."""

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME ...", help_behavior_hint="(see --list)")] = ()
    """fig4, fig5-left, fig5-right, fig6, fig7, fig8, table-mnist, table-cifar10, or all."""
    list: Switch = False
    """Run nothing; say what is done, what is left and how long that will take."""
    quick: Switch = False
    """The same on mnist5k with few rounds, a minute each."""
    only: Annotated[tuple[str, ...], arg(help_behavior_hint="(default: all cases)")] = ()
    """Parts that the names of cases must have, such as seed-0 clients-10."""
    dataset: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: the figure's)")] = None
    """Another data set for the same runs, such as mnist5k, which takes a tenth of the time."""
    output: Annotated[
        Output, arg(metavar="DIR", help_behavior_hint="(default: results, results/DATASET or runs/quick)")
    ] = None
    """Folder of the results: a JSON file a case, a picture a figure."""
    work: Annotated[Path, arg(metavar="DIR")] = Path("runs/reproduce")
    """Folder in which trained weights are kept, so that figures share them."""
    json: Switch = False
    """Print what is done and left as JSON."""


@dataclass(frozen=True)
class Version:
    """Print which version this is."""


Options = Train | Compare | Evaluate | Calibrate | Predict | Report | Collect | Reproduce | Version
