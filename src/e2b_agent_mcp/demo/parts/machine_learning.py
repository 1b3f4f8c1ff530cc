"""Part 2, machine learning: read handwritten digits, and know how well.

1797 scanned digits of 8 x 8 pixels, which the package scikit-learn ships.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.ticker import MultipleLocator
from plots import COLORS, QUIET, apply_style
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import cross_val_score, learning_curve, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

apply_style()
digits = load_digits()
pixels, answers = digits.data, digits.target
train_x, test_x, train_y, test_y = train_test_split(
    pixels, answers, test_size=0.25, stratify=answers, random_state=0
)
display(
    Markdown(
        f"### The task\n\nWhich digit is it? {len(train_x):,} images to learn from; {len(test_x)} "
        "are kept aside and looked at once, at the end. Models are compared by five-fold "
        "cross-validation on the first group only."
    )
)

models = {
    "k nearest neighbours": KNeighborsClassifier(3),
    "linear discriminants": LinearDiscriminantAnalysis(),
    "random forest": RandomForestClassifier(100, random_state=0),
    "support vectors (RBF)": SVC(C=10, gamma=0.001),
}
rows = []
for name, model in models.items():
    start = time.perf_counter()
    folds = cross_val_score(model, train_x, train_y, cv=5)
    model.fit(train_x, train_y)
    rows.append(
        {
            "model": name,
            "cross-validation": round(folds.mean(), 4),
            "± fold": round(folds.std(), 4),
            "train": round(model.score(train_x, train_y), 4),
            "test": round(model.score(test_x, test_y), 4),
            "seconds": round(time.perf_counter() - start, 2),
        }
    )
scores = pd.DataFrame(rows).sort_values("cross-validation", ascending=False, ignore_index=True)
best_name = scores.loc[0, "model"]
best = models[best_name]
guesses = best.predict(test_x)
wrong = np.flatnonzero(guesses != test_y)

display(Markdown("### Four models (share of digits read correctly)"))
display(scores)
display(
    Markdown(
        f"### The chosen model\n\n{best_name}, chosen by cross-validation, reads "
        f"{best.score(test_x, test_y):.1%} of the unseen digits: {len(wrong)} of {len(test_y)} "
        "are wrong. The confusion matrix counts them, the pictures below show them."
    )
)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.9), width_ratios=[1, 1.08])
table = confusion_matrix(test_y, guesses)
left.imshow(np.sqrt(table), cmap="Blues")
for row, column in np.ndindex(table.shape):
    if table[row, column]:
        ink = "white" if row == column else COLORS[1]
        left.text(column, row, table[row, column], ha="center", va="center", color=ink, fontsize=9)
left.set(
    title="What was mistaken for what",
    xlabel="digit read",
    ylabel="digit written",
    xticks=range(10),
    yticks=range(10),
)
left.grid(visible=False)

sizes, train_scores, fold_scores = learning_curve(
    best, train_x, train_y, cv=5, train_sizes=np.geomspace(0.06, 1, 8)
)
for values, label, shade in (
    (train_scores, "on what it learned from", QUIET),
    (fold_scores, "on unseen folds", COLORS[0]),
):
    mean, spread = values.mean(axis=1), values.std(axis=1)
    right.plot(sizes, mean, marker="o", markersize=4, linewidth=2.2, color=shade, label=label)
    right.fill_between(sizes, mean - spread, mean + spread, color=shade, alpha=0.15, linewidth=0)
right.set(title="What more examples would bring", xlabel="training images", ylabel="accuracy")
right.yaxis.set_major_locator(MultipleLocator(0.05))
right.yaxis.set_major_formatter("{x:.0%}")
right.legend(loc="lower right")
figure.tight_layout(w_pad=3)
plt.show()

if len(wrong):
    shown = wrong[:8]
    figure, frames = plt.subplots(1, len(shown), figsize=(1.7 * len(shown), 2), squeeze=False)
    for frame, index in zip(frames[0], shown, strict=True):
        frame.imshow(test_x[index].reshape(8, 8), cmap="gray_r")
        frame.set_title(f"{test_y[index]} read as {guesses[index]}", fontsize=10, loc="center")
        frame.set_axis_off()
    plt.show()
