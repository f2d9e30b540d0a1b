"""Bad requests, kind by kind, for a server with the limits below: what is sent, and what has to be answered."""

import gzip
import json
from typing import Any, NamedTuple

from simcse_jax.serving.web.settings import Settings

LIMITS = Settings(
    name="made", max_texts=20, max_characters=500, max_body=20_000, max_top_k=50, max_hits=100, time_limit_s=2
)
LONG = "x" * 501
# What each route takes, and a body for it that is right.
RIGHT: dict[str, dict[str, Any]] = {
    "/encode": {"texts": "a"},
    "/similarity": {"queries": "a", "keys": "a"},
    "/search": {"query": "a"},
    "/v1/embeddings": {"input": "a"},
}

# No JSON, or no text in it: 400 from each of the routes.
UNREADABLE: list[tuple[str, bytes, str]] = [
    ("half", b"{", "no JSON"),
    ("a word", b"nonsense", "no JSON"),
    ("nothing but spaces", b"  \n ", "no JSON"),
    ("a string without end", b'{"texts": "a', "no JSON"),
    ("a list without end", b'{"texts": ["a"', "no JSON"),
    ("a comma too many", b'{"texts": ["a",]}', "no JSON"),
    ("a comma behind the last key", b'{"texts": "a",}', "no JSON"),
    ("single quotes", b"{'texts': 'a'}", "no JSON"),
    ("a key without quotes", b'{texts: "a"}', "no JSON"),
    ("a key that is a number", b'{1: "a"}', "no JSON"),
    ("a comment", b'{"texts": "a"} // all of it', "no JSON"),
    ("two values", b'{"texts": "a"}{"texts": "b"}', "no JSON"),
    ("something behind", b'{"texts": "a"}]', "no JSON"),
    ("no colon", b'{"texts" "a"}', "no JSON"),
    ("Python's words", b'{"texts": None}', "no JSON"),
    ("a hexadecimal number", b'{"a": 0x10}', "no JSON"),
    ("a leading zero", b'{"a": 01}', "no JSON"),
    ("a plus sign", b'{"a": +1}', "no JSON"),
    ("no digit before the point", b'{"a": .5}', "no JSON"),
    ("no digit behind the point", b'{"a": 5.}', "no JSON"),
    ("a number with 5,000 digits", b'{"a": ' + b"9" * 5000 + b"}", "no JSON"),
    ("NaN", b'{"texts": NaN}', "NaN is no number of JSON"),
    ("Infinity", b'{"texts": [Infinity]}', "Infinity is no number"),
    ("-Infinity", b'{"a": -Infinity}', "-Infinity is no number"),
    ("a line break in a string", b'{"texts": "a\nb"}', "no JSON"),
    ("a NUL in a string", b'{"texts": "a\0b"}', "no JSON"),
    ("a NUL behind", b'{"texts": "a"}\0', "no JSON"),
    ("an escape that is none", b'{"texts": "\\x41"}', "no JSON"),
    ("half an escape", b'{"texts": "\\u12"}', "no JSON"),
    ("a backslash at the end", b'{"texts": "a\\"}', "no JSON"),
    ("a byte order mark", b'\xef\xbb\xbf{"texts": "a"}', "no JSON"),
    ("bytes", b"\xff\xfe", "not UTF-8 (byte 0)"),
    ("Latin-1", b'{"texts": "Gr\xfc\xdfe"}', "not UTF-8 (byte 13)"),
    ("UTF-16", '{"texts": "ü"}'.encode("utf-16"), "not UTF-8"),
    ("half of a UTF-8 character", b'{"texts": "\xe2\x82"}', "not UTF-8"),
    ("a longer form of a character", b'{"texts": "\xc0\xaf"}', "not UTF-8"),
    ("a surrogate in UTF-8", b'{"texts": "\xed\xa0\x80"}', "not UTF-8"),
    ("compressed", gzip.compress(b'{"texts": "a"}', mtime=0), "not UTF-8"),
    ("a lone surrogate", b'{"texts": "\\ud800", "input": "\\udfff"}', "half of a character"),
    ("a lone surrogate as a key", b'{"\\ud800": 1}', "half of a character"),
    ("surrogates the wrong way round", b'{"texts": "\\udf1e\\ud83c"}', "half of a character"),
    ("lists in lists", b'{"texts": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deeply"),
    ("objects in objects", b'{"a":' * 3000 + b"1" + b"}" * 3000, "nested too deeply"),
    ("a key twice", b'{"texts": "a", "input": "a", "texts": "b"}', "the key texts is there twice"),
    ("a key twice, once escaped", b'{"input": "a", "\\u0069nput": "b"}', "the key input is there twice"),
    ("a key twice, further in", b'{"a": [{"b": 1, "b": 1}]}', "the key b is there twice"),
    ("a form", b"texts=a&queries=b", "no JSON"),
]

# JSON, but no object: 422, from OpenAI's route 400.
NO_OBJECT: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "Field required"),
    ("a list", b'["a"]', "valid dictionary"),
    ("an empty list", b"[]", "valid dictionary"),
    ("a string", b'"texts"', "valid dictionary"),
    ("a number", b"7", "valid dictionary"),
    ("true", b"true", "valid dictionary"),
    ("null", b"null", "valid dictionary"),
]

