"""Values, names, headers and URLs that a hostile or broken client may send. Tables only."""

from collections.abc import Callable
from random import Random

from tests.harness.images import encoded, png

LONG = 8_192

# --- Values, as JSON text: not all of it is JSON ---------------------------------------------

IMAGES = (encoded(png(640, 480)), encoded(png(50_000, 50_000)), encoded(b"GIF89a"), "aGVsbG8=")
VALUES = (
    *("null", "true", "false", "0", "1", "-1", "-0", "0.0", "1.5", "-2.5e-9", "1e308", "-1e308"),
    *("1e309", "1e999", "-1e999", "NaN", "Infinity", "-Infinity", "01", "+1", ".5", "1.", "0x10"),
    *("2147483648", "-2147483649", "9223372036854775808", "1" * 40, "-" + "9" * 400, "9" * 4_299),
    *('""', '" "', '"hello"', '"\\u0000"', '"a\\u0000b"', '"\\ud800"', '"\\udfff\\ud800"'),
    *('"\\u202e"', '"\\ufeff"', '"\\r\\nX: y"', '"é"', '"日本"', '"😀"', '"\\ud83d\\ude00"', '"ſ"'),
    *('"\x00"', '"\ud800"', '"\n"', '"\\x41"', '"\\u12"', "'x'", "tru", "None", "undefined", "@"),
    *("[]", "{}", "[null]", "[[]]", "[{}]", '[""]', '["a", 1, null, true, {}, []]', "[1, 2, 3]"),
    *('{"": ""}', '{"a": {"b": {"c": []}}}', '{"type": null}', '{"type": {}}', '{"type": []}'),
    *('{"type": "text"}', '{"type": "text", "text": null}', '{"type": "image_url"}', '"json"'),
    *('{"type": "image_url", "image_url": "data:image/png;base64,"}', '{"role": "user"}'),
    *('{"type": "function"}', '{"function": {"arguments": "{"}}', '{"arguments": "[1]"}'),
    *('{"$ref": "#"}', '{"type": "object", "properties": {"a": {"$ref": "#"}}}'),
    *('"user"', '"tool"', '"assistant"', '"system"', '"low"', '"5m"', '"auto"', '"required"'),
    *('"llama3"', '"LLAMA3:Latest"', '"mistral"', '"nomic-embed-text"', '"../api/delete"'),
    *('"llama3:cloud"', '"http://evil.example/a/b/c"', '"registry.ollama.ai/library/llama3"'),
    *('"2026-02-30"', '"%00"', '"<script>"', '"\' OR 1=1 --"', '"${jndi:x}"', '"{{7*7}}"'),
    *(f'"{image}"' for image in IMAGES),
    *(f'["{image}"]' for image in IMAGES),
    *(f'"data:image/png;base64,{image}"' for image in IMAGES),
)
LARGE_VALUES = (
    *("9" * 4_301, "1" + "0" * 20_000, "0." + "1" * 20_000, f"[{'1,' * 5_000}1]"),
    *(
        f'"{"x" * 100_000}"',
        f'"{"é" * 50_000}"',
        '"' + "\\u0000" * 20_000 + '"',
        f'"{"(" * 50_000}"',
    ),
    *(f"[{', '.join(['{}'] * 3_000)}]", f"[{', '.join([chr(34) * 2] * 600)}]"),
    "{" + ", ".join(f'"k{n}": {n}' for n in range(10_000)) + "}",
    "{" + f'"{"k" * 100_000}": 1' + "}",
    f'"{"a" * 1_048_577}"',
)

# --- Names of fields --------------------------------------------------------------------------

