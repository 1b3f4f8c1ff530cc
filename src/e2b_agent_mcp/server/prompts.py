"""Prompts for the tasks that people try first, worded for a model that has `run_python`."""

from typing import Annotated

from mcp.server import MCPServer
from pydantic import Field

from e2b_agent_mcp import examples

_SESSION = "Use run_python in the session {session!r}, in a few calls that build on each other."

Session = Annotated[str, Field(description="Session to work in")]
Data = Annotated[str, Field(description="Path of a CSV file in the sandbox, or empty")]


def add_prompts(mcp: MCPServer[None]) -> None:
    mcp.prompt(title="Analyse sales data")(analyze_sales)
    mcp.prompt(title="Train a classifier")(train_classifier)
    mcp.prompt(title="Sentiment of a web page")(web_sentiment)
    mcp.prompt(title="Interactive dashboard")(build_dashboard)


def analyze_sales(data: Data = "", session: Session = "sales") -> str:
    """Sales data: the trend as a plot, and a summary in words."""
    return _prompt(examples.sales(data), session)


def train_classifier(
    data: Annotated[
        str, Field(description="Data set of scikit-learn, or path of a CSV file in the sandbox")
    ] = "breast_cancer",
    session: Session = "classifier",
) -> str:
    """Machine learning: a classifier, judged on data it has not seen."""
    return _prompt(examples.classifier(data), session)


def web_sentiment(
    url: Annotated[str, Field(description="Page with the texts to judge")] = (
        "https://news.ycombinator.com"
    ),
    session: Session = "web",
) -> str:
    """Web data: texts of a page, and the sentiment in them."""
    how = ' Pass packages=["vaderSentiment"] to the call that needs it.'
    return _prompt(examples.sentiment(url), session, how)


def build_dashboard(data: Data = "", session: Session = "dashboard") -> str:
    """A dashboard: interactive charts in one HTML file."""
    how = " download_file gives the user the page."
    return _prompt(examples.dashboard(data), session, how)


def _prompt(task: str, session: str, how: str = "") -> str:
    return f"{_SESSION.format(session=session)}{how}\n\n{task}"