# Values for a field that takes a text or a list of them.
NO_TEXTS: list[tuple[str, Any, str]] = [
    ("null", None, "Input should be a valid list"),
    ("true", True, "Input should be a valid list"),
    ("a number", 7, "Input should be a valid list"),
    ("a fraction", 1.5, "Input should be a valid list"),
    ("an object", {"a": 1}, "Input should be a valid list"),
    ("an empty list", [], "at least 1 item"),
    ("null in the list", ["a", None], "[1]: Input should be a valid string"),
    ("false in the list", ["a", False], "[1]: Input should be a valid string"),
    ("a number in the list", ["a", 1], "[1]: Input should be a valid string"),
    ("a fraction in the list", ["a", 0.5], "[1]: Input should be a valid string"),
    ("a list in the list", ["a", ["b"]], "[1]: Input should be a valid string"),
    ("an object in the list", ["a", {"b": "c"}], "[1]: Input should be a valid string"),
    ("too many texts", ["a"] * 21, "texts in one request; the limit is 20"),
    ("too long a text", ["a", LONG], "has 501 characters; the limit is 500"),
]
TEXT_FIELDS = [("/encode", "texts"), ("/similarity", "queries"), ("/similarity", "keys"), ("/v1/embeddings", "input")]

# Values for the other fields: the route, the field, the value (bytes: as they are) and what is said.
NO_VALUES: list[tuple[str, str, Any, str]] = [
    ("/search", "query", None, "query: Input should be a valid string"),
    ("/search", "query", True, "query: Input should be a valid string"),
    ("/search", "query", 5, "query: Input should be a valid string"),
    ("/search", "query", ["a"], "query: Input should be a valid string"),
    ("/search", "query", {"a": "b"}, "query: Input should be a valid string"),
    ("/search", "query", LONG, "501 characters"),
    ("/search", "top_k", 0, "top_k: Input should be greater than or equal to 1"),
    ("/search", "top_k", -3, "top_k: Input should be greater"),
    ("/search", "top_k", -0.0, "top_k: Input should be greater"),
    ("/search", "top_k", 51, "top_k is 51; the limit is 50"),
    ("/search", "top_k", 2**31, "top_k: Input should be less than or equal to 2147483647"),
    ("/search", "top_k", 10**100, "top_k"),
    ("/search", "top_k", b"1e300", "top_k: Input should be less than or equal to 2147483647"),
    ("/search", "top_k", b"1e400", "top_k: Input should be a valid integer"),
    ("/search", "top_k", 1.5, "top_k: Input should be a valid integer"),
    ("/search", "top_k", "5", "top_k: Input should be a valid integer"),
    ("/search", "top_k", True, "top_k: Input should be a valid integer"),
    ("/search", "top_k", None, "top_k: Input should be a valid integer"),
    ("/search", "top_k", [5], "top_k: Input should be a valid integer"),
    ("/search", "top_k", {}, "top_k: Input should be a valid integer"),
    ("/search", "threshold", 1.01, "threshold: Input should be less than or equal to 1"),
    ("/search", "threshold", -2, "threshold: Input should be greater"),
    ("/search", "threshold", "0.5", "threshold: Input should be a valid number"),
    ("/search", "threshold", True, "threshold"),
    ("/search", "threshold", [0.5], "threshold: Input should be a valid number"),
    ("/search", "threshold", {}, "threshold: Input should be a valid number"),
    ("/search", "threshold", b"1e400", "threshold"),
    ("/search", "threshold", b"-1e400", "threshold"),
    ("/v1/embeddings", "input", [1, 2], "lists of token ids are not taken"),
    ("/v1/embeddings", "input", [[1], [2]], "lists of token ids are not taken"),
    ("/v1/embeddings", "encoding_format", "hex", "'float' or 'base64'"),
    ("/v1/embeddings", "encoding_format", "BASE64", "'float' or 'base64'"),
    ("/v1/embeddings", "encoding_format", "", "'float' or 'base64'"),
    ("/v1/embeddings", "encoding_format", None, "'float' or 'base64'"),
    ("/v1/embeddings", "encoding_format", 64, "'float' or 'base64'"),
    ("/v1/embeddings", "encoding_format", ["float"], "'float' or 'base64'"),
    ("/v1/embeddings", "encoding_format", {"type": "float"}, "'float' or 'base64'"),
    ("/v1/embeddings", "dimensions", 5, "dimensions is 5"),
    ("/v1/embeddings", "dimensions", 33, "dimensions is 33"),
    ("/v1/embeddings", "dimensions", 0, "dimensions: Input should be greater"),
    ("/v1/embeddings", "dimensions", -32, "dimensions: Input should be greater"),
    ("/v1/embeddings", "dimensions", 10**30, "dimensions"),
    ("/v1/embeddings", "dimensions", b"1e400", "dimensions: Input should be a valid integer"),
    ("/v1/embeddings", "dimensions", 31.5, "dimensions: Input should be a valid integer"),
    ("/v1/embeddings", "dimensions", "32", "dimensions: Input should be a valid integer"),
    ("/v1/embeddings", "dimensions", True, "dimensions: Input should be a valid integer"),
    ("/v1/embeddings", "dimensions", [32], "dimensions: Input should be a valid integer"),
    ("/v1/embeddings", "model", 3, "model: Input should be a valid string"),
    ("/v1/embeddings", "model", None, "model: Input should be a valid string"),
    ("/v1/embeddings", "model", ["m"], "model: Input should be a valid string"),
    ("/v1/embeddings", "model", {"name": "m"}, "model: Input should be a valid string"),
]

