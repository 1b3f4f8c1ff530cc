"""How values are shown: one format per MIME type, E2B's own ones included."""

import base64

import pytest
from e2b_code_interpreter import AsyncSandbox
from e2b_code_interpreter.charts import BarChart, BoxAndWhiskerChart, LineChart

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


async def test_a_box_plot_is_told_from_lines(sandbox: AsyncSandbox) -> None:
    code = (
        "import matplotlib.pyplot as plt; plt.boxplot([[1, 2, 3], [2, 3, 9]], patch_artist=True);"
    )
    execution = await sandbox.run_code(code)
    assert isinstance(execution.results[0].chart, BoxAndWhiskerChart)


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
