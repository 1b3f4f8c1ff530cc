"""The small HTTP server that part 3 asks when the sandbox cannot reach the internet.

It answers in the shape of the public service: `GET /v1/<start>..<end>` gives a JSON document with
one record a day. The numbers are weekly share prices of six companies, from the package plotly.
`GET /reviews` gives a web page of made-up reviews, for the agent.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from plotly.express import data as datasets

prices = datasets.stocks().set_index("date")


REVIEWS = (
    "The battery lasts two days, I love it.",
    "Broke after a week. A waste of money.",
    "Does what it should, nothing more.",
    "Wonderful sound, and so easy to set up!",
    "The manual is a disgrace and support never answered.",
    "My best purchase this year.",
    "It is blue.",
    "Delivery was late, but the thing itself is great.",
    "Terrible. It smells of burnt plastic.",
    "Good value; the case feels a little cheap.",
    "I returned it and regret nothing.",
    "My children adore it, and so do I.",
)


class Rates(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/reviews":
            items = "".join(f"<li class='review'>{text}</li>" for text in REVIEWS)
            self.answer("text/html", f"<html><h1>Reviews</h1><ul>{items}</ul></html>")
        else:
            self.answer("application/json", self.rates())

    def rates(self) -> str:
        start, _, end = self.path.partition("?")[0].rpartition("/")[2].partition("..")
        chosen = prices.loc[start:end]
        body = {
            "base": "first week of 2018 = 1",
            "start_date": start,
            "end_date": end,
            "rates": {day: row.round(4).to_dict() for day, row in chosen.iterrows()},
        }
        return json.dumps(body)

    def answer(self, kind: str, body: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the output of the sandbox free of request lines."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Rates).serve_forever()
