"""The small HTTP server that part 3 asks when the sandbox cannot reach the internet.

It answers in the shape of the public service: `GET /v1/<start>..<end>` gives a JSON document with
one record a day. The numbers are weekly share prices of six companies, from the package plotly.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from plotly.express import data as datasets

prices = datasets.stocks().set_index("date")


class Rates(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        start, _, end = self.path.partition("?")[0].rpartition("/")[2].partition("..")
        chosen = prices.loc[start:end]
        body = {
            "base": "first week of 2018 = 1",
            "start_date": start,
            "end_date": end,
            "rates": {day: row.round(4).to_dict() for day, row in chosen.iterrows()},
        }
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the output of the sandbox free of request lines."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Rates).serve_forever()