# Bodies that are wrong as a whole.
BODIES: list[tuple[str, str, Any, int, str]] = [
    ("no field", "/encode", {}, 422, "texts: Field required"),
    ("a misspelt field", "/encode", {"text": "a"}, 422, "texts: Field required; text: Extra inputs are not permitted"),
    ("a field in capitals", "/encode", {"TEXTS": "a"}, 422, "texts: Field required"),
    ("an endless name", "/encode", {"texts": "a", "x" * 400: 1}, 422, "Extra inputs are not permitted"),
    ("an empty name", "/encode", {"texts": "a", "": 1}, 422, "Extra inputs are not permitted"),
    ("ninety names", "/encode", {f"f{n}": n for n in range(90)}, 422, "and 88 more like these"),
    ("a thousand names", "/encode", {f"f{n}": n for n in range(1000)}, 400, "has 1,000 keys; the limit is 100"),
    ("nine wrong texts", "/encode", {"texts": [True] * 9}, 422, "valid string"),
    ("a little too large", "/encode", {"texts": ["a" * 20_000]}, 413, "more than 20,000 bytes"),
    ("far too large", "/encode", {"texts": ["a" * 200_000]}, 413, "more than 20,000 bytes"),
    ("no keys", "/similarity", {"queries": "a"}, 422, "keys: Field required"),
    ("no queries", "/similarity", {"keys": "a"}, 422, "queries: Field required"),
    ("too many in both", "/similarity", {"queries": ["a"] * 11, "keys": ["a"] * 10}, 422, "21 texts in one request"),
    ("a third list", "/similarity", {"queries": "a", "keys": "a", "more": "a"}, 422, "more: Extra inputs"),
    ("no query", "/search", {"top_k": 5}, 422, "give either `query`, one text, or `queries`"),
    ("both queries", "/search", {"query": "a", "queries": ["a"]}, 422, "give either `query`"),
    ("another's field", "/search", {"query": "a", "k": 3}, 422, "k: Extra inputs are not permitted"),
    ("too many hits", "/search", {"queries": ["a"] * 5, "top_k": 21}, 422, "are up to 105 hits; the limit is 100"),
    ("one text as queries", "/search", {"queries": "a"}, 422, "queries: Input should be a valid list"),
    ("queries empty", "/search", {"queries": []}, 422, "queries: List should have at least 1"),
    ("null for queries", "/search", {"queries": None}, 422, "queries: Input should be a valid list"),
    ("null in queries", "/search", {"queries": ["a", None]}, 422, "queries[1]: Input should be a valid string"),
    ("no input", "/v1/embeddings", {"model": "m"}, 400, "input: Field required"),
    ("two wrong fields", "/v1/embeddings", {"input": 1, "model": 1}, 400, "input: Input should be a valid list; model"),
]

