"""What the MCP conformance suite expects a server to offer: tools, prompts and resources that
exist for it alone. Names, arguments and answers are the suite's; none of this ships.

The suite calls each of them and checks the wire, so they are registered on the same server that
`create_server` builds: its middleware, capabilities and transports are what is tested.
"""

import base64
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Annotated, Any

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Message, UserMessage
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp.types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    CallToolResult,
    ContentBlock,
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    EmbeddedResource,
    EmptyResult,
    ImageContent,
    InputRequiredResult,
    ListRootsRequest,
    RequestParams,
    SamplingMessage,
    SetLevelRequestParams,
    SubscribeRequestParams,
    TextContent,
    TextResourceContents,
    UnsubscribeRequestParams,
)
from pydantic import BaseModel, Field

# Clients of the older revisions still use logging, sampling and server-sent elicitation.
warnings.filterwarnings("ignore", message=".*deprecated.*")

PAUSE = 0.05  # seconds between two notifications


def _png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    pixel = chunk(b"IDAT", zlib.compress(b"\x00\xff\x00\x00"))
    return b"\x89PNG\r\n\x1a\n" + header + pixel + chunk(b"IEND", b"")


def _wav() -> bytes:
    samples = bytes([128]) * 8
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8)
    data = struct.pack("<4sI", b"data", len(samples)) + samples
    return struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(data), b"WAVE") + form + data


PNG = _png()
IMAGE = ImageContent(type="image", data=base64.b64encode(PNG).decode(), mime_type="image/png")
AUDIO = AudioContent(type="audio", data=base64.b64encode(_wav()).decode(), mime_type="audio/wav")


def register(server: MCPServer[Any]) -> None:
    """Adds every fixture to `server`."""
    for group in (_contents, _notices, _back_channel, _input_required, _probes):
        group(server)
    _resources(server)
    _prompts(server)
    _legacy_methods(server)


Tool = Callable[..., Any]


def _add(server: MCPServer[Any], *tools: Tool) -> None:
    for tool in tools:
        server.add_tool(tool, structured_output=False)


def _text(text: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=text)])


def _embedded(uri: str, text: str, mime_type: str = "text/plain") -> EmbeddedResource:
    resource = TextResourceContents(uri=uri, mime_type=mime_type, text=text)
    return EmbeddedResource(type="resource", resource=resource)


# Contents: every kind of content block.


def _contents(server: MCPServer[Any]) -> None:
    def test_simple_text() -> str:
        """Returns one text block."""
        return "This is a simple text response for testing."

    def test_image_content() -> ImageContent:
        """Returns one image block."""
        return IMAGE

    def test_audio_content() -> AudioContent:
        """Returns one audio block."""
        return AUDIO

    def test_embedded_resource() -> EmbeddedResource:
        """Returns one embedded resource."""
        return _embedded("test://embedded-resource", "This is an embedded resource content.")

    def test_multiple_content_types() -> list[ContentBlock]:
        """Returns a text, an image and an embedded resource."""
        mixed = _embedded(
            "test://mixed-content-resource", '{"test":"data","value":123}', "application/json"
        )
        return [TextContent(type="text", text="Multiple content types test:"), IMAGE, mixed]

    def test_error_handling() -> str:
        """Always fails."""
        raise ToolError("This tool intentionally returns an error for testing")

    _add(
        server,
        test_simple_text,
        test_image_content,
        test_audio_content,
        test_embedded_resource,
        test_multiple_content_types,
        test_error_handling,
    )


# Notices: progress and log messages while a tool runs.


def _notices(server: MCPServer[Any]) -> None:
    async def test_tool_with_logging(ctx: Context) -> str:
        """Sends three log messages."""
        for message in ("started", "processing data", "completed"):
            prefix = "Tool" if message == "processing data" else "Tool execution"
            await ctx.info(f"{prefix} {message}")
            await anyio.sleep(PAUSE)
        return "Logged three messages."

    async def test_tool_with_progress(ctx: Context) -> str:
        """Reports its progress three times."""
        for done in (0, 50, 100):
            await ctx.report_progress(done, 100)
            await anyio.sleep(PAUSE)
        return "Reported progress three times."

    async def test_logging_tool(ctx: Context) -> str:
        """Logs, which a client must have asked for."""
        await ctx.info("a log message")
        return "Done."

    _add(server, test_tool_with_logging, test_tool_with_progress, test_logging_tool)


