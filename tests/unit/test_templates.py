"""Templates: what they make of their data, and that hostile ones end in a TemplateError, soon and in bounds."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postlane.core.events import Template
from postlane.mime.compose import compose
from postlane.mime.content import Content, Rendered
from postlane.mime.plaintext import text_from_html
from postlane.mime.template_data import DEPTH_MAX, NODES_MAX
from postlane.mime.template_source import ELIFS_MAX, FILTERS, TAG_TOKENS_MAX, SourceRefused, check_source
from postlane.mime.templates import TemplateError, TemplateRenderer, compile_check


def template(
    text: str | None = None, html: str | None = None, subject: str = "Hi", version: int = 1, name: str = "t"
) -> Template:
    return Template(
        id=name, version=version, subject=subject, text=text, html=html, at=datetime(2024, 1, 1, tzinfo=UTC)
    )


def text(source: str, **data: Any) -> str:
    rendered = TemplateRenderer().render(template(text=source), data).text
    assert rendered is not None
    return rendered


def reason(source: str, **data: Any) -> str:
    with pytest.raises(TemplateError) as caught:
        text(source, **data)
    assert caught.value.reason.isprintable()
    assert len(caught.value.reason) <= 300
    return caught.value.reason


ORDER = {
    "name": "Ada <3",
    "order": {"id": 42, "total": 7.5, "url": "https://example.org/?a=1&b=2"},
    "rows": [{"qty": 1, "name": "Tea & more"}, {"qty": 2, "name": "<script>alert(1)</script>"}],
}
HTML = """<html><head><style>p { color: {% if dark is defined %}white{% else %}black{% endif %} }</style></head><body>
<h1>Hello {{ name }}</h1>
<p>Your order <b>{{ order.id }}</b> of <i>today</i>:</p>
<table>
  {% for row in rows %}
  <tr><td>{{ row.qty }}</td><td>{{ row.name }}</td></tr>
  {% endfor %}
