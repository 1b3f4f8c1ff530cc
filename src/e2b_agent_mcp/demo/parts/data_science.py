"""Part 1, data science: how long people live, and what money has to do with it.

Gapminder's data of 142 countries from 1952 to 2007, which the package plotly ships.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from plotly.express import data as datasets
from plots import COLORS, QUIET, apply_style, label_line_end

apply_style()
world = datasets.gapminder().rename(
    columns={"lifeExp": "life", "pop": "people", "gdpPercap": "income"}
)
first, last = int(world["year"].min()), int(world["year"].max())
continents = world["continent"].value_counts().index.tolist()
color = dict(zip(continents, COLORS, strict=False))

display(
    Markdown(
        f"### The data\n\n{len(world):,} rows: {world['country'].nunique()} countries, every five "
        f"years from {first} to {last}. No value is missing: {not world.isna().any().any()}."
    )
)

# A mean over countries must count people, not countries: weight by population.
weighted = world.assign(life_years=world["life"] * world["people"])
by_continent = weighted.groupby(["continent", "year"])[["life_years", "people"]].sum()
life = (by_continent["life_years"] / by_continent["people"]).unstack("year")

display(Markdown("### Life expectancy by continent (years, weighted by population)"))
summary = life[[first, 1977, last]].round(1)
summary["gained"] = (life[last] - life[first]).round(1)
summary["countries"] = world.groupby("continent")["country"].nunique()
summary.columns = [str(name) for name in summary.columns]
display(summary.sort_values("gained", ascending=False).reset_index())

spans = world.pivot(index="country", columns="year", values="life")
change = pd.DataFrame(
    {
        "continent": world.groupby("country")["continent"].first(),
        str(first): spans[first].round(1),
        str(last): spans[last].round(1),
        "gained": (spans[last] - spans[first]).round(1),
    }
).sort_values("gained")
display(Markdown("### The largest gains and the losses"))
display(pd.concat([change.tail(5)[::-1], change.head(3)[::-1]]).reset_index())

now = world[world["year"] == last]
correlation = np.corrcoef(np.log(now["income"]), now["life"])[0, 1]
slope, offset = np.polyfit(np.log2(now["income"]), now["life"], 1)
display(
    Markdown(
        f"### Money and life\n\nIn {last} life expectancy follows the logarithm of income "
        f"(r = {correlation:.2f}): twice the income goes with {slope:.1f} more years."
    )
)

figure, axes = plt.subplots(figsize=(9.2, 5.6))
for continent, group in now.groupby("continent"):
    axes.scatter(
        group["income"],
        group["life"],
        s=12 + np.sqrt(group["people"]) / 22,
        color=color[continent],
        alpha=0.72,
        edgecolor="white",
        linewidth=0.8,
        label=continent,
    )
trend = np.geomspace(now["income"].min(), now["income"].max(), 50)
axes.plot(trend, slope * np.log2(trend) + offset, color=QUIET, linewidth=1.2, linestyle="--")
names_above = {"China": 21, "India": 21, "Japan": 13, "Nigeria": 14, "South Africa": 12}
names_below = {"United States": -24, "Swaziland": -15}
for name, offset_y in {**names_above, **names_below}.items():
    row = now[now["country"] == name].iloc[0]
    axes.annotate(
        name,
        (row["income"], row["life"]),
        xytext=(0, offset_y),
        textcoords="offset points",
        ha="center",
        fontsize=9,
    )
axes.set_xscale("log")
ticks = [500, 1000, 2000, 5000, 10000, 20000, 40000]
axes.set_xticks(ticks, [f"${tick:,}" for tick in ticks])
axes.minorticks_off()
axes.set(
    title=f"Richer countries live longer, with large exceptions ({last})",
    xlabel="income per person (inflation-adjusted dollars, logarithmic)",
    ylabel="life expectancy (years)",
    ylim=(36, 88),
)
handles = axes.legend(loc="lower right", title="size: population").legend_handles
for handle in handles:
    handle.set_sizes([70])
plt.show()

figure, axes = plt.subplots(figsize=(9.2, 4.6))
for continent in life.index:
    track = life.loc[continent]
    axes.plot(track.index, track, color=color[continent], linewidth=2.4, marker="o", markersize=4)
    label_line_end(axes, last, track[last], continent, color[continent])
axes.set(
    title="Every continent gained; Africa stalled after 1987",
    ylabel="life expectancy (years)",
    xlim=(first - 1, last + 6),
)
plt.show()
