//! Tests the checks on small made-up crates.

use std::fs;

use tempfile::TempDir;

use crate::{arrows, cycles, drawn, report, rooms};

/// Writes files into a temporary folder, each a name and its contents.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, contents) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
    folder
}

/// Cycles in a crate of these files.
fn found(files: &[(&str, &str)]) -> Vec<String> {
    let folder = folder(files);
    cycles::find(&arrows::find(folder.path()).unwrap()).iter().map(|cycle| drawn(cycle)).collect()
}

/// A crate of two files, `a.rs` and `b.rs`, with these contents.
fn pair(a: &str, b: &str) -> Vec<String> {
    found(&[("lib.rs", "mod a;\nmod b;\npub use a::A;\npub use b::{B, make as made};\n"), ("a.rs", a), ("b.rs", b)])
}

#[test]
fn two_files_that_import_each_other_are_a_cycle_that_names_its_lines() {
    let a = "use crate::b::B;\n\npub struct A(B);\n";
    let b = "pub struct B;\n\nimpl B {\n    fn to(self) -> super::a::A {\n        super::a::A(self)\n    }\n}\n";
    let folder = folder(&[("lib.rs", "mod a;\nmod b;\n"), ("a.rs", a), ("b.rs", b)]);
    let cycle = "a.rs → b.rs → a.rs\n    a.rs:1 uses crate::b::B\n    b.rs:4 uses super::a::A\n";
    assert_eq!(report(folder.path()).unwrap(), [cycle]);
}

#[test]
fn one_way_is_no_cycle() {
    assert!(pair("pub struct A(crate::b::B);", "pub struct B;").is_empty());
}

#[test]
fn what_the_root_hands_on_leads_to_where_it_is_defined() {
    let cycle = ["a.rs → b.rs → a.rs"];
    assert_eq!(pair("use crate::B;\npub struct A(B);", "use crate::A;\npub struct B(Box<A>);"), cycle);
    assert_eq!(
        pair("pub struct A;\nfn f() { crate::made() }", "use crate::{self as all, A};\npub fn make() {}"),
        cycle
    );
    assert_eq!(pair("use crate::*;\npub struct A(B);", "use crate::A;\npub struct B;"), cycle);
}

#[test]
fn paths_count_wherever_they_are_written() {
    for a in [
        "fn f() -> u8 { crate::b::make() }",
        "fn f(b: &dyn Fn(crate::b::B)) {}",
        "fn f() { use super::b; b::make(); }",
        "use crate::b as other;\nfn f() { other::make() }",
        "use crate::{b::{self, B as _}};",
        "fn f() { println!(\"{}\", crate::b::make()) }",
        "use super::b;\nfn f() { assert_eq!(1, 2, \"{}\", b::make()) }",
        "#[derive(clap::Args)]\nstruct X {\n    #[arg(value_parser = crate::b::make)]\n    x: u8,\n}",
        "mod inner {\n    pub fn f() { super::super::b::make() }\n}",
        "impl crate::b::B {}",
        "fn f(x: u8) -> bool { matches!(x, crate::b::MADE) }",
        "macro_rules! m { () => { $crate::b::make() } }",
        "fn f<T: Into<crate::b::B>>() {}",
        "fn f() -> Vec<u8> { Vec::<crate::b::B>::new() }",
    ] {
        let a = format!("pub struct A;\n{a}\n");
        assert_eq!(pair(&a, "use super::a::A;\npub fn make() {}"), ["a.rs → b.rs → a.rs"], "{a}");
    }
}

