#![no_main]
//! Input: statements and expressions of a chat template, which becomes text by their grammar and renders a conversation.

use std::fmt::Write;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ngen3_data::chat::Message;
use ngen3_data::fuzz;
use ngen3_model::ChatFormat;

const FILTERS: [&str; 24] = [
    "trim",
    "upper",
    "length",
    "tojson",
    "string",
    "list",
    "first",
    "last",
    "join(',')",
    "replace('a','aa')",
    "default('x')",
    "items",
    "dictsort",
    "sort",
    "reverse",
    "int",
    "float",
    "abs",
    "unique",
    "map('upper')",
    "selectattr('role')",
    "indent(3)",
    "batch(2)",
    "safe",
];
const METHODS: [&str; 16] = [
    "strip()",
    "split('a')",
    "split()",
    "startswith('a')",
    "upper()",
    "title()",
    "replace('a','bb')",
    "get('role')",
    "items()",
    "keys()",
    "join(['a','b'])",
    "format(1)",
    "rstrip('a')",
    "splitlines()",
    "count('a')",
    "lower()",
];
const NAMES: [&str; 12] = [
    "messages",
    "message",
    "loop",
    "loop.index0",
    "bos_token",
    "eos_token",
    "tools",
    "x",
    "y",
    "ns",
    "add_generation_prompt",
    "none",
];
const BINARY: [&str; 18] =
    ["+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", ">=", "and", "or", "in", "not in", "is", "if"];

#[derive(Arbitrary, Debug)]
enum Expr {
    Name(u8),
    Number(i16),
    Wide(i64),
    Float(f32),
    Text(u8),
    List(Vec<Expr>),
    Map(Vec<(u8, Expr)>),
    Filter(Box<Expr>, u8),
    Method(Box<Expr>, u8),
    Item(Box<Expr>, Box<Expr>),
    Slice(Box<Expr>, i8, i8, i8),
    Binary(Box<Expr>, u8, Box<Expr>),
    Not(Box<Expr>),
    Test(Box<Expr>, u8),
    Range(u16),
    Namespace(Box<Expr>),
}

#[derive(Arbitrary, Debug)]
enum Statement {
    Text(u8),
    Print(Expr),
    If(Expr, Vec<Statement>, Vec<Statement>),
    For(Expr, Vec<Statement>),
    Messages(Vec<Statement>),
    Set(u8, Expr),
    SetBlock(u8, Vec<Statement>),
    Macro(Vec<Statement>, Expr),
    Generation(Vec<Statement>),
    Filter(u8, Vec<Statement>),
    Break(bool),
}