Spelling = Callable[[str], str]
SPELLINGS: tuple[Spelling, ...] = (
    str.upper,
    str.title,
    str.swapcase,
    lambda name: name.replace("s", "ſ"),
    lambda name: name.replace("k", "\N{KELVIN SIGN}"),
    lambda name: name.replace("i", "ı"),
    lambda name: f" {name}",
    lambda name: f"{name}\0",
    lambda name: f"{name}\u200b",
    lambda name: name.replace("_", "-"),
    lambda name: "".join(chr(ord(letter) + 0xFEE0) for letter in name),
)
KEYS = (
    *("", "model", "name", "MODEL", "options", "stream", "messages", "prompt", "input", "tools"),
    *("images", "format", "think", "suffix", "system", "template", "raw", "context", "keep_alive"),
    *("num_predict", "num_ctx", "seed", "stop", "temperature", "top_logprobs", "dimensions"),
    *("role", "content", "type", "function", "tool_calls", "tool_call_id", "arguments", "index"),
    *("tool_choice", "response_format", "stream_options", "encoding_format", "max_tokens", "n"),
    *("thinking", "output_config", "stop_sequences", "instructions", "include", "text", "store"),
    *("reasoning", "metadata", "user", "api_base", "base_url", "remote_host", "url", "insecure"),
    *("__proto__", "__class__", "constructor", "\0", "\ud800", "\u202e", "é", "x" * 300, "$ref"),
    *("account", "key_id", "cost", "price", "request_id", "meter", "auth", "self", "_debug"),
)
# Valid fields that are not allowed: first Ollama's own, then those of other gateways.
EXTRAS: tuple[tuple[str, object], ...] = (
    *(("keep_alive", -1), ("shift", True), ("insecure", True), ("verbose", True), ("num_ctx", 9)),
    *(("username", "x"), ("password", "y"), ("_debug_render_only", True), ("main_gpu", 1)),
    *(("api_base", "http://evil.example"), ("remote_host", "http://evil.example"), ("account", 1)),
    *(("cache_control", {"type": "ephemeral"}), ("request_id", "x"), ("cost", 0), ("key_id", 1)),
)
OPTIONS: tuple[tuple[str, object], ...] = (
    *(("num_ctx", 131_072), ("num_gpu", 0), ("use_mmap", False), ("num_keep", 5), ("numa", True)),
    *(("num_batch", 1), ("num_thread", 1), ("mirostat", 2), ("draft_num_predict", 5), ("low", 1)),
    *(("num_predict", 5), ("temperature", 0.5), ("seed", 7), ("stop", ["END"]), ("top_k", 9)),
)
NAMES = (
    *("llama3", "LLAMA3:LATEST", "llama3:", ":latest", "llama3:latest:latest", "mistral", "none"),
    *("../admin", "../../api/delete", "..", ".", "/", "//", "a/b/c/d/e", "http://a/b/c/d", "\\"),
    *("registry.ollama.ai/library/llama3", "evil.example/a/b:c", "llama3:cloud", "x-cloud"),
    *("llama3@sha256:" + "0" * 64, "llama3?x=1", "llama3#x", "llama3%2e", "%", "%00", "\0", " "),
    *("ſ", "é", "\ud800", "\u202e", "a" * 81, "a" * 801, "x/" * 4_000, "pull", "a\r\nX: y", "-"),
)

# --- Bytes --------------------------------------------------------------------------------------

BODIES = (
    *(b"", b" ", b"\0", b"null", b"5", b"[]", b"{}", b'"x"', b"true", b"NaN", b"{", b"}", b"[{"),
    *(b"{}{}", b"{},", b'{"model": "llama3"}', b"\xff\xfe", b"\xef\xbb\xbf{}", b"\x1f\x8b\x08\0"),
    *(b"model=llama3&prompt=hi", b"--x\r\nContent-Disposition: form-data\r\n\r\n", b"[" * 100_000),
    *(b'{"a":' * 50_000, b"\xed\xa0\x80", b"5\r\nhello\r\n0\r\n\r\n", b"<?xml version='1.0'?>"),
)
BYTES = (
    *(b"\0", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xef\xbb\xbf", b"\r\n"),
    *(b"\\", b'"', b"{", b"}", b"[", b"]", b",", b":", b"//", b"/* */", b"\x1b[31m", b"\\u", b"9"),
)
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "utf-7")

# --- Headers ------------------------------------------------------------------------------------

_NUMBERS = (b"0", b"-1", b"+5", b"1", b"1e3", b"0x10", b" 7 ", b"5, 5", b"1_000", b"", b"abc")
_LENGTHS = (*_NUMBERS, b"9" * 19, b"9" * 5_000, b"99999999", b"\xb2", b"\xd9\xa5", b"5;q=1", b"NaN")
_TEXTS = (b"", b"\xff\xfe", b"\0", b"x" * LONG, b"'\"", b"%00", b",,,,", b"\xe2\x80\xae", b"\t")
_HOSTS = (b"evil.example", b"localhost:99999", b"localhost:x", b"[::1", b"[::1]", b"localhost@e")
_TYPES = (b"text/plain", b"application/json; charset=", b"application/json; charset=utf-7", b"/")
_CHARSETS = (b"rot13", b"bz2", b"utf-16", b"idna", b"undefined", b"\xff", b"x" * 200, b"'", b"zlib")
_MULTI: tuple[bytes, ...] = (
    b"multipart/form-data",
    b"multipart/form-data; boundary=",
    b"multipart/mixed; boundary=x",
)
_MULTI += (b"multipart/form-data; boundary=x", b"multipart/form-data; boundary=" + b"x" * 300)
# Parameters as RFC 2231 has them, for languages and continued lines.
_ENCODED = (b";x*=rot13''a", b";x*=none''a", b";x*=a;x*0=b", b";x*0*=''a", b";x*" + b"9" * 5_000)
_DATES = (b"Thu, 01 Jan 1970 00:00:00 GMT", b"Sun, 99 Xyz 99999 99:99:99 GMT", b"0", b"9" * 30)

