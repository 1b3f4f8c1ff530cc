"""How values are shown: one format per MIME type, E2B's own ones included."""

import base64
from collections.abc import AsyncIterator

import pytest
from e2b_code_interpreter import E2B, AsyncSandbox
from e2b_code_interpreter.charts import (
    BarChart,
    BoxAndWhiskerChart,
    Chart,
    LineChart,
    PieChart,
    ScatterChart,
    SuperChart,
)

PNG = b"\x89PNG\r\n"


@pytest.mark.parametrize(
    ("code", "formats"),
    [
        pytest.param("1", ["text"], id="text"),
        pytest.param("HTML('<b>x</b>')", ["text", "html"], id="html"),
        pytest.param("Markdown('*x*')", ["text", "markdown"], id="markdown"),
        pytest.param("SVG('<svg/>')", ["text", "svg"], id="svg"),
        pytest.param("Latex('$x$')", ["text", "latex"], id="latex"),
        pytest.param("JSON({'a': 1})", ["text", "json"], id="json"),
        pytest.param("Javascript('1')", ["text", "javascript"], id="javascript"),
        pytest.param("display({'application/pdf': 'QQ=='}, raw=True)", ["pdf"], id="pdf"),
        pytest.param("display({'image/jpeg': 'QQ=='}, raw=True)", ["jpeg"], id="jpeg"),
        pytest.param("display({'x/y': 'z'}, raw=True)", ["x/y"], id="unknown"),
        pytest.param("{'a': [1, None]}", ["text", "json"], id="dict"),
        pytest.param("[1, {2}]", ["text"], id="list that JSON cannot say"),
    ],
)
async def test_formats(sandbox: AsyncSandbox, code: str, formats: list[str]) -> None:
    execution = await sandbox.run_code(f"from IPython.display import *\n{code}")
    assert [list(result.formats()) for result in execution.results] == [formats]


@pytest.mark.parametrize("show", ["figure", "figure.show()"])
async def test_a_plotly_figure_is_shown(sandbox: AsyncSandbox, show: str) -> None:
    code = f"import plotly.graph_objects as go\nfigure = go.Figure(go.Bar(y=[1, 2]))\n{show}"
    execution = await sandbox.run_code(code)
    assert execution.error is None
    [shown] = execution.results
    assert shown.extra["application/vnd.plotly.v1+json"]["data"][0]["type"] == "bar"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        pytest.param("'a'", "a", id="string"),
        pytest.param('"it\'s"', "it's", id="double quoted"),
        pytest.param("'a\\nb'", "a\\nb", id="escapes stay"),
        pytest.param("['a']", "['a']", id="list"),
    ],
)
async def test_texts(sandbox: AsyncSandbox, code: str, text: str) -> None:
    assert (await sandbox.run_code(code)).text == text


async def test_a_long_list_is_not_shortened(sandbox: AsyncSandbox) -> None:
    text = (await sandbox.run_code("list(range(5000))")).text
    assert text is not None
    assert text.endswith("4999]")


async def test_a_data_frame_is_also_a_dict_of_columns(sandbox: AsyncSandbox) -> None:
    execution = await sandbox.run_code(
        "import pandas as pd\n"
        "pd.DataFrame({'n': [1, None], 't': [pd.Timestamp('2020-01-02'), pd.NaT], 3: ['a', 'b']})"
    )
    (result,) = execution.results
    assert list(result.formats()) == ["text", "html", "data"]
    assert result.data == {
        "n": [1.0, None],
        "t": ["2020-01-02T00:00:00", None],
        "3": ["a", "b"],
    }


async def test_a_long_data_frame_is_shown_without_its_data(sandbox: AsyncSandbox) -> None:
    execution = await sandbox.run_code("import pandas as pd\npd.DataFrame({'n': range(100_001)})")
    assert list(execution.results[0].formats()) == ["text", "html"]


@pytest.fixture(scope="module")
async def plotter(e2b: E2B) -> AsyncIterator[AsyncSandbox]:
    async with await e2b.AsyncSandbox.create(timeout=300) as sandbox:
        yield sandbox


def shape(chart: Chart | None) -> object:
    """What a chart says, without its axes."""
    match chart:
        case SuperChart():
            return [shape(part) for part in chart.elements]
        case LineChart() | ScatterChart():
            return {
                drawn.label: [tuple(point) for point in drawn.points] for drawn in chart.elements
            }
        case BarChart():
            return [(bar.group, bar.label, bar.value) for bar in chart.elements]
        case PieChart():
            return [(part.label, part.angle) for part in chart.elements]
        case BoxAndWhiskerChart():
            return [
                (box.label, box.min, box.first_quartile, box.median, box.third_quartile, box.max)
                for box in chart.elements
            ]
    return None if chart is None else chart.elements