</table>
<p><a href="{{ order.url }}">Track it</a></p>
</body></html>"""


def test_markup_in_data_is_escaped_in_html_and_left_alone_elsewhere() -> None:
    source = template(
        subject="For {{ name }}", text="{{ rows[1].name }}", html="<p title='{{ name }}'>{{ rows[1].name }}</p>"
    )
    subject, plain, html = TemplateRenderer().render(source, ORDER)
    assert subject == "For Ada <3"
    assert plain == "<script>alert(1)</script>"
    assert html is not None
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "title='Ada &lt;3'" in html


def test_quotes_in_data_cannot_leave_an_attribute() -> None:
    html = (
        TemplateRenderer()
        .render(template(html="<a href=\"{{ u }}\" title='{{ u }}'>x</a>"), {"u": "\"'><img onerror=x>"})
        .html
    )
    assert html is not None
    assert html.count("<") == 2
    assert html.count('"') == 2
    assert html.count("'") == 2


def test_the_text_is_derived_from_the_html_once() -> None:
    rendered = TemplateRenderer().render(template(html=HTML), ORDER)
    assert rendered.text == textwrap.dedent("""\
        Hello Ada <3

        Your order 42 of today:

        1  Tea & more
        2  <script>alert(1)</script>

        Track it (https://example.org/?a=1&b=2)""")


@pytest.mark.parametrize(
    "html",
    [
        "<p>&#123;&#123; name }}</p>",
        "<p>\U000f0001{{ name }}</p>",
        "<head><style>{{ name }}</style></head><p>{{ name }}</p>",
    ],
)
def test_html_that_yields_no_text_template_still_yields_a_mail(html: str) -> None:
    rendered = TemplateRenderer().render(template(html=html), {"name": "Ada"})
    mail = Content(sender="a@example.org", to=["b@example.com"], template=object())
    assert b"multipart/alternative" in compose(mail, delivery_id="x.y.0", date_ms=0, rendered=rendered)


def test_what_a_mail_template_may_say() -> None:
    assert text("{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", d={"a": 1, "b": "x"}) == "a=1;b=x;"
    assert text("{% for k, v in d|items %}{{ k }}={{ v }};{% endfor %}", d={"a": 1, "b": "x"}) == "a=1;b=x;"
    assert text("{{ d.items }}{{ d['keys'] }}", d={"items": 3, "keys": 4}) == "34", "entries before methods"
    assert text("{{ x|default('friend') }}") == "friend"
    assert text("{{ x|default('friend', true) }}", x=None) == "friend"
    assert text("{% if x is defined and x %}{{ x }}{% else %}nobody{% endif %}") == "nobody"
    assert text("{% if x %}yes{% else %}no{% endif %}", x=None) == "no"
    assert text("{% if x in ('a', 'b') %}y{% endif %}{{ [1, 2]|join('+') }}", x="a") == "y1+2"
    assert text("{% macro b(t) %}[{{ t }}]{% endmacro %}{{ b('x') }}{{ b(t='y') }}") == "[x][y]"
    assert text("{% set x = 1 %}{% with y = 2, z = 3 %}{{ x }}{{ y }}{{ z }}{% endwith %}") == "123"
    assert text("{% set x %}a{{ 1 }}{% endset %}{{ x }}") == "a1"
    numbers = "{{ n + 1 }} {{ n|int + d.m }} {{ '%.1f'|format(n|float * d.m|float * 1.25) }} {{ n - 3 }}"
    assert text(numbers, n=4, d={"m": 3}) == "5 7 15.0 1"
    assert text("{% raw %}{{ x }}{% endraw %}{# {{ nothing #}.") == "{{ x }}."
    assert text("{{ 'a}}b' ~ \"%}\" }}") == "a}}b%}"
    assert text("a\n{%- if true %} b{%- endif -%}  c") == "a bc"
    assert text("{{ rows|map(attribute='n')|sum }}", rows=[{"n": 1}, {"n": 2}]) == "3"
    assert text("{{ '%.2f'|format(x) }} {{ true }} {{ 1.0 }}", x=2) == "2.00 True 1"
    assert text("{% for i in range(3) %}{{ loop.index }}{{ loop.cycle('a', 'b') }}{% endfor %}") == "1a2b3a"
    assert text("{{ x|tojson }}", x={"a": ["<&'>", None]}) == '{"a":["\\u003c\\u0026\\u0027\\u003e",null]}'
    assert text("{% filter upper %}abc{% endfilter %}") == "ABC"
    assert text("用户 {{ x }} 🎉", x="语") == "用户 语 🎉"


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_every_filter_that_is_allowed_exists(name: str) -> None:
    with pytest.raises(TemplateError) as caught:
        TemplateRenderer().render(template(text="{{ nothing|" + name + " }}{{ nothing }}"), {})
    assert "unknown" not in caught.value.reason


def test_reasons_say_where_and_what() -> None:
    assert reason("Hi\n{{ order.nmae }}", order={}) == "text, line 2: undefined: order.nmae"
    assert reason("{{ größe.x }}", größe={}).startswith("text, line 1: undefined:")
    assert reason("{% if x %}{% endif %}") == "text, line 1: undefined: x"
    assert "null" in reason("Dear {{ name }}", name=None)
    assert "print its items" in reason("{{ x }}", x=[1])
    assert "print its items" in reason("{{ x }}", x={})
    assert reason("a\nb\n{% if x %}").startswith("text, line 3: ")
    assert "line 2" in reason("a\n{{ x y }}")


HOSTILE = [
    ("{{ ''.__class__ }}", "undefined"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "undefined"),
    ("{{ x.__class__ }}", "undefined"),
    ("{{ d.__class__ }}", "undefined"),
    ("{{ d['__class__'] }}", "undefined"),
    ("{{ d.__init__.__globals__ }}", "undefined"),
    ("{{ x.append(1) }}", "cannot call"),
    ("{{ x.extend(x) }}", "cannot call"),
    ("{{ x.append }}", "undefined"),
    ("{{ d.update(a=1) }}", "cannot call"),
    ("{{ d.copy() }}", "cannot call"),
    ("{{ d.setdefault('a', x) }}", "cannot call"),
    ("{{ d.items }}", "print its items|list or object"),
    ("{{ d() }}", "text: "),
    ("{{ x|attr('append') }}", "filter 'attr'"),
    ("{{ x|map('attr', 'append')|list }}", "UnknownFilter"),
    ("{{ x|map('safe')|list|join }}", "UnknownFilter"),
    ("{{ s|safe }}", "filter 'safe'"),
    ("{% autoescape false %}{{ s }}{% endautoescape %}", "autoescape"),
    ("{% include 'body.html' %}", "include"),
    ("{% include s %}", "include"),
    ("{%- include '/etc/passwd' -%}", "include"),
    ("{%\n include 'x' %}", "include"),
    ("{% import 'x' as y %}", "import"),
    ("{% from 'x' import y %}", "from"),
    ("{% extends 'x' %}", "extends"),
    ("{% block a %}{% endblock %}", "block"),
    ("{% call f() %}{% endcall %}", "call"),
    ("{% do x.append(1) %}", "do"),
    ("{{ debug() }}", "unknown|undefined"),
    ("{{ namespace(a=1) }}", "unknown|undefined"),
    ("{{ dict(a=x) }}", "unknown|undefined"),
    ("{{ cycler(x) }}", "unknown|undefined"),
    ("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", "fuel"),
    ("{% for i in range(99999) %}{{ s }}{% endfor %}", "fuel"),
    ("{% for i in range(10000000000) %}a{% endfor %}", "range"),
    ("{{ 'a' * 1000000000 }}", "of \\*"),
    ("{{ [1] * 1000000000 }}", "of \\*"),
    ("{{ 1000000000 * x }}", "of \\*"),
    ("{{ x * 1.0 }}", "of \\*"),
    ("{{ x|float * s }}", "of \\*"),
    ("{{ x|float * x|float|list }}", "of \\*"),
    ("{{ x|float * 3|list }}", "of \\*"),
    ("{{ x|float * x|float.y }}", "of \\*"),
    ("{{ x|float * 2 }}", "text, line 1"),
    ("{{ x|abs * 2 }}", "text, line 1"),
    ("{{ x|int * 2 }}", "text, line 1"),
    ("{{ x|round * 2 }}", "text, line 1"),
    ("{{ (x * 5 * 1.0) }}", "of \\*"),
    ("{{ x + x }}", "beside \\+"),
    ("{{ x + 1|list }}", "beside \\+"),
    ("{{ x.0 + x }}", "beside \\+"),
    ("{{ x + 1 }}", "text, line 1"),
    ("{% set x = [x, x] %}{{ x }}", "list or tuple"),
    ("{% set x = (x, x) %}{{ x }}", "list or tuple"),
    ("{% set x = x, x %}{{ x }}", "tuple"),
    ("{% set x = {'a': x} %}{{ x }}", "braces"),
    ("{% with a = x, x %}{% endwith %}", "tuple"),
    ("{{ x|zip(x)|list }}", "filter 'zip'"),
    ("{{ x|chain(x)|list }}", "filter 'chain'"),
    ("{{ x|map('zip', x)|list|join }}", "UnknownFilter"),
    ("{{ x|map('list')|list }}", "list or object|text, line 1"),
    ("{{ x|tojson(indent=1000000) }}", "text"),
    ("{{ '%1000000000s'|format('a') }}", "fuel"),
    ("{{ s|indent(1000000000) }}", "fuel"),
    ("{{ s|replace('', s * 1) }}", "of \\*"),
    ("{{ x|join(s)|replace('a', s) }}", "fuel"),
    ("{{ s|list|batch(1000000000, 1)|list|length }}", "fuel"),
    ("{{ x|slice(1000000000)|list|length }}", "fuel"),
    ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(1) }}", "recursion"),
    ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "recursion|fuel"),
    ("{% for i in range(20) recursive %}{{ loop(range(20)) }}{% endfor %}", "recursive"),
    ("{{ " + "-" * 100_000 + "1 }}", f"{TAG_TOKENS_MAX}"),
    ("{{ " + "not " * 100_000 + "1 }}", f"{TAG_TOKENS_MAX}"),
    ("{{ 1" + " ~ 1" * 100_000 + " }}", f"{TAG_TOKENS_MAX}"),
    ("{{ x" + ".a" * 100_000 + " }}", f"{TAG_TOKENS_MAX}"),
    ("{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}", f"{TAG_TOKENS_MAX}"),
    ("{% if x %}" + "{% elif x %}" * 30_000 + "{% endif %}", f"{ELIFS_MAX}"),
    ("{% if x %}" * 2000 + "{% endif %}" * 2000, "recursion"),
    ("a" * 500_001, "500000"),
    ("{{ 2 ** 100000 }}", "text, line 1"),
    ("{{ 1 / 0 }}", "text, line 1"),
    ("{{ x", "not closed"),
    ("{{ 'x }}", "without end"),
    ("{{ x %}", "end with"),
    ("{% if x }}", "end with"),
    ("{# x", "no #}"),
    ("{% raw %}", "raw"),
    ("{{ (x }}", "not closed"),
    ("{{ x) }}", "opening"),
    ("{{ ([x)] }}", "opening"),
    ("{{ x; x }}", "sign"),
    ("{{ x @ x }}", "sign"),
    ("{% %}", "may not be used"),
    ("{{ }}", "text, line 1"),
]


