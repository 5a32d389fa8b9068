//! Chat templates that loop, recurse, read files or grow.

use crate::case::Table;

const LINE: &str = "tokenize --dataset x --chats chats.jsonl --chat_template x.jinja";

#[test]
fn templates_that_loop_read_or_grow() {
    let mut table = Table::new("Chat templates");
    table.put(
        "chats.jsonl",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":\"Hello\"}]}\n",
    );
    let double = |start: &str, step: &str, times: usize| {
        format!("{{% set x = {start} %}}{}{{{{ x }}}}", format!("{{% set x = {step} %}}").repeat(times))
    };
    let nested =
        |open: &str, close: &str, times: usize| format!("{{{{ {}1{} }}}}", open.repeat(times), close.repeat(times));
    let macros = "{% macro f(n) %}{{ f(n ~ n) }}{% endmacro %}{{ f('a') }}".to_owned();
    let loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}".to_owned();
    let big = "{% set x = 'a' * 1000000 %}{% for i in range(1000) %}{{ x }}{% endfor %}".to_owned();
    let held =
        "{% set n = namespace(x=[]) %}{% for i in range(100000) %}{% set n.x = n.x + ['a' * 100000] %}{% endfor %}";
    let shares = |end: &str| {
        format!(
            "{{% set n = namespace(x=[1]) %}}{{% for i in range(60) %}}{{% set n.x = [n.x, n.x] %}}{{% endfor %}}{end}"
        )
    };
    let cases: Vec<(&str, String, &str)> = vec![
        ("`range(10**9)`", "{% for i in range(10**9) %}{{ i }}{% endfor %}".into(), ""),
        ("two loops of 99,999 in each other", loops, ""),
        ("a macro that calls itself", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".into(), ""),
        ("a macro that calls itself with a text of twice the length", macros, ""),
        ("a loop that recurses", "{% for a in [[1]] recursive %}{{ loop([[a]]) }}{% endfor %}".into(), ""),
        ("`include '/etc/passwd'`", "{% include '/etc/passwd' %}".into(), "invalid chat template"),
        ("`import '/etc/passwd'`", "{% import '/etc/passwd' as x %}".into(), "invalid chat template"),
        ("`extends '/etc/passwd'`", "{% extends '/etc/passwd' %}".into(), "invalid chat template"),
        ("`''.__class__.__mro__`", "{{ ''.__class__.__mro__[1].__subclasses__() }}".into(), ""),
        ("`cycler.__init__.__globals__.os`", "{{ cycler.__init__.__globals__.os.popen('touch pwned') }}".into(), ""),
        ("`self._TemplateReference__context`", "{{ self._TemplateReference__context }}".into(), ""),
        ("doubles a text 60 times by `~`", double("'a'", "x ~ x", 60), ""),
        ("doubles a text 60 times by `+`", double("'a'", "x + x", 60), ""),
        ("doubles a text 60 times by `replace`", double("'aa'", "x | replace('a', 'aa')", 60), ""),
        ("doubles a text 60 times by Python's `replace`", double("'aa'", "x.replace('a', 'aa')", 60), ""),
        ("squares a text 10 times by Python's `join`", double("'aa'", "x.join(x)", 40), ""),
        ("doubles a text 60 times by `format`", double("'aa'", "'%s%s' | format(x, x)", 60), ""),
        ("doubles a text 60 times by `tojson`", double("'aa'", "[x, x] | tojson", 60), ""),
        ("doubles a list's text 60 times by `string`", double("[1]", "[x, x]", 40) + "{{ x | string }}", ""),
        ("`'a' * 10**9`", "{{ 'a' * 10**9 }}".into(), ""),
        ("`'a'.center(10**9)`", "{{ 'a'.center(10**9) }}".into(), ""),
        ("`'a'.zfill(10**9)`", "{{ 'a'.zfill(10**9) }}".into(), ""),
        ("`indent` of 10**9", "{{ 'a\nb' | indent(10**9) }}".into(), ""),
        ("`tojson` with an indent of 10**9", "{{ [1, 2] | tojson(indent=10**9) }}".into(), ""),
        ("`'%1000000000d'`", "{{ '%1000000000d' | format(1) }}".into(), ""),
        ("an output of 1 GB", big, ""),
        ("a list of 10 GB", held.into(), ""),
        ("`range(10**9) | list`", "{{ range(10**9) | list | length }}".into(), ""),
        (
            "`sort` of 99,999 lists",
            "{% for i in range(99999) %}{{ range(99999) | list | sort | first }}{% endfor %}".into(),
            "",
        ),
        ("expressions 50,000 deep", nested("(", ")", 50_000), "invalid chat template"),
        ("lists 50,000 deep", nested("[", "]", 50_000), "invalid chat template"),
        ("`not` 30,000 times", nested("not ", "", 30_000), ""),
        ("`-` 100,000 times", nested("-", "", 100_000), ""),
        ("10,000 filters", nested("", " | string", 10_000), ""),
        ("`elif` 10,000 times", format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(10_000)), ""),
        ("a template of 10 MB", "a".repeat(10 << 20), "expected at most"),
        ("`{% if %}` 10,000 deep", "{% if 1 %}".repeat(10_000), "invalid chat template"),
        ("a list that holds another twice, 60 times", shares("{{ n.x }}"), ""),
        ("the same, by `tojson`", shares("{{ n.x | tojson }}"), ""),
        ("the same, by `tojson(sort_keys=true)`", shares("{{ n.x | tojson(sort_keys=true) }}"), ""),
        ("the same, by `string`", shares("{{ n.x | string }}"), ""),
        ("the same, by `==`", shares("{% set m = n.x %}{{ n.x == [m[0], m[1]] }}"), ""),
        ("the same, by `unique`", shares("{{ [n.x, n.x] | unique | length }}"), ""),
        ("never closed", "{% for x in messages".into(), "invalid chat template"),
    ];
    for (input, template, reason) in cases {
        table.put("x.jinja", template);
        table.either(input, LINE, reason);
        assert!(!table.path().join("pwned").exists());
    }
    table.print();
}