# Methods and paths; what HTTP clients would tidy up is sent as it stands.
LINES: list[tuple[str, int, str]] = [
    ("GET /encode", 405, "another method"),
    ("PUT /encode", 405, "another method"),
    ("DELETE /search", 405, "another method"),
    ("PATCH /similarity", 405, "another method"),
    ("OPTIONS /encode", 405, "another method"),
    ("TRACE /health", 405, "another method"),
    ("HEAD /encode", 405, ""),  # an answer to HEAD has no body
    ("get /health", 405, "another method"),
    ("BREW /health", 405, "another method"),
    ("PROPFIND /", 405, "another method"),
    ("GET /v1/embeddings", 405, "another method"),
    ("PUT /health", 405, "another method"),
    ("DELETE /", 405, "another method"),
    ("PUT /docs", 405, "another method"),
    ("DELETE /openapi.json", 405, "another method"),
    ("GET /nowhere", 404, "no such page; /docs"),
    ("GET /health/", 404, "no such page"),
    ("GET //health", 404, "no such page"),
    ("GET /HEALTH", 404, "no such page"),
    ("GET /health;x=1", 404, "no such page"),
    ("GET /health%20", 404, "no such page"),
    ("GET /health%00", 404, "no such page"),
    ("GET /%zz", 404, "no such page"),
    ("GET /%", 404, "no such page"),
    ("GET /%ff%fe", 404, "no such page"),
    ("GET /%ed%a0%80", 404, "no such page"),
    ("GET /../etc/passwd", 404, "no such page"),
    ("GET /%2e%2e/%2e%2e/etc/passwd", 404, "no such page"),
    ("GET /..\\page.html", 404, "no such page"),
    ("GET /page.html", 404, "no such page"),
    ("GET /v1", 404, "no such page"),
    ("GET /v1/", 404, "no such page"),
    ("GET /v1/models", 404, "no such page"),
    ("GET health", 404, "no such page"),
    ("GET http://localhost/health", 404, "no such page"),
    ("OPTIONS *", 404, "no such page"),
    ("CONNECT localhost:80", 404, "no such page"),
    (f"GET /{'x' * 5000}", 404, "no such page"),
]

