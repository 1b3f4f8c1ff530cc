"""Prompts for the tasks that people try first, worded for a model that has `run_python`."""

from typing import Annotated

from mcp.server import MCPServer
from pydantic import Field

_SESSION = "Use run_python in the session {session!r}, in a few calls that build on each other."

Session = Annotated[str, Field(description="Session to work in")]


def add_prompts(mcp: MCPServer[None]) -> None:
    mcp.prompt(title="Analyse sales data")(analyze_sales)
    mcp.prompt(title="Train a classifier")(train_classifier)
    mcp.prompt(title="Sentiment of a web page")(web_sentiment)
    mcp.prompt(title="Interactive dashboard")(build_dashboard)


def analyze_sales(
    data: Annotated[str, Field(description="Path of a CSV file in the sandbox, or empty")] = "",
    session: Session = "sales",
) -> str:
    """Sales data: the trend as a plot, and a summary in words."""
    source = (
        f"Load the sales data from {data} with pandas and check it for missing or odd values."
        if data
        else "No data is given: make a year of daily sales of four products in three regions, with "
        "a trend, seasons and noise from a fixed seed, and say in the summary that it is made up."
    )
    return f"""{_SESSION.format(session=session)}

1. {source}
2. Total the sales by month, product and region, and show the tables.
3. Plot the monthly trend with a rolling mean as one figure with labelled axes, and show it.
4. Find the best and the worst month, the fastest growing product, and anything unusual.
5. Save the monthly totals as /home/user/monthly_sales.csv.

End with a summary of five sentences at most, with the numbers that it rests on."""


def train_classifier(
    data: Annotated[
        str, Field(description="Data set of scikit-learn, or path of a CSV file in the sandbox")
    ] = "breast_cancer",
    session: Session = "classifier",
) -> str:
    """Machine learning: a classifier, judged on data it has not seen."""
    return f"""{_SESSION.format(session=session)}

1. Load the data ({data}): a data set that scikit-learn ships (sklearn.datasets.load_*) or a CSV
   file. Show its size, its features and how the classes are balanced.
2. Split it into training and test data, stratified, with a fixed random state.
3. Train a logistic regression with scaled features and a random forest, and compare them by
   cross-validation on the training data only.
4. Judge the better one on the test data: accuracy, a classification report, and the confusion
   matrix as a plot.
5. Plot the ten most important features.
6. Save the model as /home/user/model.joblib.

End with how good it is, where it errs, and what would improve it. Give the test score, not the
training score."""


def web_sentiment(
    url: Annotated[str, Field(description="Page with the texts to judge")] = (
        "https://news.ycombinator.com"
    ),
    session: Session = "web",
) -> str:
    """Web data: texts of a page, and the sentiment in them."""
    return f"""{_SESSION.format(session=session)}

1. Fetch {url} with requests (time limit 20 s) and take its headlines or texts with BeautifulSoup.
   If the sandbox has no network, say so, and ask for the texts instead.
2. Show how many texts there are and the first ten.
3. Score each with VADER: pass packages=["vaderSentiment"] to run_python.
4. Plot the distribution of the scores as a histogram, and show the five most positive and the five
   most negative texts as tables.
5. Save all texts with their scores as /home/user/sentiment.csv.

End with the overall tone in two sentences, and one on how far such scores can be trusted."""


def build_dashboard(
    data: Annotated[str, Field(description="Path of a CSV file in the sandbox, or empty")] = "",
    session: Session = "dashboard",
) -> str:
    """A dashboard: interactive charts in one HTML file."""
    source = f"the CSV file {data}" if data else "plotly.data.gapminder(), which plotly ships"
    return f"""{_SESSION.format(session=session)}

1. Load {source} and choose three or four views of it that answer questions a reader would have.
2. Build them with plotly: hover texts, titles that state the finding, one colour for one thing.
3. Put them into one page with a heading and a line of explanation for each, and write it to
   /home/user/dashboard.html with plotly.js inside, so that it opens without a network.
4. Do not display the figures themselves: their HTML is large. Check that the file exists and print
   its size.

End with what each chart shows, and how to get the file: download_file with path
/home/user/dashboard.html."""