# Back-channel: requests that the server sends to a client of the older revisions.

NAME_AND_MAIL = {
    "type": "object",
    "properties": {
        "username": {"type": "string", "description": "User's response"},
        "email": {"type": "string", "description": "User's email address"},
    },
    "required": ["username", "email"],
}
DEFAULTS = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {
            "type": "string",
            "enum": ["active", "inactive", "pending"],
            "default": "active",
        },
        "verified": {"type": "boolean", "default": True},
    },
}
TITLES = ("First", "Second", "Third")
PLAIN = ["option1", "option2", "option3"]
ENUMS = {
    "type": "object",
    "properties": {
        "untitledSingle": {"type": "string", "enum": PLAIN},
        "titledSingle": {
            "type": "string",
            "oneOf": [
                {"const": f"value{n}", "title": f"{t} Option"} for n, t in enumerate(TITLES, 1)
            ],
        },
        "legacyEnum": {
            "type": "string",
            "enum": ["opt1", "opt2", "opt3"],
            "enumNames": ["Option One", "Option Two", "Option Three"],
        },
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": PLAIN}},
        "titledMulti": {
            "type": "array",
            "items": {
                "anyOf": [
                    {"const": f"value{n}", "title": f"{t} Choice"} for n, t in enumerate(TITLES, 1)
                ]
            },
        },
    },
}


def _back_channel(server: MCPServer[Any]) -> None:
    async def test_sampling(
        prompt: Annotated[str, Field(description="The prompt to send to the LLM")], ctx: Context
    ) -> str:
        """Asks the client's LLM."""
        answer = await ctx.session.create_message(
            [SamplingMessage(role="user", content=TextContent(type="text", text=prompt))],
            max_tokens=100,
            related_request_id=ctx.request_id,
        )
        return f"LLM response: {getattr(answer.content, 'text', '')}"

    async def ask(ctx: Context, message: str, schema: dict[str, Any]) -> str:
        answer = await ctx.session.elicit_form(message, schema, ctx.request_id)
        return f"action={answer.action}, content={answer.content}"

    async def test_elicitation(
        message: Annotated[str, Field(description="The message to show the user")], ctx: Context
    ) -> str:
        """Asks the user for a name and an address."""
        return f"User response: {await ask(ctx, message, NAME_AND_MAIL)}"

    async def test_elicitation_sep1034_defaults(ctx: Context) -> str:
        """Asks with a default for every primitive type."""
        return f"Elicitation completed: {await ask(ctx, 'Check the defaults', DEFAULTS)}"

    async def test_elicitation_sep1330_enums(ctx: Context) -> str:
        """Asks with every kind of enumeration."""
        return f"Elicitation completed: {await ask(ctx, 'Choose', ENUMS)}"

    _add(
        server,
        test_sampling,
        test_elicitation,
        test_elicitation_sep1034_defaults,
        test_elicitation_sep1330_enums,
    )


# Input required: how a tool of the 2026-07-28 revision asks its client for something.


def _ask(message: str, **kinds: str) -> ElicitRequest:
    schema = {
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in kinds.items()},
        "required": list(kinds),
    }
    params = ElicitRequestFormParams(message=message, requested_schema=schema)
    return ElicitRequest(params=params)


def _sample(text: str, max_tokens: int) -> CreateMessageRequest:
    message = SamplingMessage(role="user", content=TextContent(type="text", text=text))
    return CreateMessageRequest(
        params=CreateMessageRequestParams(messages=[message], max_tokens=max_tokens)
    )


