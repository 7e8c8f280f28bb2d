#!/usr/bin/env python3
"""Renders chat templates with jinja2 as transformers' apply_chat_template does, as golden values for src/text.

    python3 tests/golden/make/templates.py DIR > DIR/renderings.json

DIR holds *.jinja files, each rendered for all conversations below, and perhaps idioms.txt, a template a line. Needs the pip package jinja2 (3.1) and nothing else; where transformers can be imported too,
its own compiler renders everything a second time and has to agree. Conversations and arguments are below.
"""
import datetime
import itertools
import json
import pathlib
import sys

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
NOW = datetime.datetime(2024, 7, 26)


def chat(*contents, roles=("user", "assistant")):
    return [{"role": role, "content": content} for role, content in zip(itertools.cycle(roles), contents)]


def system(text, rest):
    return [{"role": "system", "content": text}] + rest


CONVERSATIONS = {
    "user": chat("Is this log benign?"),
    "system": system("You read logs.\n", chat(" Is it?\n\n")),
    "answered": chat("Is it?", "It is."),
    "turns": system("Be brief.", chat("One?", "1", "Two? é😀 <b> & 'q' \"d\"", "2\n", "\tThree?")),
    "turns_answered": chat("One?", " 1 ", "Two?", "\n\n2"),
    "tools": [
        {"role": "user", "content": "Read it."},
        {"role": "assistant", "content": '{"name": "read"}'},
        {"role": "tool", "content": "line 1\nline 2"},
        {"role": "tool", "content": "second"},
    ],
    "tools_answered": [
        {"role": "user", "content": "Read it."},
        {"role": "assistant", "content": "<think>\nwhich tool?\n</think>\n\nreading"},
        {"role": "tool", "content": "line 1"},
        {"role": "assistant", "content": "done"},
    ],
    "thought": chat("Why?", "<think>\nhm\n</think>\n\nSo.", "And?", "<think>aha</think>Thus."),
    "tool_text": chat("a", "b", "<tool_response>\nok\n</tool_response>", "c"),
    "odd_roles": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    "system_only": [{"role": "system", "content": "alone"}],
    "empty": chat(""),
}


def call(name, key, value, number=1):
    function = {"name": name, "arguments": {key: value, "limit": 3, "deep": {"flags": [True, None, "é\"x"]}}}
    return {"id": f"callid{number:03}", "type": "function", "function": function}


def result(content, number=1):
    return {"role": "tool", "tool_call_id": f"callid{number:03}", "name": "lookup", "content": content}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "lookup",
            "description": "Toolabout: finds <things>.",
            "parameters": {
                "type": "object",
                "properties": {"query": {"type": "string", "description": "What, as \"text\""}, "limit": {"type": "integer"}},
                "required": ["query"],
            },
        },
    }
]
ASKED = {"role": "user", "content": "Questionword?"}
CALLING = {"role": "assistant", "content": "", "tool_calls": [call("callword", "query", "valueword")]}
# What a message may carry beside role and content. Every word that ends with `word` stands in one part only.
CALLS = {
    "calls": [{"role": "system", "content": "Systemword."}, ASKED, CALLING, result("resultword")],
    "calls_null": [ASKED, {**CALLING, "content": None}, result("resultword")],
    "calls_said": [ASKED, {**CALLING, "content": "Saidword."}, result("resultword")],
    "calls_two": [
        ASKED,
        {**CALLING, "tool_calls": [call("callword", "query", "valueword"), call("secondword", "path", "/otherword", 2)]},
        result("resultword"),
        result("furtherword", 2),
    ],
    "calls_thought": [ASKED, {**CALLING, "reasoning_content": "Thoughtword."}, result("resultword")],
    "calls_answered": [ASKED, CALLING, result("resultword"), {"role": "assistant", "content": "Answerword."}, {**ASKED, "content": "Nextword?"}],
    "thoughts": [ASKED, {"role": "assistant", "content": "Answerword.", "reasoning_content": "Thoughtword."}, {"role": "user", "content": "Nextword?"}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Partword."}, {"type": "text", "text": "Otherword."}]}],
    "developer": [{"role": "developer", "content": "Developerword."}, ASKED],
    "judged": [ASKED, {"role": "assistant", "content": "Answerword."}],
}
ARGUMENTS = [{}, {"enable_thinking": False}, {"enable_thinking": True}, {"date_string": "1 May 2025"}]


class Generation(Extension):
    """`{% generation %}` marks answers for transformers and writes nothing."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def raise_exception(message):
    raise TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def compiled(text):
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env.from_string(text)


def by_transformers(text):
    """The same by transformers, or None without it."""
    try:
        from transformers.utils import chat_template_utils
    except ImportError:
        return None
    template = chat_template_utils._compile_jinja_template(text)
    template.globals["strftime_now"] = NOW.strftime
    return template


def rendered(template, conversation, arguments, generate, tools=None):
    variables = dict(SPECIAL, tools=tools, documents=None, **arguments)
    try:
        return template.render(messages=conversation, add_generation_prompt=generate, **variables)
    except Exception:  # whatever a template does to fail, the conversation is refused
        return None


def main():
    folder = pathlib.Path(sys.argv[1])
    cases = []
    for path in sorted(folder.glob("*.jinja")):
        text = path.read_text(encoding="utf-8")
        template, second = compiled(text), by_transformers(text)
        for (name, conversation), arguments in itertools.product(CONVERSATIONS.items(), ARGUMENTS):
            if any(key not in text for key in arguments):
                continue
            # Without a generation prompt rlvr renders answered conversations only.
            for generate in (True, False) if conversation[-1]["role"] == "assistant" else (True,):
                out = rendered(template, conversation, arguments, generate)
                if second and rendered(second, conversation, arguments, generate) != out:
                    sys.exit(f"{path}: transformers renders `{name}` otherwise")
                case = {"template": path.name, "conversation": name, "arguments": arguments}
                cases.append({**case, "add_generation_prompt": generate, "text": out})
        thinking = [{"enable_thinking": value} for value in (False, True) if "enable_thinking" in text]
        for (name, conversation), arguments in itertools.product(CALLS.items(), [{}, *thinking]):
            for tools in (None, TOOLS):
                out = rendered(template, conversation, arguments, True, tools)
                if second and rendered(second, conversation, arguments, True, tools) != out:
                    sys.exit(f"{path}: transformers renders `{name}` otherwise")
                case = {"template": path.name, "calls": name, "arguments": arguments, "tools": tools is not None}
                cases.append({**case, "text": out})
    idioms = folder / "idioms.txt"
    for line in idioms.read_text(encoding="utf-8").splitlines() if idioms.exists() else []:
        text = rendered(compiled(line), CONVERSATIONS["user"], {}, True)
        cases.append({"idiom": line, "text": text})
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    head = json.dumps({"special": SPECIAL, "conversations": CONVERSATIONS, "calls": CALLS, "tools": TOOLS}, ensure_ascii=False)
    print(f'{head[:-1]}, "cases": [\n{lines}\n]}}')


main()
