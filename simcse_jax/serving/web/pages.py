"""The pages: one to search and compare, one about the routes. Each is one file that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jinja2
from fastapi import Response

FOLDER = Path(__file__).parent
_BLOCK = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def search_page() -> Response:
    """The page for people."""
    return _page((FOLDER / "page.html").read_text(encoding="utf-8"))


def docs_page(description: dict[str, Any], key_needed: bool) -> Response:
    """The page about the routes, from their OpenAPI description."""
    loader = jinja2.FileSystemLoader(FOLDER)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return _page(environment.get_template("docs.html").render(routes=_routes(description), key_needed=key_needed))


def _page(html: str) -> Response:
    """The page with a policy under which its own script and style run and no other."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _BLOCK.findall(html):
        digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
        hashes[kind].append(f"'sha256-{digest}'")
    policy = "; ".join(
        [
            "default-src 'none'",
            *(f"{kind}-src {' '.join(found)}" for kind, found in hashes.items() if found),
            "img-src data:",  # its icon
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
    return Response(html, media_type="text/html; charset=utf-8", headers=headers)


def _routes(description: dict[str, Any]) -> list[dict[str, Any]]:
    """What docs.html shows of each route."""
    schemas = description["components"]["schemas"]
    routes = []
    for path, methods in description["paths"].items():
        for method, route in methods.items():
            content = route.get("requestBody", {}).get("content", {}).get("application/json", {})
            schema = schemas.get(content.get("schema", {}).get("$ref", "").rpartition("/")[2], {})
            routes.append(
                {
                    "method": method.upper(),
                    "path": path,
                    "summary": route["summary"],
                    "words": route.get("description", ""),
                    "example": _example(schema) if schema else "",
                    "fields": [
                        {
                            "name": name,
                            "kind": _kind(field),
                            "needed": name in schema.get("required", []),
                            "words": field.get("description", ""),
                        }
                        for name, field in schema.get("properties", {}).items()
                    ],
                    "answers": [(status, answer["description"]) for status, answer in route["responses"].items()],
                }
            )
    return routes


def _example(schema: dict[str, Any]) -> str:
    """A request as JSON, in the order of its fields; FastAPI sorts them by name."""
    example = schema["examples"][0]
    return json.dumps({name: example[name] for name in schema["properties"] if name in example}, ensure_ascii=False)


def _kind(schema: dict[str, Any]) -> str:
    """A field's type in words."""
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}s"
    return schema.get("type", "any")
