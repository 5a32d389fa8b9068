//! `ngen3 distill` from the command line.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::{contents, fail, ngen3, run, succeed, texts};
use ngen3_cpu::{CpuEngine, CpuTeacher};
use ngen3_engine::{DistillConfig, Distiller, Divergence, Dtype, Options, TeacherSource};
use ngen3_model::{Checkpoint, ParamList};
use serde_json::Value;
use tempfile::TempDir;

const TEACHER: &str = "\
layers = 3
heads = 2
width = 16
block = 16
vocabulary = 97
batch_size = 4
learning_rate = 0.01
eval_iters = 2
dtype = 'f32'
";

const STUDENT: &str = "\
layers = 1
heads = 2
width = 8
block = 8
vocabulary = 97
batch_size = 4
learning_rate = 0.01
eval_iters = 2
log_interval = 1
dtype = 'f32'
";

/// A folder with tokens, a teacher.pt that has learned from them, and a student's settings.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("teacher.toml"), TEACHER).unwrap();
    fs::write(folder.path().join("student.toml"), STUDENT).unwrap();
    let tokens = (0..4_000u32).map(|i| (i * i % 97) as u16);
    fs::write(folder.path().join("data.bin"), tokens.flat_map(u16::to_le_bytes).collect::<Vec<_>>()).unwrap();
    succeed(folder.path(), "train --config teacher.toml --data data.bin --out teacher.pt --max_iters 120");
    folder
}

const LINE: &str = "distill --teacher_model_path teacher.pt --config student.toml --data data.bin";

