"""Prompts as Python's jinja2 makes them, set up as the transformers library sets it up for chat templates.

    templates.py < CASES.json > PROMPTS.json

A case has a template's `source` and the `values` that it is rendered with; the answer to it has a `text` or an `error`.
"""

import datetime
import json
import sys

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

# 26 July 2024, one hour, one minute and one second after midnight.
NOW = datetime.datetime.fromtimestamp(1_721_955_661, datetime.timezone.utc)


class Generation(Extension):
    """The tag that marks an assistant's words for training; here it marks nothing."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def main():
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = NOW.strftime
    answers = []
    for case in json.load(sys.stdin):
        try:
            answers.append({"text": environment.from_string(case["source"]).render(**case["values"])})
        except (jinja2.exceptions.TemplateError, TypeError, AttributeError, ValueError) as error:
            answers.append({"error": str(error)})
    json.dump(answers, sys.stdout)


main()
