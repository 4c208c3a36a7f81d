"""The paper and its competitors: recipes, models, other methods, comparisons, reports. The library does not need it."""