def _answers(ctx: Context, *keys: str) -> list[Any] | None:
    """The client's answers, or None when one of them is missing or not an accepted answer."""
    responses = ctx.input_responses or {}
    found = [responses.get(key) for key in keys]
    refused = any(getattr(item, "action", "accept") != "accept" for item in found)
    return None if refused or any(item is None for item in found) else found


def _input_required(server: MCPServer[Any]) -> None:
    def test_input_required_result_elicitation(
        ctx: Context,
    ) -> CallToolResult | InputRequiredResult:
        """Asks for a name, then greets."""
        answers = _answers(ctx, "user_name")
        name = (getattr(answers[0], "content", None) or {}).get("name") if answers else None
        if name is None:
            return InputRequiredResult(
                input_requests={"user_name": _ask("What is your name?", name="string")}
            )
        return _text(f"Hello, {name}!")

    def test_input_required_result_sampling(ctx: Context) -> CallToolResult | InputRequiredResult:
        """Asks the client's LLM."""
        answers = _answers(ctx, "capital_question")
        if answers is None:
            question = _sample("What is the capital of France?", 100)
            return InputRequiredResult(input_requests={"capital_question": question})
        return _text(getattr(getattr(answers[0], "content", None), "text", ""))

    def test_input_required_result_list_roots(ctx: Context) -> CallToolResult | InputRequiredResult:
        """Asks for the client's roots."""
        answers = _answers(ctx, "client_roots")
        if answers is None:
            return InputRequiredResult(input_requests={"client_roots": ListRootsRequest()})
        return _text(", ".join(str(root.uri) for root in answers[0].roots))

    def test_input_required_result_request_state(
        ctx: Context,
    ) -> CallToolResult | InputRequiredResult:
        """Hands out a state and checks that it comes back."""
        if _answers(ctx, "confirm") is None or ctx.request_state != "confirming":
            confirm = _ask("Please confirm", ok="boolean")
            return InputRequiredResult(
                input_requests={"confirm": confirm}, request_state="confirming"
            )
        return _text("state-ok")

    def test_input_required_result_tampered_state(
        ctx: Context,
    ) -> CallToolResult | InputRequiredResult:
        """Hands out a state; the server refuses a changed one before this code sees it."""
        return test_input_required_result_request_state(ctx)

    def test_input_required_result_multiple_inputs(
        ctx: Context,
    ) -> CallToolResult | InputRequiredResult:
        """Asks for three things at once."""
        if _answers(ctx, "user_name", "greeting", "client_roots") is None:
            requests = {
                "user_name": _ask("What is your name?", name="string"),
                "greeting": _sample("Generate a greeting", 50),
                "client_roots": ListRootsRequest(),
            }
            return InputRequiredResult(input_requests=requests, request_state="asked")
        return _text("All three arrived.")

    def test_input_required_result_multi_round(
        ctx: Context,
    ) -> CallToolResult | InputRequiredResult:
        """Asks twice, one after the other."""
        if ctx.request_state == "step2" and _answers(ctx, "step2"):
            return _text("Both answers arrived.")
        if ctx.request_state == "step1" and _answers(ctx, "step1"):
            color = _ask("Step 2: What is your favorite color?", color="string")
            return InputRequiredResult(input_requests={"step2": color}, request_state="step2")
        name = _ask("Step 1: What is your name?", name="string")
        return InputRequiredResult(input_requests={"step1": name}, request_state="step1")

    def test_input_required_result_capabilities(
        ctx: Context,
    ) -> CallToolResult | InputRequiredResult:
        """Asks only for what the client can do."""
        can = ctx.client_capabilities
        requests: dict[str, Any] = {}
        if can and can.elicitation:
            requests["user_name"] = _ask("What is your name?", name="string")
        if can and can.sampling:
            requests["greeting"] = _sample("Generate a greeting", 50)
        return InputRequiredResult(input_requests=requests) if requests else _text("No input.")

    _add(
        server,
        test_input_required_result_elicitation,
        test_input_required_result_sampling,
        test_input_required_result_list_roots,
        test_input_required_result_request_state,
        test_input_required_result_tampered_state,
        test_input_required_result_multiple_inputs,
        test_input_required_result_multi_round,
        test_input_required_result_capabilities,
    )