#[test]
fn tests_visibilities_and_other_crates_do_not_count() {
    for a in [
        "#[cfg(test)]\nuse crate::b::B;",
        "#[cfg(test)]\nmod tests {\n    use crate::b::B;\n}",
        "#[cfg(all(test, unix))]\nfn f() { crate::b::make() }",
        "#[test]\nfn f() { crate::b::make() }",
        "impl A {\n    #[cfg(test)]\n    fn f() { crate::b::make() }\n}",
        "use ::b::B;\nfn f() { ::b::make() }",
        "use b::B;",
        "/// See [`crate::b::B`].\npub(in crate::b) fn f() {}",
        "fn f(x: X) { x.b::<u8>(); \"crate::b::make\"; }",
    ] {
        let a = format!("pub struct A;\n{a}\n");
        assert!(pair(&a, "use super::a::A;\npub fn make() {}\npub struct B;").is_empty(), "{a}");
    }
    let not_tests = "pub struct A;\n#[cfg(not(test))]\nuse crate::b::B;";
    assert_eq!(pair(not_tests, "use super::a::A;\npub struct B;").len(), 1);
}

#[test]
fn a_parent_and_a_child_that_use_each_other_are_a_cycle() {
    let child = ("a/child.rs", "use super::Shared;\npub fn f(_: Shared) {}\n");
    let cycle = ["a.rs → a/child.rs → a.rs"];
    for parent in [
        "mod child;\npub struct Shared;\npub fn g() { child::f(Shared) }",
        "mod child;\nuse child::f;\npub struct Shared;\npub fn g() { f(Shared) }",
        "mod child;\npub use child::f;\npub struct Shared;\npub fn g() { f(Shared) }",
        "mod child;\npub use child::*;\npub struct Shared;\npub fn g() { f(Shared) }",
    ] {
        assert_eq!(found(&[("lib.rs", "mod a;"), ("a.rs", parent), child]), cycle, "{parent}");
    }
    // A module file named mod.rs.
    let root = "mod child;\npub struct Shared;\npub fn g() { self::child::f(Shared) }";
    assert_eq!(found(&[("lib.rs", "mod a;"), ("a/mod.rs", root), child]), ["a/child.rs → a/mod.rs → a/child.rs"]);
}

#[test]
fn a_parent_that_hands_on_what_its_children_define_is_no_cycle() {
    for parent in [
        "mod child;\npub use child::f;\npub struct Shared;",
        "mod child;\npub use child::*;\npub struct Shared;",
        "mod child;\npub use child::f as g;\npub struct Shared;\nfn h() { let f = 1; drop(f); }",
    ] {
        let child = ("a/child.rs", "use super::Shared;\npub fn f(_: Shared) {}\n");
        assert!(found(&[("lib.rs", "mod a;"), ("a.rs", parent), child]).is_empty(), "{parent}");
    }
}

#[test]
fn a_facade_over_files_that_stand_on_each_other_is_no_cycle() {
    let files = [
        ("lib.rs", "//! All.\nmod a;\nmod b;\nmod c;\npub use a::A;\npub use b::B;\npub use c::inner::C;"),
        ("a.rs", "use crate::{B, C};\npub struct A(B, C);"),
        ("b.rs", "use crate::C;\npub struct B(C);"),
        ("c/mod.rs", "pub mod inner;\npub use inner::C as Sea;"),
        ("c/inner.rs", "pub struct C;"),
    ];
    assert!(found(&files).is_empty());
    let folder = folder(&files);
    let arrows = arrows::find(folder.path()).unwrap();
    let used = |file: &str| arrows[file].keys().cloned().collect::<Vec<_>>();
    assert_eq!(used("a.rs"), ["b.rs", "c/inner.rs"]);
    assert_eq!(used("lib.rs"), [""; 0]);
}

#[test]
fn a_module_and_a_function_may_share_a_name() {
    let root = "mod a;\nmod make;\npub use make::make;\n";
    let files =
        [("lib.rs", root), ("a.rs", "pub struct A;\nfn f() { crate::make() }"), ("make.rs", "pub fn make() {}")];
    assert!(found(&files).is_empty());
    let back = ("make.rs", "use crate::a::A;\npub fn make() {}");
    assert_eq!(found(&[files[0], files[1], back]), ["a.rs → make.rs → a.rs"]);
}