@pytest.mark.parametrize(("source", "hint"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_templates_end_in_a_reason(source: str, hint: str) -> None:
    assert re.search(hint, reason(source, x=[1] * 100, d={"k": 1}, s="a\n" * 5000))


def test_data_is_not_changed_and_a_second_render_is_the_same() -> None:
    renderer = TemplateRenderer()
    source = template(html=HTML)
    before = repr(ORDER)
    assert renderer.render(source, ORDER) == renderer.render(source, ORDER) == TemplateRenderer().render(source, ORDER)
    assert repr(ORDER) == before


class Strange:
    def __str__(self) -> str:
        return "strange"

    def call(self) -> str:
        return "called"


DEEP: Any = 1
for _ in range(DEPTH_MAX + 5):
    DEEP = {"a": DEEP}
LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (Strange(), "data.x: Strange is no JSON value"),
        (b"bytes", "bytes is no JSON value"),
        ({1, 2}, "set is no JSON value"),
        ([{"y": Strange()}], "data.x.y: Strange"),
        ({1: 2}, "key is int"),
        (1 << 64, "64 bits"),
        (DEEP, "nested deeper"),
        (LOOP, "nested deeper"),
        ([0] * (NODES_MAX + 1), "more than"),
        ([[0] * 1000] * 21, "more than"),
        (datetime(2024, 1, 1), "datetime is no JSON value"),
        ({"a\r\nb": Strange()}, r"data.x.a\\r\\nb"),
    ],
)
def test_data_that_is_not_json_or_too_much_is_refused(value: Any, hint: str) -> None:
    assert hint.replace("\\\\", "\\") in reason("{{ 1 }}", x=value)


