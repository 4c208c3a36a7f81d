"""What each command takes: its flags with their help texts, and settings from a TOML file and flags together."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from dswag.config import PAPER, ConfigError, differences
from dswag.lab.baselines import METHODS
from dswag.lab.experiments.recipe import INDIFFERENT, Recipe
from dswag.lab.experiments.scoring import DEFAULT_KINDS
from dswag.posterior.draws import Kind

Output = Annotated[Path | None, arg(aliases=("-o",), metavar="PATH")]
Switch = FlagCreatePairsOff[bool]
"""--json without --no-json; settings have both, so that a flag can win over a file."""

HELD_OUT = 0.1
"""Share of the examples that a comparison keeps from training, for methods that are tuned."""


@dataclass(frozen=True, kw_only=True)
class Configured:
    """What commands take that train: every setting of a recipe, from a file and from flags."""

    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    """TOML file with settings, named like the flags but with underscores; flags win over it."""
    workers: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: one for each core)")] = None
    """Clients trained at a time; the result does not depend on it."""
    paper: Switch = False
    """Train as the paper prints it, wherever neither file nor flags say otherwise: explorers train alone."""
    json: Switch = False
    """Print the result as JSON; progress goes to standard error in any case."""

    def recipe(self) -> Recipe:
        """The settings of file and flags, checked together, defaults elsewhere.

        Raises:
            ConfigError: a file that cannot be read, unknown settings, or values that cannot be; a line for each fault.
        """
        printed = PAPER if self.paper else {}
        if self.config is None:
            return Recipe.checked({**printed, **self._flags()}, source="flags")
        try:
            return Recipe.from_toml(self.config, printed, **self._flags())
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
    """Replace the run that the output folder already holds."""
    resume: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="(optional)")] = None
    """Continue a run that was stopped, in its folder and with its settings."""
    engine: Literal["in-process", "distributed", "flower"] = "in-process"
    """Where the clients run: in this process, in all processes that torchrun started, or on simulated Flower nodes."""
    log: Annotated[
        tuple[Literal["tensorboard", "mlflow"], Path] | None,
        arg(metavar="{tensorboard,mlflow} DIR", help_behavior_hint="(optional)"),
    ] = None
    """Send rounds and scores to TensorBoard or MLflow as well, into this folder."""
    rank_timeout: Annotated[float, arg(metavar="FLOAT")] = 1800.0
    """Seconds that the processes of a distributed run wait for one another; choose more than a round trip takes."""

    def resumed(self, recipe: Recipe) -> Recipe:
        """The settings of the run that is resumed; file and flags may repeat them, and change what does not matter.

        Raises:
            ConfigError: what `recipe` refuses, settings that differ, or another folder.
        """
        if self.output is not None or self.overwrite:
            raise ConfigError("--resume goes on in the folder of the run: leave --output and --overwrite out")
        asked = self.recipe() if self.config else Recipe.checked({**recipe.flat(), **self._flags()}, source="flags")
        differing = differences(recipe.decisive(), asked.decisive())
        if differing:
            raise ConfigError(
                f"a run that is resumed keeps its settings, all but {', '.join(INDIFFERENT)} and workers: "
                f"got other ones than its own for {', '.join(differing)}"
            )
        return asked


@dataclass(frozen=True, kw_only=True)
class Compare(Configured):
    """Train many methods on one problem with the budget of dswag train, and compare their scores over several seeds.

    Settings are those of dswag train, but 10 % of the examples are held out unless --holdout says otherwise. Results
    are saved one by one, and those that the folder already holds are not computed again.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    """Methods to compare."""
    seeds: int = 3
    """Number of seeds, counting up from --seed."""
    output: Annotated[Output, arg(metavar="DIR", help_behavior_hint="(default: runs/compare-DATASET-MODEL)")] = None
    """Folder for comparison.json, comparison.html, and a file for each method and seed."""
    overwrite: Switch = False
    """Compute again what the folder already holds."""

    def recipe(self) -> Recipe:
        """As for training, with examples held out."""
        recipe = super().recipe()
        return recipe if recipe.calibration.holdout else recipe.replaced(holdout=HELD_OUT)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score a run again on the test set, from its posterior and checkpoint, for example with more draws."""

    run: Positional[Path]
    """Folder that dswag train wrote."""
    kind: tuple[Kind | Literal["mean"], ...] = DEFAULT_KINDS
    """What to predict with: draws from the posterior or from a part of its covariance, or its mean."""
    samples: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: as trained)")] = None
    """Draws from the posterior (S)."""
    scale: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: as trained)")] = None
    """Factor on the covariance; 1 in the paper."""
    landscape_examples: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: as trained)")] = None
    """Training examples for the loss around the posterior; 0 leaves it out; only used with --save."""
    data_dir: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: as trained)")] = None
    """Folder with the data set's files."""
    per_client: Switch = False
    """Show how DSWAG fares for the worst, the typical and the best client, each on its own part of the test set."""
    save: Switch = False
    """Save the outcome in place of the run's metrics, landscape and report."""
    json: Switch = False
    """Print the result as JSON."""


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Fit the scales of a run's posterior, and a temperature, to the examples its clients held out; score it again."""

    run: Positional[Path]
    """Folder that dswag train wrote, with --holdout above 0."""
    data_dir: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: as trained)")] = None
    """Folder with the data set's files."""
    json: Switch = False
    """Print what was fitted as JSON."""


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Predict the classes of images, with their probabilities and uncertainties (in nats)."""

    run: Positional[Path]
    """Folder that dswag train wrote."""
    inputs: Annotated[Positional[tuple[Path, ...]], arg(metavar="INPUT ...", help_behavior_hint="(one or more)")]
    """Image files, or .npy or .npz files of uint8 images [n, h, w], [n, c, h, w] or [n, h, w, c]."""
    output: Annotated[Output, arg(metavar="FILE", help_behavior_hint="(default: CSV on standard output)")] = None
    """File to write: CSV or JSON, by its ending."""
    resize: Switch = False
    """Resize images to what the model takes; without it, images of another size are refused."""
    kind: Kind | Literal["mean"] = "swag"
    """What to predict with: draws from the posterior or from a part of its covariance, or its mean."""
    samples: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: as trained)")] = None
    """Draws from the posterior (S)."""
    scale: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: as trained)")] = None
    """Factor on the covariance; 1 in the paper."""
    alpha: Annotated[float, arg(metavar="FLOAT")] = 0.1
    """The set of classes holds the right one with probability 1 - alpha; for runs with --holdout above 0."""
    data_dir: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: as trained)")] = None
    """Folder with the data set's files."""
    json: Switch = False
    """Print the predictions as JSON."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one self-contained HTML page about one or several runs."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN ...", help_behavior_hint="(one or more)")]
    """Folders that dswag train wrote."""
    output: Annotated[
        Output, arg(metavar="FILE", help_behavior_hint="(default: report.html, in the folder of a single run)")
    ] = None
    """File to write."""
    json: Switch = False
    """Print where the page is as JSON."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Check that the files of a run are whole and as they were saved."""

    run: Positional[Path]
    """Folder that dswag train wrote."""
    json: Switch = False
    """Print what was found as JSON."""


