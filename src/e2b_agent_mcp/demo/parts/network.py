"""Part 3, network data: fetch JSON over HTTP, make a table of it, see what it says.

Asks a public service for exchange rates; when the sandbox has no internet, the small HTTP server
of `api_server.py`, which runs beside this code inside the sandbox and answers in the same shape.
"""

import time

import matplotlib.pyplot as plt
import pandas as pd
import requests
from IPython.display import Markdown, display
from plots import COLORS, QUIET, apply_style, label_line_end

PUBLIC = (
    "https://api.frankfurter.dev/v1/2018-01-01..2019-12-31?base=EUR&symbols=USD,GBP,JPY,CHF,SEK,TRY"
)
LOCAL = "http://127.0.0.1:8123/v1/2018-01-01..2019-12-31"


def fetch() -> tuple[dict, str, float]:
    """The document, where it came from, and how long it took."""
    tries = [
        (PUBLIC, 5, "exchange rates of the European Central Bank (api.frankfurter.dev)"),
        *[(LOCAL, 10, "a small HTTP server in the sandbox (no internet from here)")] * 20,
    ]
    for url, timeout, source in tries:
        start = time.perf_counter()
        try:
            answer = requests.get(url, timeout=timeout)
            answer.raise_for_status()
            return answer.json(), source, time.perf_counter() - start
        except (requests.RequestException, ValueError):
            time.sleep(0.25)  # the small server may still be starting
    raise SystemExit("Neither the public service nor the small HTTP server answered.")


apply_style()
document, source, seconds = fetch()
daily = pd.DataFrame.from_dict(document["rates"], orient="index").sort_index()
daily.index = pd.to_datetime(daily.index)
weekly = daily.resample("W").last().dropna()
changes = weekly.pct_change().dropna()
drawdown = weekly / weekly.cummax() - 1

display(
    Markdown(
        f"### The answer\n\nFrom {source}, in {seconds:.2f} s: {len(daily)} records of "
        f"{daily.shape[1]} series, {daily.index[0]:%d %b %Y} to {daily.index[-1]:%d %b %Y}, "
        f"base: {document['base']}."
    )
)
display(Markdown("### What happened in two years"))
table = pd.DataFrame(
    {
        "series": weekly.columns,
        "first": weekly.iloc[0].round(3).to_numpy(),
        "last": weekly.iloc[-1].round(3).to_numpy(),
        "change %": ((weekly.iloc[-1] / weekly.iloc[0] - 1) * 100).round(1).to_numpy(),
        "weekly swing %": (changes.std() * 100).round(2).to_numpy(),
        "best week %": (changes.max() * 100).round(1).to_numpy(),
        "worst week %": (changes.min() * 100).round(1).to_numpy(),
        "deepest fall %": (drawdown.min() * 100).round(1).to_numpy(),
    }
).sort_values("change %", ascending=False, ignore_index=True)
display(table)

figure, (top, bottom) = plt.subplots(
    2, 1, figsize=(9.6, 6.4), sharex=True, height_ratios=[2.2, 1], gridspec_kw={"hspace": 0.24}
)
indexed = weekly / weekly.iloc[0] * 100
ends = indexed.iloc[-1].sort_values()
gap = (indexed.to_numpy().max() - indexed.to_numpy().min()) * 0.055
height = -float("inf")
for number, (name, end) in enumerate(ends.items()):
    shade = COLORS[number]
    top.plot(indexed.index, indexed[name], color=shade, linewidth=1.9)
    height = max(end, height + gap)  # keeps neighbouring names apart
    label_line_end(top, indexed.index[-1], height, name, shade)
top.axhline(100, color=QUIET, linewidth=1, linestyle="--")
top.set(title="Both years, first week = 100", ylabel="index")

worst = drawdown.min().idxmin()
low = drawdown[worst].idxmin()
bottom.fill_between(drawdown.index, drawdown[worst] * 100, color=COLORS[1], alpha=0.3, linewidth=0)
bottom.plot(drawdown.index, drawdown[worst] * 100, color=COLORS[1], linewidth=1.6)
bottom.annotate(
    f"{drawdown[worst].min():.0%}, {low:%b %Y}",
    (low, drawdown[worst].min() * 100),
    xytext=(8, 4),
    textcoords="offset points",
    fontsize=9.5,
    fontweight="bold",
)
bottom.set(title=f"The deepest fall: {worst}, % below its highest value so far", ylabel="%")
plt.show()