def test_data_must_be_an_object() -> None:
    with pytest.raises(TemplateError, match="object"):
        TemplateRenderer().render(template(text="x"), ["a"])  # type: ignore[arg-type]


@pytest.mark.parametrize("subject", ["a\nb", "a\r\nBcc: eve@example.net", "a\x00", "a\x85b", "x" * 1001])
def test_a_rendered_subject_is_one_short_line(subject: str) -> None:
    with pytest.raises(TemplateError, match="subject"):
        TemplateRenderer().render(template(text="x", subject="{{ s }}"), {"s": subject})


def test_output_is_bounded() -> None:
    with pytest.raises(TemplateError, match="longer than 1000 characters"):
        TemplateRenderer(output_max_chars=1000).render(template(text="{{ s }}{{ s }}"), {"s": "x" * 600})


def test_compiled_templates_are_bounded_and_follow_the_source() -> None:
    renderer = TemplateRenderer(compiled_max=3)
    for version in range(1, 10):
        assert renderer.render(template(text=f"v{version}", version=version), {}).text == f"v{version}"
    assert len(renderer._compiled) == 3
    assert renderer.render(template(text="other", version=9), {}).text == "other", "never a stale source"


def test_a_failed_template_is_not_kept() -> None:
    renderer = TemplateRenderer()
    for _ in range(2):
        with pytest.raises(TemplateError):
            renderer.render(template(text="{{ x"), {})
    assert renderer.render(template(text="fine"), {}).text == "fine"


def test_compile_check_names_what_the_template_needs() -> None:
    assert compile_check(template(html=HTML, subject="{{ greeting }}")) == {"name", "order", "rows", "dark", "greeting"}
    assert compile_check(template(text="{% for i in range(2) %}{{ i }}{% endfor %}")) == frozenset()
    for bad in (template(), template(text=""), template(text="{{ x"), template(html="{% include 'x' %}")):
        with pytest.raises(TemplateError):
            compile_check(bad)


def test_rendering_and_composing() -> None:
    rendered = TemplateRenderer().render(template(html=HTML, subject="Order {{ order.id }} 🎉"), ORDER)
    assert isinstance(rendered, Rendered)
    mail = Content(sender="shop@example.org", to=["ada@example.com"], template=object())
    data = compose(mail, delivery_id="x.y.0", date_ms=0, rendered=rendered)
    assert data == compose(mail, delivery_id="x.y.0", date_ms=0, rendered=rendered)
    assert b"Your order 42 of today:" in data


@given(st.lists(st.sampled_from(["{{", "}}", "{%", "%}", "{#", "#}", "'", '"', "(", ")", "[", "]", "{", "}", "x",
    "for i in x", "if x", "endif", "endfor", "raw", "endraw", "set x =", "+", "*", "1", "2.5", ",", "|", "upper",
    "safe", "include", "-",
    " ", "\n", "\\"]),
    max_size=25))  # fmt: skip
def test_scraps_of_templates_end_in_text_or_a_reason(scraps: list[str]) -> None:
    source = " ".join(scraps)
    try:
        text(source, x=[1, 2])
    except TemplateError as error:
        message = error.reason
    else:
        message = "fine"
    assert message.isprintable()


