"""The tasks that people try first, in words: prompts of the server, and tasks of the demo's agent.

They say what is wanted, not with which tool: a client does them with `run_python`, our agent by
itself. Pure.
"""

SALES = "Sales: the trend, and what is behind it"
CLASSIFIER = "A classifier, judged on data it has not seen"
SENTIMENT = "The sentiment of a web page"
DASHBOARD = "A dashboard in one HTML file"


def sales(data: str = "") -> str:
    source = (
        f"Load the sales data from {data} with pandas and check it for missing or odd values."
        if data
        else "No data is given: make a year of daily sales of four products in three regions, with "
        "a trend, seasons and noise from a fixed seed, and say in the summary that it is made up."
    )
    return f"""\
1. {source}
2. Total the sales by month, product and region, and show the tables.
3. Plot the monthly trend with a rolling mean as one figure with labelled axes, and show it.
4. Find the best and the worst month, the fastest growing product, and anything unusual.
5. Save the monthly totals as /home/user/monthly_sales.csv.

End with a summary of five sentences at most, with the numbers that it rests on."""


def classifier(data: str) -> str:
    return f"""\
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


def sentiment(url: str) -> str:
    return f"""\
1. Fetch {url} with requests (time limit 20 s) and take its headlines or texts with BeautifulSoup.
   If the sandbox has no network, say so, and ask for the texts instead.
2. Show how many texts there are and the first ten.
3. Score each with VADER, from the package vaderSentiment.
4. Plot the distribution of the scores as a histogram, and show the five most positive and the five
   most negative texts as tables.
5. Save all texts with their scores as /home/user/sentiment.csv.

End with the overall tone in two sentences, and one on how far such scores can be trusted."""


def dashboard(data: str = "") -> str:
    source = f"the CSV file {data}" if data else "plotly.data.gapminder(), which plotly ships"
    return f"""\
1. Load {source} and choose three or four views of it that answer questions a reader would have.
2. Build them with plotly: hover texts, titles that state the finding, one colour for one thing.
3. Put them into one page with a heading and a line of explanation for each, and write it to
   /home/user/dashboard.html with plotly.js inside, so that it opens without a network.
4. Do not display the figures themselves: their HTML is large. Check that the file exists and print
   its size.

End with what each chart shows, and name the file."""