fn expr(e: &Expr, depth: usize, out: &mut String) {
    let Some(depth) = depth.checked_sub(1) else {
        out.push('1');
        return;
    };
    let pick = |list: &[&'static str], index: &u8| list[usize::from(*index) % list.len()];
    let inner = |e: &Expr, out: &mut String| {
        out.push('(');
        expr(e, depth, out);
        out.push(')');
    };
    let _ = match e {
        Expr::Name(index) => write!(out, "{}", pick(&NAMES, index)),
        Expr::Number(number) => write!(out, "{number}"),
        Expr::Wide(number) => write!(out, "{number}"),
        Expr::Float(number) => write!(out, "{number:?}"),
        Expr::Text(index) => write!(out, "'{}'", pick(&["", "a", "ab c", "é", "<s>", "\\n", "role"], index)),
        Expr::List(items) => {
            out.push('[');
            for item in items {
                expr(item, depth, out);
                out.push(',');
            }
            out.push(']');
            Ok(())
        }
        Expr::Map(entries) => {
            out.push('{');
            for (key, value) in entries {
                let _ = write!(out, "'{key}':");
                expr(value, depth, out);
                out.push(',');
            }
            out.push('}');
            Ok(())
        }
        Expr::Filter(e, index) => {
            inner(e, out);
            write!(out, "|{}", pick(&FILTERS, index))
        }
        Expr::Method(e, index) => {
            inner(e, out);
            write!(out, ".{}", pick(&METHODS, index))
        }
        Expr::Item(e, index) => {
            inner(e, out);
            out.push('[');
            expr(index, depth, out);
            out.push(']');
            Ok(())
        }
        Expr::Slice(e, start, end, step) => {
            inner(e, out);
            write!(out, "[{start}:{end}:{step}]")
        }
        Expr::Binary(left, index, right) => {
            inner(left, out);
            let _ = write!(out, " {} ", pick(&BINARY, index));
            inner(right, out);
            Ok(())
        }
        Expr::Not(e) => {
            out.push_str("not ");
            inner(e, out);
            Ok(())
        }
        Expr::Test(e, index) => {
            inner(e, out);
            write!(
                out,
                " is {}",
                pick(&["defined", "none", "string", "mapping", "iterable", "number", "odd", "sequence"], index)
            )
        }
        Expr::Range(end) => write!(out, "range({end})"),
        Expr::Namespace(e) => {
            out.push_str("namespace(x=");
            expr(e, depth, out);
            out.push(')');
            Ok(())
        }
    };
}

fn statements(all: &[Statement], depth: usize, out: &mut String) {
    let Some(depth) = depth.checked_sub(1) else { return };
    for statement in all {
        let tag = |open: &str, e: Option<&Expr>, out: &mut String| {
            out.push_str("{% ");
            out.push_str(open);
            if let Some(e) = e {
                expr(e, depth, out);
            }
            out.push_str(" %}");
        };
        match statement {
            Statement::Text(index) => {
                out.push_str(["\n", " a ", "<|x|>", "é{#c#}", "{", "%}"][usize::from(*index) % 6])
            }
            Statement::Print(e) => {
                out.push_str("{{ ");
                expr(e, depth, out);
                out.push_str(" }}");
            }
            Statement::If(e, yes, no) => {
                tag("if ", Some(e), out);
                statements(yes, depth, out);
                tag("else", None, out);
                statements(no, depth, out);
                tag("endif", None, out);
            }
            Statement::For(e, body) => {
                tag("for x in ", Some(e), out);
                statements(body, depth, out);
                tag("endfor", None, out);
            }
            Statement::Messages(body) => {
                tag("for message in messages", None, out);
                statements(body, depth, out);
                tag("endfor", None, out);
            }
            Statement::Set(index, e) => {
                tag(["set x = ", "set y = ", "set ns = ", "set ns.x = "][usize::from(*index) % 4], Some(e), out);
            }
            Statement::SetBlock(index, body) => {
                tag(["set x", "set y"][usize::from(*index) % 2], None, out);
                statements(body, depth, out);
                tag("endset", None, out);
            }
            Statement::Macro(body, e) => {
                tag("macro f(x)", None, out);
                statements(body, depth, out);
                tag("endmacro", None, out);
                out.push_str("{{ f(");
                expr(e, depth, out);
                out.push_str(") }}");
            }
            Statement::Generation(body) => {
                tag("generation", None, out);
                statements(body, depth, out);
                tag("endgeneration", None, out);
            }
            Statement::Filter(index, body) => {
                tag(["filter upper", "filter trim", "filter tojson"][usize::from(*index) % 3], None, out);
                statements(body, depth, out);
                tag("endfilter", None, out);
            }
            Statement::Break(is_break) => tag(if *is_break { "break" } else { "continue" }, None, out),
        }
    }
}

fuzz_target!(|input: Vec<Statement>| {
    let mut template = String::new();
    statements(&input, 8, &mut template);
    let format = ChatFormat { template, bos_token: Some("<s>".into()), eos_token: None };
    if let Ok(template) = fuzz::template(format) {
        let messages = [Message::user("Hi a"), Message::assistant("Hello\n")];
        let _ = (template.render(&messages, true), template.context_names());
    }
});