# Probes of single rules of the 2026-07-28 revision.


def _probes(server: MCPServer[Any]) -> None:
    def test_missing_capability(ctx: Context) -> str:
        """Needs a client that can sample."""
        if not (ctx.client_capabilities and ctx.client_capabilities.sampling):
            raise MCPError(
                code=MISSING_REQUIRED_CLIENT_CAPABILITY,
                message="This tool needs the sampling capability",
                data={"requiredCapabilities": {"sampling": {}}},
            )
        return "The client can sample."

    def test_streaming_elicitation(ctx: Context) -> CallToolResult | InputRequiredResult:
        """Asks for a name without a request of its own on the stream."""
        if _answers(ctx, "user_name") is None:
            return InputRequiredResult(
                input_requests={"user_name": _ask("What is your name?", name="string")}
            )
        return _text("Thank you.")

    async def test_trigger_tool_change(ctx: Context) -> str:
        """Says that the list of tools changed."""
        await ctx.notify_tools_changed()
        return "Told."

    async def test_trigger_prompt_change(ctx: Context) -> str:
        """Says that the list of prompts changed."""
        await ctx.notify_prompts_changed()
        return "Told."

    _add(
        server,
        test_missing_capability,
        test_streaming_elicitation,
        test_trigger_tool_change,
        test_trigger_prompt_change,
    )


class _Template(BaseModel):
    id: str
    templateTest: bool = True
    data: str


def _resources(server: MCPServer[Any]) -> None:
    @server.resource("test://static-text", description="A text", mime_type="text/plain")
    def static_text() -> str:
        return "This is the content of the static text resource."

    @server.resource("test://static-binary", description="An image", mime_type="image/png")
    def static_binary() -> bytes:
        return PNG

    @server.resource("test://watched-resource", description="A text", mime_type="text/plain")
    def watched() -> str:
        return "This resource can be watched."

    @server.resource(
        "test://template/{id}/data", description="One record", mime_type="application/json"
    )
    def template(id: str) -> str:
        return _Template(id=id, data=f"Data for ID: {id}").model_dump_json()


def _prompts(server: MCPServer[Any]) -> None:
    @server.prompt(description="One message")
    def test_simple_prompt() -> str:
        return "This is a simple prompt for testing."

    @server.prompt(description="Takes two arguments")
    def test_prompt_with_arguments(
        arg1: Annotated[str, Field(description="First test argument")],
        arg2: Annotated[str, Field(description="Second test argument")],
    ) -> str:
        return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"

    @server.prompt(description="Embeds a resource")
    def test_prompt_with_embedded_resource(
        resourceUri: Annotated[str, Field(description="URI of the resource to embed")],
    ) -> list[Message]:
        embedded = _embedded(resourceUri, "Embedded resource content for testing.")
        return [UserMessage(embedded), UserMessage("Please process the embedded resource above.")]

    @server.prompt(description="Contains an image")
    def test_prompt_with_image() -> list[Message]:
        return [UserMessage(IMAGE), UserMessage("Please analyze the image above.")]

    @server.prompt(description="Asks its client for a context first")
    def test_input_required_result_prompt(ctx: Context) -> str | InputRequiredResult:
        if _answers(ctx, "user_context") is None:
            ask = _ask("What context should the prompt use?", context="string")
            return InputRequiredResult(input_requests={"user_context": ask})
        return "A prompt with the given context."


def _legacy_methods(server: MCPServer[Any]) -> None:
    """Methods of the older revisions that no tool of ours has a use for."""

    async def accept(_ctx: Any, _params: RequestParams) -> EmptyResult:
        return EmptyResult()

    methods: dict[str, type[RequestParams]] = {
        "logging/setLevel": SetLevelRequestParams,
        "resources/subscribe": SubscribeRequestParams,
        "resources/unsubscribe": UnsubscribeRequestParams,
    }
    for method, params in methods.items():
        # The SDK has no public way to serve a method beyond its own.
        server._lowlevel_server.add_request_handler(method, params, accept)
