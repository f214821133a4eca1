"""An MCP server of the official SDK with a few tools, for tests/it/tools.rs. Prints its port once it listens; wants the bearer token
of TOKEN, if there is one. Prints each call of a tool with its session's authorization."""

import asyncio
import json
import os
import socket

import uvicorn
from mcp.server import MCPServer
from mcp.types import ImageContent, TextContent

server = MCPServer("facts", instructions="Facts for tests.")


@server.tool(description="How deep a sea is.")
def depth(sea: str) -> str:
    print(f"called depth {sea}", flush=True)
    return f"The {sea} is {len(sea) * 100} m deep."


@server.tool(description="Adds numbers, and gives the sum as JSON too.")
def add(first: int, second: int) -> dict[str, int]:
    return {"sum": first + second}


@server.tool(description="Repeats the credential that it was called with.", structured_output=False)
def echo_token() -> str:
    return f"I was called with {os.environ.get('TOKEN')}."


@server.tool(description="Always fails.")
def broken() -> str:
    raise ValueError("it is broken")


@server.tool(description="An image between two lines.", structured_output=False)
def picture() -> list[TextContent | ImageContent]:
    image = ImageContent(type="image", data="aGk=", mime_type="image/png")
    return [TextContent(type="text", text="before"), image, TextContent(type="text", text="after")]


@server.tool(description="As many letters as asked for.")
def letters(count: int) -> str:
    return "x" * count


def guarded(app, token):
    """Wants a token, and tells 401 without."""

    async def guard(scope, receive, send):
        if scope["type"] == "http" and token:
            headers = dict(scope["headers"])
            if headers.get(b"authorization") != f"Bearer {token}".encode():
                body = json.dumps({"error": "invalid_token"}).encode()
                await send({"type": "http.response.start", "status": 401, "headers": [(b"www-authenticate", b"Bearer")]})
                await send({"type": "http.response.body", "body": body})
                return
        await app(scope, receive, send)

    return guard


async def main():
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    app = guarded(server.streamable_http_app(json_response=bool(os.environ.get("JSON"))), os.environ.get("TOKEN"))
    config = uvicorn.Config(app, log_level="warning", lifespan="on")
    print(f"port {listener.getsockname()[1]}", flush=True)
    await uvicorn.Server(config).serve(sockets=[listener])


asyncio.run(main())