@dataclass(frozen=True, kw_only=True)
class Collect:
    """Make a posterior from checkpoints of any model; each of them is one snapshot of its weights."""

    files: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILE ...", help_behavior_hint="(two or more)")]
    """Checkpoints in order (.safetensors, .pt, .pth, .ckpt, .bin), or folders of them, taken in natural order."""
    output: Annotated[Path, arg(aliases=("-o",), metavar="FILE")]
    """File to write; its name must end in .safetensors."""
    rank: int = 20
    """Deviation columns that are kept, at most (K); 0 gives a diagonal posterior."""
    columns: Literal["last", "svd"] = "last"
    """Keep the columns of the last K checkpoints, or the K principal directions of all."""
    key: Annotated[str | None, arg(metavar="KEY", help_behavior_hint="(default: at the top)")] = None
    """Key under which a nested checkpoint holds the state dict, such as state_dict; use dots for deeper levels."""
    prefix: Annotated[str, arg(metavar="TEXT", help_behavior_hint="(default: none)")] = ""
    """Take only entries whose names start with this, such as model., and remove it from their names."""
    json: Switch = False
    """Print what was collected as JSON."""


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Reproduce the paper's figures and tables: train, measure and draw what has no result yet."""

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME ...", help_behavior_hint="(see --list)")] = ()
    """fig4, fig5-left, fig5-right, fig6, fig7, fig8, table-mnist, table-cifar10, or all."""
    list: Switch = False
    """Run nothing; show what is done, what is left and how long that will take."""
    quick: Switch = False
    """A small version on mnist5k with few rounds; about a minute for each name."""
    only: Annotated[tuple[str, ...], arg(help_behavior_hint="(default: all cases)")] = ()
    """Run only cases whose names have all of these parts, such as seed-0 clients-10."""
    dataset: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: the figure's)")] = None
    """Data set to use instead, such as mnist5k, which takes a tenth of the time."""
    budget: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: the figure's)")] = None
    """Of table-cifar10: short or long, for two cores instead of a GPU."""
    output: Annotated[
        Output, arg(metavar="DIR", help_behavior_hint="(default: results, results/DATASET-BUDGET or runs/quick)")
    ] = None
    """Folder for the results: a JSON file for each case, a picture for each figure."""
    work: Annotated[Path, arg(metavar="DIR")] = Path("runs/reproduce")
    """Folder in which trained weights are kept, so that figures can share them; results do not need it."""
    json: Switch = False
    """Print what is done and what is left as JSON."""


Options = Train | Compare | Evaluate | Calibrate | Predict | Report | Check | Collect | Reproduce