HEADERS: dict[bytes, tuple[bytes, ...]] = {
    b"Host": (*_TEXTS, *_HOSTS, b"localhost.", b"LOCALHOST", b"127.0.0.1:1", b"a/b?c#d"),
    b"Content-Type": (
        *_TEXTS,
        *_TYPES,
        *_MULTI,
        b"application/x-www-form-urlencoded",
        *(kind + parameter for kind in (b"text/x", *_MULTI) for parameter in _ENCODED),
        *(b"application/json; charset=" + name for name in _CHARSETS),
        *(b"application/x-www-form-urlencoded; charset=" + name for name in _CHARSETS),
    ),
    b"Content-Length": _LENGTHS,
    b"Transfer-Encoding": (b"chunked", b"Chunked", b"gzip, chunked", b"identity", b"", b"x" * LONG),
    b"Content-Encoding": (b"gzip", b"identity", b"br, gzip", b"IDENTITY", *_TEXTS),
    b"Accept": (b"," * LONG, b"*/*;q=" + b"9" * 400, b"*/*;q=NaN", b"text/html", b";=;=", *_TEXTS),
    b"Accept-Encoding": (b"gzip;q=0", b"*;q=-1", b"identity;q=0, *;q=0", b"br" * 900, *_TEXTS),
    b"Accept-Language": (b"xx;q=2", b"a-" * 4_000, b"en;q=1e999", *_TEXTS),
    b"Accept-Charset": (b"utf-7", *_TEXTS),
    b"X-Request-Id": (b"0" * 36, b"not-an-id", *_TEXTS),
    b"X-HTTP-Method-Override": (b"DELETE", b"GET", b"FOO", *_TEXTS),
    b"X-Forwarded-For": (b"6.6.6.6, 7.7.7.7", b"unknown", *_TEXTS),
    b"X-Forwarded-Host": (b"evil.example", *_TEXTS),
    b"X-Forwarded-Proto": (b"https", *_TEXTS),
    b"Forwarded": (b"for=6.6.6.6;host=evil.example", *_TEXTS),
    b"Cookie": (
        b"csrftoken=" + b"a" * 32,
        b"sessionid=x; csrftoken=y",
        b"sessionid=" + b"a" * 32,
        b";=;=",
        b"a=\x80",
        *_TEXTS,
    ),
    b"Referer": (b"http://evil.example/", *_TEXTS),
    b"Origin": (b"null", b"http://evil.example", b"http://[", *_TEXTS),
    b"User-Agent": (b"${jndi:ldap://x}", *_TEXTS),
    b"Range": (b"bytes=0-1", b"bytes=9-1", b"bytes=-", b"lines=1-", *_TEXTS),
    b"If-Range": _DATES,
    b"If-Modified-Since": _DATES,
    b"If-Unmodified-Since": _DATES,
    b"If-None-Match": (b"*", b'"x"', b'W/"', *_TEXTS),
    b"If-Match": (b"*", b'"x", ' * 500, *_TEXTS),
    b"Expect": (b"200-ok", *_TEXTS),
    b"Upgrade": (b"websocket", b"h2c"),
    b"Connection": (b"close", b"upgrade", b"Authorization", *_TEXTS),
    b"Trailer": (b"Authorization", *_TEXTS),
    b"anthropic-version": (b"2023-06-01", b"1900-01-01", *_TEXTS),
    b"anthropic-beta": (b"a,b,c", *_TEXTS),
    b"OpenAI-Organization": _TEXTS,
    b"Idempotency-Key": _TEXTS,
    b"X-CSRFToken": (b"x" * 64, *_TEXTS),
    b"X-Stainless-Retry-Count": _NUMBERS,
}

# SECRET stands for a good key. Elsewhere it may be accepted or not, but breaks nothing.
_BEARERS = (
    *(
        b"Bearer",
        b"Bearer ",
        b"Bearer SECRET extra",
        b"bearer SECRET",
        b"BEARER  SECRET",
        b"SECRET",
    ),
    *(b"Basic SECRET", b"Token SECRET", b"Bearer\tSECRET", b"Bearer,SECRET", b'Bearer "SECRET"'),
    *(
        b"Bearer SECRET\0",
        b"Bearer \xff\xfe",
        b"Bearer \xd9\xa0\xd9\xa1",
        b"Bearer olg_" + b"0" * 64,
    ),
    *(b"Bearer " + b"x" * LONG, b"x" * LONG, b" " * LONG, b"Bearer 'or 1=1--", b"Bearer SECRE"),
    *(b"Bearer SECRET, Bearer SECRET", b"Bearer olg_" + b"\xb2" * 64, b"\xa0Bearer SECRET", b"\0"),
    *(
        b"Basic YTpi",
        b"Basic !!",
        b"Digest username=x",
        b"Bearer \xf0\x9f\x98\x80",
        b"Bearer SECRET\n",
    ),
)
CREDENTIALS = (
    *((b"Authorization", value) for value in _BEARERS),
    *((b"x-api-key", value.removeprefix(b"Bearer ")) for value in _BEARERS),
    (b"api-key", b"SECRET"),
    (b"Proxy-Authorization", b"Bearer SECRET"),
)