#[test]
fn a_long_cycle_is_found_and_each_arrow_of_a_knot_is_listed() {
    let uses = |names: &[&str]| names.iter().map(|name| format!("use crate::{name}::*;\n")).collect::<String>();
    let (a, b, c, d) = (uses(&["b"]), uses(&["c"]), uses(&["a", "b"]), uses(&["a"]));
    let files = [("main.rs", "mod a;\nmod b;\nmod c;\nmod d;"), ("a.rs", &a), ("b.rs", &b), ("c.rs", &c), ("d.rs", &d)];
    assert_eq!(found(&files), ["b.rs → c.rs → b.rs", "a.rs → b.rs → c.rs → a.rs"]);
}

#[test]
fn a_file_that_is_missing_or_no_rust_is_named() {
    let missing = folder(&[("lib.rs", "mod a;")]);
    assert_eq!(report(missing.path()).unwrap_err(), "lib.rs: no file for `mod a`");
    let broken = folder(&[("lib.rs", "mod a;"), ("a.rs", "fn {")]);
    assert!(report(broken.path()).unwrap_err().contains("a.rs: "));
}

/// Checks a workspace of these crates, each with the rest of its Cargo.toml; returns violations and notes.
fn checked(crates: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
    let folder = folder(&[("Cargo.toml", "[workspace.dependencies]\nfast = { package = 'rayon', version = '1' }\n")]);
    for (name, rest) in crates {
        let path = folder.path().join("crates").join(name);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("Cargo.toml"), format!("[package]\nname = '{name}'\n{rest}\n")).unwrap();
    }
    let findings = rooms::check(folder.path()).unwrap();
    (findings.wrong, findings.notes)
}

#[test]
fn arrows_between_crates_point_down() {
    let down = [
        ("ngen3-model", "[dependencies]\nserde = '1'"),
        ("ngen3-engine", "[dependencies]\nngen3-model.workspace = true"),
        ("ngen3-cpu", "[dependencies]\nngen3-engine.workspace = true\nrayon = '1'"),
        ("ngen3-eval", "[dependencies]\nngen3-engine.workspace = true\n[dev-dependencies]\nngen3-cpu.workspace = true"),
    ];
    assert_eq!(checked(&down), (vec![], vec![]));

    let up = [("ngen3-cpu", ""), ("ngen3-data", "[target.'cfg(unix)'.dependencies]\nngen3-cpu.workspace = true")];
    assert_eq!(checked(&up).0, ["ngen3-data → ngen3-cpu: an arrow that does not point down"]);
    let beside = [("ngen3-eval", ""), ("ngen3-train", "[dependencies]\nngen3-eval.workspace = true")];
    assert_eq!(checked(&beside).0, ["ngen3-train → ngen3-eval: an arrow that does not point down"]);
    assert!(checked(&[("ngen3-new", "")]).0[0].starts_with("ngen3-new has no floor"));
}

#[test]
fn the_contract_knows_no_processor_and_loops_know_only_the_contract() {
    for (name, used, shown) in [
        ("ngen3-engine", "ngen3-simd", "ngen3-simd"),
        ("ngen3-engine", "gemm-f32", "gemm-f32"),
        ("ngen3-engine", "fast", "rayon"),
        ("ngen3-train", "ngen3-cpu", "ngen3-cpu"),
        ("ngen3-eval", "ngen3-cpu", "ngen3-cpu"),
    ] {
        let manifest = format!("[dependencies]\n{used}.workspace = true");
        let crates = [(name, manifest.as_str()), ("ngen3-simd", ""), ("ngen3-cpu", "")];
        assert_eq!(checked(&crates).0, [format!("{name} → {shown}: {name} must not know it")]);
    }
}

#[test]
fn a_cycle_by_way_of_dev_dependencies_is_noted() {
    let crates = [
        ("ngen3-cpu", "[dependencies]\nngen3-engine.workspace = true"),
        ("ngen3-engine", "[dev-dependencies]\nngen3-cpu.workspace = true"),
    ];
    let note = "by way of dev-dependencies: ngen3-cpu → ngen3-engine → ngen3-cpu";
    assert_eq!(checked(&crates), (vec![], vec![note.to_owned()]));
}