LINES = "ax.plot([1, 2], [3, 4], label='a'); ax.plot([1, 2], [5, 6], label='b')"
DATES = "import pandas as pd; ax.plot(pd.date_range('2024-01-01', periods=2), [1, 2], label='d')"
GROUPS = "ax.bar([0, 1], [1, 2], .4, label='A'); ax.bar([.4, 1.4], [3, 4], .4, label='B')"
GRID = (
    "plt.close(); fig, axes = plt.subplots(1, 3); axes[0].plot([0, 1], label='up')\n"
    "axes[1].bar(['p', 'q'], [1, 2]); axes[2].pie([1, 3], labels=['x', 'y'])"
)


@pytest.mark.parametrize(
    ("code", "kind", "expected"),
    [
        pytest.param(LINES, LineChart, {"a": [(1, 3), (2, 4)], "b": [(1, 5), (2, 6)]}, id="lines"),
        pytest.param(
            DATES,
            LineChart,
            {"d": [("2024-01-01T00:00:00", 1), ("2024-01-02T00:00:00", 2)]},
            id="dates",
        ),
        pytest.param(
            "ax.scatter([1, 2], [3, 4], label='s')",
            ScatterChart,
            {"s": [(1, 3), (2, 4)]},
            id="scatter",
        ),
        pytest.param(
            "ax.bar(['p', 'q'], [1, 2])",
            BarChart,
            [("Group 0", "p", 1), ("Group 0", "q", 2)],
            id="bars",
        ),
        pytest.param(
            f"{GROUPS}; ax.set_xticks([.2, 1.2], ['p', 'q'])",
            BarChart,
            [("A", "p", 1), ("A", "q", 2), ("B", "p", 3), ("B", "q", 4)],
            id="groups of bars",
        ),
        pytest.param(
            "ax.pie([1, 3], labels=['x', 'y'])", PieChart, [("x", 90), ("y", 270)], id="pie"
        ),
        pytest.param(
            "ax.boxplot([[1, 2, 3, 4, 5], [2, 6, 10]], tick_labels=['a', 'b'], patch_artist=True)",
            BoxAndWhiskerChart,
            [("a", 1, 2, 3, 4, 5), ("b", 2, 4, 6, 8, 10)],
            id="boxes",
        ),
        pytest.param(
            GRID,
            SuperChart,
            [
                {"up": [(0, 0), (1, 1)]},
                [("Group 0", "p", 1), ("Group 0", "q", 2)],
                [("x", 90), ("y", 270)],
            ],
            id="grid",
        ),
        pytest.param("ax.imshow([[1, 2], [3, 4]])", Chart, [], id="picture"),
        # E2B knows boxes by their filling.
        pytest.param("ax.boxplot([[1, 2, 3]])", LineChart, None, id="unfilled boxes"),
    ],
)
async def test_a_plot_comes_with_its_data(
    plotter: AsyncSandbox, code: str, kind: type[Chart], expected: object
) -> None:
    execution = await plotter.run_code(
        f"import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\n{code}\n"
        "fig.suptitle('T') if len(fig.axes) > 1 else ax.set_title('T')\nplt.show()"
    )
    assert execution.error is None
    [result] = execution.results
    assert type(result.chart) is kind
    assert result.chart.title == "T"
    if expected is not None:
        assert shape(result.chart) == expected
    assert execution.logs.stderr == []


async def test_every_figure_of_a_cell_is_a_picture_and_a_chart(sandbox: AsyncSandbox) -> None:
    execution = await sandbox.run_code(
        "import matplotlib.pyplot as plt\n"
        "plt.plot([1, 2], [3, 4], label='up'); plt.title('Line'); plt.savefig('line.png')\n"
        "plt.show()\n"
        "plt.bar(['a', 'b'], [1, 2]); plt.title('Bar');"
    )
    line, bar = execution.results
    assert isinstance(line.chart, LineChart)
    assert [
        (drawn.label, [list(point) for point in drawn.points]) for drawn in line.chart.elements
    ] == [("up", [[1.0, 3.0], [2.0, 4.0]])]
    assert isinstance(bar.chart, BarChart)
    assert (line.chart.title, bar.chart.title) == ("Line", "Bar")
    assert all(base64.b64decode(str(result.png)).startswith(PNG) for result in (line, bar))
    assert [result.is_main_result for result in (line, bar)] == [False, False]
    assert "".join(execution.logs.stderr) == ""


@pytest.mark.parametrize("code", ["image", "image.save('x.png')", "image.show()"])
async def test_an_image_is_displayed(sandbox: AsyncSandbox, code: str) -> None:
    execution = await sandbox.run_code(
        f"from PIL import Image\nimage = Image.new('RGB', (2, 2))\n{code}"
    )
    (result,) = execution.results
    assert base64.b64decode(str(result.png)).startswith(PNG)


async def test_a_kernel_that_is_not_forked_starts_without_the_big_libraries(
    sandbox: AsyncSandbox,
) -> None:
    await sandbox.commands.run(
        "cd .venv/lib/python3*/site-packages && touch own.py"
    )  # no template now
    context = await sandbox.create_code_context()
    code = "import sys; [m for m in ('pandas', 'numpy', 'matplotlib', 'PIL') if m in sys.modules]"
    assert (await sandbox.run_code(code, context=context)).text == "[]"