# --- Methods, paths, queries --------------------------------------------------------------------

METHODS = (
    *("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND"),
    *(
        "FOO",
        "get",
        "Post",
        "dispatch",
        "__class__",
        "as_view",
        "http_method_not_allowed",
        "X" * 20,
    ),
)

ELSEWHERE = (
    *(b"/debug/pprof/", b"/api/create", b"/api/push", b"/api/copy", b"/api/blobs/sha256:0", b"*"),
    *(b"/api/me", b"/v1/", b"/v1/files", b"/v1/messages/count_tokens", b"/v1/models/", b"/models/"),
    *(
        b"/static/",
        b"/static/../manage.py",
        b"/static/%2e%2e/%2e%2e/config/settings.py",
        b"/static",
    ),
    *(b"/static/admin/css/base.css", b"/static/%00", b"/static/\xff", b"/favicon.ico", b"/.env"),
    *(
        b"/admin",
        b"/admin/jsi18n/",
        b"/admin/%ff/",
        b"/admin/logout/",
        b"/admin/r/x/y/",
        b"/admin/x",
    ),
    *(b"/admin/accounts/account/1/change/", b"/admin/password_change/", b"//evil.example/admin/"),
)

PathChange = Callable[[bytes, Random], bytes]
PATHS: tuple[PathChange, ...] = (
    lambda path, dice: b"/" + path,
    lambda path, dice: path + b"/",
    lambda path, dice: path + b".",
    lambda path, dice: path + b";x=1",
    lambda path, dice: path.upper(),
    lambda path, dice: path.replace(b"/", b"//"),
    lambda path, dice: b"/%2e%2e" + path,
    lambda path, dice: b"/." + path + b"/..",
    lambda path, dice: (
        path + dice.choice((b"%00", b"%ff", b"%", b"%zz", b"%0d%0aX:%20y", b"%c0%80"))
    ),
    lambda path, dice: (
        path + b"/" + dice.choice((b"\xe2\x80\xae", b"\xff", b"%ed%a0%80", b"~", b"*"))
    ),
    lambda path, dice: path[:1] + b"%%%02x" % path[1] + path[2:] if len(path) > 1 else b"/%2f",
    lambda path, dice: path.replace(b"/", b"%2f"),
    lambda path, dice: path.replace(b"/", b"\\"),
    lambda path, dice: path + b"/x" * 4_000,
    lambda path, dice: path + b"x" * 100_000,
    lambda path, dice: path[:-1],
    lambda path, dice: dice.choice(ELSEWHERE),
)
PARAMETERS = (
    *("from", "to", "group_by", "from", "to", "group_by", "days", "limit", "offset", "page", "day"),
    *(
        "format",
        "ordering",
        "account",
        "account__id",
        "model",
        "stream",
        "next",
        "",
        "from[]",
        "\0",
    ),
)
PARAMETER_VALUES = (
    *("2026-01-31", "2026-12-01", "2026-02-30", "2025-06-01", "0001-01-01", "9999-12-31", "1e9"),
    *("10000-01-01", "2000-01-01", "9000-12-31", "2026-W01-1", "20260131", "2026-01", "2026", "0"),
    *("2026-01-31T00:00:00Z", "-2026-01-01", "+2026-01-01", "%D9%A2%D9%A0%D9%A2%D9%A6-01-01", "-1"),
    *("day", "model", "key", "key_id", "DAY", "day%00", "%", "%zz", "%ff", "%00", "%ED%A0%80", ""),
    *("9" * 5_000, "NaN", "null", "[]", "a" * 100_000, "%E2%80%AE", "1;2", "day&group_by=key", "+"),
)
QUERIES = (
    *(
        b"&" * 100_000,
        b"a=1&" * 1_000,
        b"a=1&" * 1_001,
        b"from&to&group_by",
        b"=",
        b"?",
        b"%",
        b";",
    ),
    *(b"\xff=\xff", b"from=" + b"%00" * 1_000, b"group_by=day&" * 50, b"a" * 100_000, b"a[b][c]=1"),
)