# Headers of a request that is right otherwise.
HEADERS: list[tuple[str, list[bytes], int, str]] = [
    ("no kind", [], 415, "Content-Type: application/json"),
    ("an empty kind", [b"Content-Type:"], 415, "Content-Type"),
    ("plain text", [b"Content-Type: text/plain"], 415, "Content-Type"),
    ("a form", [b"Content-Type: application/x-www-form-urlencoded"], 415, "Content-Type"),
    ("a form with files", [b"Content-Type: multipart/form-data; boundary=x"], 415, "Content-Type"),
    ("another JSON", [b"Content-Type: application/problem+json"], 415, "Content-Type"),
    ("nearly JSON", [b"Content-Type: application/jsonp"], 415, "Content-Type"),
    ("JSON second", [b"Content-Type: text/plain, application/json"], 415, "Content-Type"),
    ("JSON as a parameter", [b"Content-Type: text/plain; application/json"], 415, "Content-Type"),
    ("a kind of odd bytes", [b"Content-Type: \xff\xfe"], 415, "Content-Type"),
    ("two kinds", [b"Content-Type: application/json", b"Content-Type: text/plain"], 415, "Content-Type"),
    ("a foreign name", [b"Host: evil.example"], 421, "not called evil.example"),
    ("a foreign name and port", [b"Host: evil.example:80"], 421, "not called evil.example"),
    ("ours as its first part", [b"Host: localhost.evil.example"], 421, "not called localhost.evil.example"),
    ("ours as its user", [b"Host: localhost@evil.example"], 421, "not called evil.example"),
    ("a final point", [b"Host: localhost."], 421, "not called"),
    ("another address", [b"Host: 10.0.0.1"], 421, "not called 10.0.0.1"),
    ("half a bracket", [b"Host: ["], 421, "not called ["),
    ("no address in brackets", [b"Host: [::x]"], 421, "not called"),
    ("a name of odd bytes", [b"Host: \xff\xfe"], 421, "not called"),
    ("a name without end", [b"Host: " + b"a" * 5000], 421, "not called"),
]

_HOST = b"Host: localhost\r\n"
_CLOSE = b"Connection: close\r\n"
_JSON = b"Content-Type: application/json\r\n"
_POST = b"POST /encode HTTP/1.1\r\n" + _HOST + _JSON
_FORM = b"POST /encode HTTP/1.1\r\n" + _HOST
_CHUNKED = _POST + b"Transfer-Encoding: chunked\r\n\r\n"
_GET = b"GET /health HTTP/1.1\r\n" + _HOST
_BODY = b'{"texts": "a"}'
_NO_HTTP = "Invalid HTTP request"


class Raw(NamedTuple):
    """Bytes on a connection, and what comes back before the server closes it; hang_up: nothing is sent any more."""

    name: str
    sent: bytes
    statuses: list[int]
    words: str = ""
    hang_up: bool = False


