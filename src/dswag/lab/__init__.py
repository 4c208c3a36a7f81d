"""The paper and its competitors: recipes, models, other methods, comparisons and reports.

The library does not need this room, the commands do: `experiments.recipe` says what a run is and `experiments.run` does
it; `baselines.METHODS` are the methods that `comparison` compares; `report` draws pages. It needs `dswag[cli]`.

>>> from dswag.lab.experiments.recipe import Recipe
>>> Recipe(model="cnn")
Recipe(model='cnn')
"""

from dswag.core.extras import check

check("dswag.lab", "jinja2", "matplotlib", "pooch", "PIL", "rich", "tomli_w")