fn metrics(folder: &Path, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder.join(name).join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn load(folder: &Path, name: &str) -> Checkpoint {
    Checkpoint::load(&folder.join(name)).unwrap()
}

#[test]
fn a_student_learns_from_its_teacher_and_the_parts_of_its_loss_are_on_record() {
    let folder = folder();
    let folder = folder.path();
    let (out, err) = succeed(folder, &format!("{LINE} --max_iters 60 --alpha 0.75 --temperature 3"));
    assert!(out.starts_with("distilled_student_model.pt: 60 steps in "), "{out}");
    assert!(
        err.contains("teacher: teacher: 11,680 parameters, 3 layers, 2 heads, width 16, context 16, vocabulary 97\n"),
        "{err}"
    );
    assert!(err.contains("step 1/60: loss ") && err.contains(" (cross entropy "), "{err}");

    let lines = metrics(folder, "distilled_student_model.run");
    let number = |line: &Value, name: &str| line[name].as_f64().unwrap_or_else(|| panic!("{name}: {line}"));
    for line in &lines[1..] {
        let whole = 0.75 * number(line, "divergence") + 0.25 * number(line, "cross_entropy");
        assert!((number(line, "train_loss") - whole).abs() < 1e-4, "{line}");
    }
    let (first, last) = (&lines[1], lines.last().unwrap());
    assert!(number(last, "divergence") < 0.7 * number(first, "divergence"), "{first} {last}");
    assert!(number(last, "val_loss") < number(&lines[0], "val_loss") - 0.3, "{last}");

    let student = load(folder, "distilled_student_model.pt");
    assert_eq!((student.config.n_embd, student.config.block_size, student.meta.iter_num), (8, 8, 60));
    let terms = &student.meta.training["distill"];
    assert_eq!((terms["temperature"].as_f64(), terms["alpha"].as_f64()), (Some(3.0), Some(0.75)));
    assert_eq!(terms["divergence"], "forward_kl");

    // The validation loss is the plain cross entropy: that of an ordinary model with these weights.
    let line = "train --data data.bin --init_from distilled_student_model.pt --out same.pt --max_iters 1 --dtype f32 \
                --batch_size 4 --eval_iters 2";
    succeed(folder, line);
    let same = metrics(folder, "same.run");
    assert!((number(&same[0], "val_loss") - number(last, "val_loss")).abs() < 1e-5, "{}", same[0]);
}

#[test]
fn a_student_that_is_the_teacher_has_nothing_to_learn_from_it() {
    let folder = folder();
    let folder = folder.path();
    let teacher = load(folder, "teacher.pt");
    for divergence in ["forward_kl", "reverse_kl", "jensen_shannon"] {
        let line = format!(
            "distill --teacher_model_path teacher.pt --config teacher.toml --data data.bin --out x.pt --overwrite \
             --max_iters 1 --alpha 1 --divergence {divergence} --init_student from-teacher-layers"
        );
        succeed(folder, &line);
        let first = &metrics(folder, "x.run")[1];
        assert!(first["divergence"].as_f64().unwrap().abs() < 1e-5, "{divergence}: {first}");
        assert!(first["cross_entropy"].as_f64().unwrap() > 0.5, "{first}");
    }
    // Half the layers by default, and a shorter block.
    let line = "distill --teacher_model_path teacher.pt --data data.bin --out half.pt --max_iters 0 --block_size 12 \
                --init_student from-teacher-layers";
    succeed(folder, line);
    let half = load(folder, "half.pt");
    assert_eq!((half.config.n_layer, half.config.block_size), (2, 12));
    let (list, from) = (ParamList::new(&half.config), ParamList::new(&teacher.config));
    assert_eq!(half.params[list.wte.clone()], teacher.params[from.wte.clone()]);
    let (layer, last) = (&list.blocks[1], &from.blocks[2]);
    assert_eq!(half.params[layer.c_fc_weight.clone()], teacher.params[last.c_fc_weight.clone()]);
}

#[test]
fn the_first_loss_is_what_the_engine_says_of_both_models() {
    let folder = folder();
    let folder = folder.path();
    succeed(folder, &format!("{LINE} --max_iters 0 --out student.pt"));
    succeed(folder, &format!("{LINE} --max_iters 1 --out x.pt --temperature 1.5 --divergence reverse_kl"));
    let options = Options { dtype: Dtype::F32, ..Options::default() };
    let Checkpoint { config, params, .. } = load(folder, "teacher.pt");
    let mut teacher = CpuTeacher::new(config, params, options).unwrap();
    let Checkpoint { config, params, .. } = load(folder, "student.pt");
    let mut student = CpuEngine::new(config, params, options).unwrap();
    let settings = load(folder, "student.pt").meta.training;
    let sampler = ngen3_data::BatchSampler::new(
        ngen3_data::TokenFile::open(&folder.join("data.bin")).unwrap(),
        8,
        4,
        0.1,
        settings["seed"].as_u64().unwrap(),
    );
    let (mut inputs, mut targets) = (Vec::new(), Vec::new());
    sampler.unwrap().train_batch(0, 0, &mut inputs, &mut targets);
    let batch = ngen3_engine::Batch::even(8, inputs, targets);
    let distill = DistillConfig { temperature: 1.5, alpha: 0.5, divergence: Divergence::ReverseKl };
    let expected = student.distill(&batch, TeacherSource::Teacher(&mut teacher), &distill, None).unwrap();
    let first = &metrics(folder, "x.run")[1];
    assert!((first["divergence"].as_f64().unwrap() - f64::from(expected.divergence)).abs() < 1e-5, "{first}");
    assert!((first["cross_entropy"].as_f64().unwrap() - f64::from(expected.cross_entropy)).abs() < 1e-5, "{first}");
}

#[test]
fn a_run_goes_on_bit_for_bit_with_and_without_a_cache() {
    let folder = folder();
    let folder = folder.path();
    for cache in ["", " --teacher_cache said"] {
        let fixed = format!("{cache} --overwrite --min_lr 0.01 --warmup_iters 0 --dropout 0.1 --temperature 4");
        succeed(folder, &format!("{LINE}{fixed} --out whole.pt --max_iters 9"));
        succeed(folder, &format!("{LINE}{fixed} --out parts.pt --max_iters 5"));
        // Temperature and the rest need not be repeated.
        succeed(folder, &format!("{LINE}{cache} --out parts.pt --resume --max_iters 9"));
        assert_eq!(load(folder, "parts.pt").params, load(folder, "whole.pt").params, "{cache}");

        let complaint = fail(folder, &format!("{LINE}{cache} --out parts.pt --resume --temperature 2"), 1);
        assert!(complaint.contains("temperature was 4.0, now 2.0"), "{complaint}");
        let (out, _) = succeed(folder, &format!("{LINE}{cache} --out parts.pt --resume"));
        assert_eq!(out, "parts.pt: all 9 steps are done; increase --max_iters to train further\n");
    }
    succeed(folder, "train --config teacher.toml --data data.bin --out other.pt --max_iters 1");
    let other = LINE.replace("teacher.pt", "other.pt");
    let complaint = fail(folder, &format!("{other} --out parts.pt --resume --teacher_cache said"), 1);
    assert!(complaint.contains("teacher_sha256 (of the weights of --teacher_model_path) was "), "{complaint}");
    let complaint = fail(folder, &format!("{LINE} --out other.pt --resume"), 1);
    assert!(complaint.contains("belongs to a run of ngen3 train; resume it with that command"), "{complaint}");
    let complaint = fail(folder, &format!("{LINE} --out parts.pt --resume"), 1);
    assert!(complaint.contains("teacher_top_k (of --teacher_cache) was 64, now none"), "{complaint}");
}

#[test]
fn a_teacher_in_int8_teaches_nearly_the_same_and_is_told_from_one_that_is_not() {
    let folder = folder();
    let folder = folder.path();
    succeed(folder, &format!("{LINE} --max_iters 6 --out plain.pt"));
    let flags = "--teacher_quant int8 --min_lr 0.01 --warmup_iters 0";
    let (_, err) = succeed(folder, &format!("{LINE} --max_iters 6 --out whole.pt {flags}"));
    assert!(err.contains("3 layers, 2 heads, width 16, context 16, vocabulary 97, int8\n"), "{err}");
    assert_eq!(load(folder, "whole.pt").meta.training["distill"]["teacher_quant"], "int8");
    let divergence = |run: &str, step: usize| metrics(folder, run)[step]["divergence"].as_f64().unwrap();
    let (plain, int8) = (divergence("plain.run", 1), divergence("whole.run", 1));
    assert!((int8 / plain - 1.0).abs() < 0.02 && int8 != plain, "expected about {plain}, got {int8}");

    // A resumed run knows its teacher's quantization.
    succeed(folder, &format!("{LINE} --max_iters 3 --out part.pt {flags}"));
    succeed(folder, "distill --teacher_model_path teacher.pt --data data.bin --resume --out part.pt --max_iters 6");
    assert_eq!(divergence("part.run", 6), divergence("whole.run", 6));

    // Its cache is not mixed with that of the exact teacher.
    let cached = format!("{LINE} --max_iters 2 --teacher_cache said --teacher_top_k 90 --overwrite --out x.pt");
    let (_, err) = succeed(folder, &format!("{cached} --teacher_quant int8"));
    let (with, without) = compared(&err);
    assert!((with / without - 1.0).abs() < 1e-3, "{err}");
    let files = cache_files(&folder.join("said"));
    let (_, error) = texts(&run(folder, &cached), 1);
    let error = error.lines().last().unwrap();
    assert!(error.starts_with("error: said/cache.json: not for this run") && error.contains("in int8"), "{error}");
    assert_eq!(cache_files(&folder.join("said")), files);
    let (_, error) = texts(&run(folder, &format!("{LINE} --teacher_quant int3")), 2);
    assert!(error.contains("[possible values: none, int8, int4]"), "{error}");

    // Weights of 4 bits teach less well than those of 8.
    let (_, err) = succeed(folder, &format!("{LINE} --max_iters 1 --out four.pt --teacher_quant int4"));
    assert!(err.contains("vocabulary 97, int4\n"), "{err}");
    let int4 = divergence("four.run", 1);
    assert!((int4 / plain - 1.0).abs() < 0.3 && int4 != plain && int4 != int8, "expected about {plain}, got {int4}");
}

/// The files of a cache, by name.
fn cache_files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

/// Parses the cache line: the divergence with the cache, and without.
fn compared(output: &str) -> (f64, f64) {
    let line = output.lines().find(|line| line.starts_with("cache: ")).unwrap_or_else(|| panic!("{output}"));
    let (_, numbers) = line.split_once("divergence ").unwrap();
    let (with, without) = numbers.split_once(" with the cache, ").unwrap();
    (with.parse().unwrap(), without.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn a_cache_is_made_once_and_serves_other_students() {
    let folder = folder();
    let folder = folder.path();
    let cached = |k: usize, more: &str| {
        let line =
            format!("{LINE} --max_iters 3 --teacher_cache said{k} --teacher_top_k {k} --out x.pt --overwrite{more}");
        succeed(folder, &line).1
    };
    // With one token outside the top k, the cache is exact.
    let (with, without) = compared(&cached(96, ""));
    assert!((with - without).abs() < 2e-4, "expected {without}, got {with}");
    let (with, without) = compared(&cached(5, ""));
    assert!(with < without - 1e-3 && with > 0.0, "{with} of 5 tokens, {without} of all");

    let before = cache_files(&folder.join("said5"));
    let modified = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let times: Vec<_> = before.iter().map(|(path, _)| modified(path)).collect();
    cached(5, " --seed 9 --alpha 0.9");
    assert_eq!(before.iter().map(|(path, _)| modified(path)).collect::<Vec<_>>(), times, "nothing is computed again");

    // A missing file is computed again, with the same contents; a truncated one is an error.
    let windows = folder.join("said5/windows-00000.bin");
    fs::remove_file(&windows).unwrap();
    cached(5, "");
    assert_eq!(cache_files(&folder.join("said5")), before);
    let bytes = fs::read(&windows).unwrap();
    fs::write(&windows, &bytes[..bytes.len() - 1]).unwrap();
    let refused = |line: &str| {
        let output: Output = run(folder, line);
        let (_, err) = texts(&output, 1);
        err.lines().last().unwrap().to_owned()
    };
    let line = format!("{LINE} --teacher_cache said5 --teacher_top_k 5 --out x.pt --overwrite");
    let error = refused(&line);
    assert!(error.contains("windows-00000.bin: expected ") && error.contains("delete the file"), "{error}");
    // The ids come first: one beyond the vocabulary.
    fs::write(&windows, [&[0xff, 0xff], &bytes[2..]].concat()).unwrap();
    assert!(refused(&line).contains("damaged"), "{}", refused(&line));
    fs::write(&windows, &bytes).unwrap();
    for (more, expected) in [
        ("--temperature 3", "expected temperature 3.0, got 2.0"),
        ("--block_size 4", "expected block_size 4, got 8"),
        ("--val_fraction 0.2", "expected train_tokens 3200, got 3600"),
    ] {
        let error = refused(&format!("{line} {more}"));
        assert!(error.contains(expected) && error.contains("choose another --teacher_cache"), "{error}");
    }
    // The cache records its dtype; older ones do not.
    let json = folder.join("said5/cache.json");
    let about = fs::read_to_string(&json).unwrap();
    let ours = about.lines().find(|line| line.contains("\"dtype\"")).unwrap();
    fs::write(&json, about.replace(ours, "  \"dtype\": \"f64\",")).unwrap();
    let err = cached(5, "");
    assert!(err.contains("note: said5 was cached in f64; this run computes in "), "{err}");
    fs::remove_file(&windows).unwrap();
    fs::write(&json, about.replace(&format!("{ours}\n"), "")).unwrap();
    assert!(!cached(5, "").contains("note: said5"));
    assert!(fs::read(&windows).unwrap() == bytes);
    fs::write(&json, "[]").unwrap();
    assert!(refused(&line).contains("cache.json: expected JSON of a teacher cache"));
}

#[test]
fn bad_input_is_one_clear_line_and_changes_nothing() {
    let folder = folder();
    let folder = folder.path();
    let toml = |from: &str, to: &str| format!("{}max_iters = 0\n", TEACHER.replace(from, to));
    fs::write(folder.join("wide.toml"), toml("vocabulary = 97", "vocabulary = 98")).unwrap();
    fs::write(folder.join("short.toml"), toml("block = 16", "block = 4")).unwrap();
    for name in ["wide", "short"] {
        succeed(folder, &format!("train --config {name}.toml --data data.bin --out {name}.pt"));
    }
    let before = contents(folder);
    let line = |more: &str| format!("distill --config student.toml --data data.bin {more}");
    let cases = [
        ("--teacher_model_path none.pt", "none.pt"),
        ("--teacher_model_path data.bin", "data.bin"),
        ("--teacher_model_path wide.pt", "wide.pt cannot be the teacher: its vocabulary has 98 tokens"),
        ("--teacher_model_path short.pt", "its context length is 4, the student's 8; give the student"),
        ("--teacher_model_path hf", "hf: no variant for the GPT-2 size: expected 120M (openai-community/gpt2"),
        (
            "--teacher_model_path teacher.pt --teacher_variant 7M",
            "teacher.pt: expected 7M (7,242,624 parameters) with ",
        ),
        ("--teacher_model_path teacher.pt --temperature 0", "temperature: expected between 0.1 and 100, got 0"),
        ("--teacher_model_path teacher.pt --temperature 1e-20", "expected between 0.1 and 100"),
        ("--teacher_model_path teacher.pt --temperature 1e20", "expected between 0.1 and 100"),
        ("--teacher_model_path teacher.pt --temperature -1", "100, got -1"),
        ("--teacher_model_path teacher.pt --temperature nan", "100, got NaN"),
        ("--teacher_model_path teacher.pt --alpha 1.5", "alpha: expected between 0 and 1, got 1.5"),
        (
            "--teacher_model_path teacher.pt --teacher_cache c --divergence reverse_kl",
            "supports only --divergence forward_kl",
        ),
        ("--teacher_model_path teacher.pt --teacher_cache c --teacher_top_k 97", "vocabulary size of 97, got 97"),
        ("--teacher_model_path teacher.pt --teacher_cache c --teacher_top_k 0", "teacher_top_k: expected at least 1"),
        ("--teacher_model_path teacher.pt --init_student from-teacher-layers", "n_embd is 16, not 8"),
        ("--teacher_model_path teacher.pt --init_student teacher.pt", "n_layer is 3, not 1"),
        ("--teacher_model_path teacher.pt --resume", "nothing to resume: "),
        ("--teacher_model_path teacher.pt --out ./teacher.pt --overwrite", "teacher.pt is the teacher"),
    ];
    for (flags, expected) in cases {
        let complaint = fail(folder, &line(flags), 1);
        assert!(complaint.contains(expected), "{flags}: {complaint}");
        assert_eq!(contents(folder), before, "{flags}");
    }
    let complaint = fail(folder, "distill --teacher_model_path teacher.pt --data data.bin", 1);
    assert!(complaint.contains("no model given: expected --student_variant"), "{complaint}");
    for flags in
        ["--teacher_model_path teacher.pt --divergence chi", "--teacher_model_path teacher.pt --teacher_top_k 5"]
    {
        let (_, err) = texts(&run(folder, &line(flags)), 2);
        assert!(err.starts_with("error: "), "{flags}: {err}");
    }
    assert_eq!(contents(folder), before);
}

#[test]
fn a_teacher_with_another_tokenizer_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let small = "n_layer = 1\nn_head = 1\nn_embd = 8\nblock_size = 16\nmax_iters = 0\n";
    fs::write(folder.join("small.toml"), small).unwrap();
    for (name, text) in [("a", "builtin:shakespeare"), ("b", "b.txt")] {
        let words: String = (0..3_000).map(|i| format!("{} ", i * i % 1_000)).collect();
        fs::write(folder.join("b.txt"), words).unwrap();
        succeed(folder, &format!("tokenizer train --txt {text} --vocab_size 280 --out {name}.json"));
        succeed(folder, &format!("tokenize --dataset {name} --txt {text} --tokenizer {name}.json"));
        succeed(folder, &format!("train --config small.toml --data _data_{name}_/data.bin --out {name}.pt"));
    }
    let line = "distill --teacher_model_path a.pt --config small.toml --max_iters 1 --eval_iters 1 --data";
    let complaint = fail(folder, &format!("{line} _data_b_/data.bin"), 1);
    assert!(
        complaint.contains("a.pt cannot be the teacher: its tokenizer is not the one that made _data_b_/data.bin"),
        "{complaint}"
    );
    succeed(folder, &format!("{line} _data_a_/data.bin"));
    succeed(folder, "export --model_path distilled_small_model.pt --output_dir student");
    let card = fs::read_to_string(folder.join("student/README.md")).unwrap();
    assert!(card.contains("| distill: temperature | 2.0 |"), "{card}");
    // A Hugging Face folder teaches as well.
    succeed(folder, "export --model_path a.pt --output_dir a_folder");
    let folder_line = line.replace("a.pt", "a_folder");
    succeed(folder, &format!("{folder_line} _data_a_/data.bin --out y.pt"));
    assert_eq!(load(folder, "y.pt").params, load(folder, "distilled_small_model.pt").params);
}

#[test]
fn an_interrupted_run_says_how_to_go_on() {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Command, Stdio};
    let folder = folder();
    let folder = folder.path();
    let line = format!("{LINE} --max_iters 100000 --warmup_iters 0 --teacher_cache said --log_interval 20");
    let mut child = ngen3(folder, &line).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut text = String::new();
    while !text.contains("step 20/") {
        assert_ne!(stderr.read_line(&mut text).unwrap(), 0, "{text}");
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    stderr.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{text}");
    let said = text.lines().find(|line| line.contains(": saved after step")).unwrap_or_else(|| panic!("{text}"));
    let (_, command) = said.split_once("; resume with: ").unwrap();
    let done = load(folder, "distilled_student_model.pt").meta.iter_num;
    let command = format!("{command} --max_iters {}", done + 2);
    texts(&Command::new("sh").args(["-c", &command]).current_dir(folder).output().unwrap(), 0);
    assert_eq!(load(folder, "distilled_student_model.pt").meta.iter_num, done + 2);
}