RAW = [
    # The first line.
    Raw("a TLS hello", bytes.fromhex("1603010200010001fc0303") + bytes(100), [400], _NO_HTTP),
    Raw("HTTP/2's first words", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [404, 400], _NO_HTTP),
    Raw("HTTP/0.9", b"GET /health\r\n\r\n", [400], _NO_HTTP),
    Raw("no number", b"GET /health HTTP/x\r\n" + _HOST + b"\r\n", [400], _NO_HTTP),
    Raw("another protocol", b"GET /health FTP/1.1\r\n" + _HOST + b"\r\n", [400], _NO_HTTP),
    Raw("nothing but a method", b"GET\r\n\r\n", [400], _NO_HTTP),
    Raw("two spaces", b"GET  /health HTTP/1.1\r\n" + _HOST + b"\r\n", [400], _NO_HTTP),
    Raw("a space in the path", b"GET /he alth HTTP/1.1\r\n" + _HOST + b"\r\n", [400], _NO_HTTP),
    Raw("a byte beyond ASCII in the path", b"GET /h\xe9 HTTP/1.1\r\n" + _HOST + b"\r\n", [400], _NO_HTTP),
    Raw("a NUL in the path", b"GET /h\0 HTTP/1.1\r\n" + _HOST + b"\r\n", [400], _NO_HTTP),
    Raw("a NUL in the method", b"G\0T /health HTTP/1.1\r\n" + _HOST + b"\r\n", [400], _NO_HTTP),
    Raw("an empty line", b"\r\n\r\n", [400], _NO_HTTP),
    Raw("a path without end", b"GET /" + b"x" * 100_000, [400], _NO_HTTP),
    Raw("an answer", b"HTTP/1.1 200 OK\r\n\r\n", [400], _NO_HTTP),
    Raw("noise", bytes(range(256)) * 4 + b"\r\n\r\n", [400], _NO_HTTP),
    # Headers.
    Raw("no name", b"GET /health HTTP/1.1\r\n\r\n", [400], _NO_HTTP),
    Raw("two names", _GET + _HOST + b"\r\n", [400], _NO_HTTP),
    Raw("no colon", _GET + b"nonsense\r\n\r\n", [400], _NO_HTTP),
    Raw("nothing before the colon", _GET + b": x\r\n\r\n", [400], _NO_HTTP),
    Raw("a space before the colon", _GET + b"X-A : x\r\n\r\n", [400], _NO_HTTP),
    Raw("a NUL in a header", _GET + b"X-A: a\0b\r\n\r\n", [400], _NO_HTTP),
    Raw("a lone return in a header", _GET + b"X-A: a\rb\r\n\r\n", [400], _NO_HTTP),
    Raw("a header's name beyond ASCII", _GET + b"X-\xe9: a\r\n\r\n", [400], _NO_HTTP),
    Raw("a first header that goes on", b"GET /health HTTP/1.1\r\n x\r\n\r\n", [400], _NO_HTTP),
    Raw("a header without end", _GET + b"X-A: " + b"x" * 100_000, [400], _NO_HTTP),
    Raw("headers without end", _GET + b"X-A: x\r\n" * 10_000, [400], _NO_HTTP),
    # Lengths.
    Raw("a negative length", _POST + b"Content-Length: -1\r\n\r\n", [400], _NO_HTTP),
    Raw("a length in words", _POST + b"Content-Length: ten\r\n\r\n", [400], _NO_HTTP),
    Raw("a length in hexadecimal", _POST + b"Content-Length: 0xe\r\n\r\n" + _BODY, [400], _NO_HTTP),
    Raw("a length with a sign", _POST + b"Content-Length: +14\r\n\r\n" + _BODY, [400], _NO_HTTP),
    Raw("an empty length", _POST + b"Content-Length:\r\n\r\n", [400], _NO_HTTP),
    Raw("a length of 30 digits", _POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", [400], _NO_HTTP),
    Raw("two lengths", _POST + b"Content-Length: 14\r\nContent-Length: 15\r\n\r\n" + _BODY, [400], _NO_HTTP),
    Raw("a terabyte, announced", _POST + b"Content-Length: 1000000000000\r\n\r\n", [413], "more than 20,000 bytes"),
    Raw("too short a length", _POST + b"Content-Length: 13\r\n\r\n" + _BODY, [400], "no JSON"),
    Raw("no length", _POST + _CLOSE + b"\r\n", [422], "Field required"),
    Raw("a body that nobody announced", _POST + b"\r\n" + _BODY, [422], "Field required"),
    Raw("half a body, and silence", _POST + b"Content-Length: 14\r\n\r\n{", [408], "not whole after 2 s"),
    Raw("half a body, and gone", _POST + b"Content-Length: 14\r\n\r\n{", [], hang_up=True),
    Raw("half a head, and silence", b"POST /encode HTTP/1.1\r\nHost: loc", []),
    Raw("half a head, and gone", b"POST /encode HTTP/1.1\r\nHost: loc", [], hang_up=True),
    Raw("silence", b"", []),
    Raw("gone at once", b"", [], hang_up=True),
    # Chunks.
    Raw("a chunk's length in words", _CHUNKED + b"ten\r\n", [400], _NO_HTTP),
    Raw("a chunk's negative length", _CHUNKED + b"-1\r\n", [400], _NO_HTTP),
    Raw("a chunk's length of 30 digits", _CHUNKED + b"f" * 30 + b"\r\n", [400], _NO_HTTP),
    Raw("a chunk's length without end", _CHUNKED + b"0" * 100_000, [400], _NO_HTTP),
    Raw("a chunk longer than its length", _CHUNKED + b"3\r\n" + _BODY + b"\r\n0\r\n\r\n", [400], _NO_HTTP),
    Raw("chunks without an end", _CHUNKED + b"e\r\n" + _BODY + b"\r\n", [408], "not whole after 2 s"),
    Raw("half a chunk, and gone", _CHUNKED + b"e\r\n{", [], hang_up=True),
    Raw("chunks that hold no JSON", _CHUNKED + b"1\r\n{\r\n0\r\n\r\n", [400], "no JSON"),
    Raw("too many chunks", _CHUNKED + b"400\r\n%s\r\n" % (b" " * 1024) * 30 + b"0\r\n\r\n", [413], "more than 20,000"),
    Raw("compressed transfer", _POST + b"Transfer-Encoding: gzip\r\n\r\n", [400], _NO_HTTP),
    Raw("chunks in chunks", _POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n", [400], _NO_HTTP),
    Raw("HTTP/1.0 without a length", b"POST /encode HTTP/1.0\r\n" + _JSON + b"\r\n", [422], "Field required"),
    # Several requests at once.
    Raw("noise behind a request", _GET + b"\r\n" + b"nonsense\r\n\r\n", [200, 400], _NO_HTTP),
    Raw("half a request behind one", _GET + b"\r\n" + b"GET /hea", [200]),
    Raw("a wrong one between two", _GET + b"\r\nGET /no HTTP/1.1\r\n" + _HOST + b"\r\n" + _GET + _CLOSE + b"\r\n",
        [200, 404, 200], "no such page"),
    Raw("noise behind a refusal", _FORM + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", [400], _NO_HTTP),
    Raw("no end to what is refused", _FORM + b"Content-Length: 9\r\n\r\n{", [415], "application/json"),
    Raw("a WebSocket", b"GET /encode HTTP/1.1\r\n" + _HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        [405], "another method"),
    Raw("a wrong expectation", _POST + _CLOSE + b"Expect: more\r\nContent-Length: 1\r\n\r\n{", [400], "no JSON"),
]  # fmt: skip


class Posted(NamedTuple):
    """A body, posted as JSON, and its answer."""

    name: str
    path: str
    body: bytes
    status: int
    words: str


def posted() -> list[Posted]:
    """All the bodies of the tables, each for each of the routes and fields that it is meant for."""
    found = [Posted(name, path, body, 400, words) for path in RIGHT for name, body, words in UNREADABLE]
    found += [Posted(name, path, body, _wrong(path), words) for path in RIGHT for name, body, words in NO_OBJECT]
    for path, field in TEXT_FIELDS:
        for name, value, words in NO_TEXTS:
            body = json.dumps({**RIGHT[path], field: value}).encode()
            found.append(Posted(f"{field}: {name}", path, body, _wrong(path), words))
    for path, field, value, words in NO_VALUES:
        right = {**RIGHT[path], field: 0}
        given = value if isinstance(value, bytes) else json.dumps(value).encode()
        body = b"{%s}" % b", ".join(
            b'"%s": %s' % (key.encode(), given if key == field else json.dumps(kept).encode())
            for key, kept in right.items()
        )
        found.append(Posted(f"{field}: {given.decode():.30}", path, body, _wrong(path), words))
    found += [
        Posted(name, path, json.dumps(body).encode(), status, words) for name, path, body, status, words in BODIES
    ]
    return found


def _wrong(path: str) -> int:
    return 400 if path.startswith("/v1/") else 422


def sent() -> list[Raw]:
    """All that is sent byte by byte: lines, headers, and what is hardly HTTP."""
    found = [
        Raw(f"{line:.40}", line.encode() + b" HTTP/1.1\r\n" + _HOST + _CLOSE + b"\r\n", [status], words)
        for line, status, words in LINES
    ]
    for name, headers, status, words in HEADERS:
        others = [] if any(header.startswith(b"Host") for header in headers) else [b"Host: localhost"]
        others += [b"Connection: close", b"Content-Length: %d" % len(_BODY)]
        head = b"\r\n".join([b"POST /encode HTTP/1.1", *headers, *others])
        found.append(Raw(name, head + b"\r\n\r\n" + _BODY, [status], words))
    return found + RAW


def kinds() -> int:
    """How many kinds there are: each row of each table once, for however many routes it is sent to."""
    tables = (UNREADABLE, NO_OBJECT, NO_TEXTS, NO_VALUES, BODIES, LINES, HEADERS, RAW)
    return sum(map(len, tables))