def test_the_checked_source_means_to_the_engine_what_it_meant_to_the_check() -> None:
    """Tags hidden from the check would be a way around it: strings, comments and raw blocks in each other."""
    for source in (
        "{# {% raw %} #}{% include 'x' %}{# {% endraw %} #}",
        "{{ '{#' }}{% include 'x' %}{{ '#}' }}",
        "{{ '{% raw %}' }}{% include 'x' %}{{ '{% endraw %}' }}",
        "{% raw %}{# {% endraw %}{% include 'x' %}{# #}",
        '{{ "\\"}}" }}{% include \'x\' %}',
        "{% raw -%} {% endraw %}{%+ include 'x' %}",
        "{{ 1 -}}{%- include 'x' %}",
    ):
        with pytest.raises(SourceRefused, match="include"):
            check_source(source)


@pytest.mark.parametrize("source", ['{{ "-" * 1 }}', "{{ ------1 }}"])
def test_the_engine_survives_in_a_process_of_its_own(source: str) -> None:
    """The longest tag that the check lets pass does not overflow a thread's small stack."""
    program = """
        import threading
        from postlane.mime.template_source import check_source
        import minijinja
        threading.stack_size(512 * 1024)
        def run():
            for unit in ("-", "not "):
                source = "{{ " + unit * 190 + "1 }}" + "{% if 1 %}" + "{% elif 1 %}" * 60 + "{% endif %}"
                check_source(source)
                env = minijinja.Environment(fuel=1000)
                env.add_template("x", source)
                env.render_template("x")
            print("alive")
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "alive\n", done.stderr


PLAIN = [
    ("<p>One</p><p>Two</p>", "One\n\nTwo"),
    ("One<br>Two<br/>Three", "One\nTwo\nThree"),
    ("<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><p>d</p>", "- a\n- b\n  - c\n\nd"),
    ("<ol><li>a</li><li>b</li></ol>", "1. a\n2. b"),
    ("<a href='https://x.example/'>x.example</a>", "x.example"),
    ("<a href='https://x.example/a'>here</a>, now", "here (https://x.example/a), now"),
    ("<a href='mailto:a@x.example'>write</a>", "write (a@x.example)"),
    ("<a href='javascript:alert(1)'>click</a> <a name=x>y</a>", "click y"),
    ("<a href='https://x.example'><img src=a.png alt='Logo'></a>", "Logo (https://x.example)"),
    ("a &amp; b &lt;c&gt; &eacute; &#8364; &nbsp;x", "a & b <c> é € \xa0x"),
    ("<style>p{}</style><script>x()</script><title>t</title>Hi", "Hi"),
    ("<div style='display:none'>preheader <b>x</b></div>Hi <span hidden>no</span>", "Hi"),
    ("<h1>Title</h1>text <b>bold</b>\n  <i>it</i>", "Title\n\ntext bold it"),
    ("<blockquote>said<br>more</blockquote>after", "> said\n> more\n\nafter"),
    ("<pre>a\n  b</pre>", "a\n  b"),
    ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table>", "a  b\nc  d"),
    ("<p>a<hr>b", "a\n" + "-" * 40 + "\nb"),
    ("plain & simple < 3", "plain & simple < 3"),
    ("<p>un<b>closed", "unclosed"),
    ("</p></ul></blockquote></a>x", "x"),
    ("<!-- <b>no</b> --><!doctype html><![if !mso]><?php y ?>z<![endif]-->", "z"),
    ("", ""),
    ("<br><br><br><br>", ""),
    ("日本<b>語</b>", "日本語"),
]


@pytest.mark.parametrize(("html", "expected"), PLAIN, ids=range(len(PLAIN)))
def test_html_to_text(html: str, expected: str) -> None:
    assert text_from_html(html) == expected


@given(st.lists(st.sampled_from(["<p>", "</p>", "<ul>", "<li>", "</ul>", "<a href=http://x>", "</a>", "<", ">",
    "&", "&#0;", "&#x110000;", "<script>", "</script>", "<!--", "-->", "<![", "text ", "\n", "<pre>", "<td>",
    "<blockquote>", "<br>", "\x00", "<b hidden>"]), max_size=40))  # fmt: skip
def test_any_html_yields_text(scraps: list[str]) -> None:
    assert "\x00" not in text_from_html("".join(scraps))


def test_html_without_end_does_not_take_for_ever() -> None:
    assert len(text_from_html("<blockquote><ul><li>x" * 3000)) < 3000 * 60
    assert text_from_html("<b hidden>" * 20_000 + "x") == ""
    for unit in ("<a ", "</", "<", "<a href='", "<!--", "<![", "<?", "<b>", "<a href=http://x>", "<pre>\n", "&#"):
        assert text_from_html(unit * 50_000) is not None, "linear: html.parser needs minutes for some of these"
