//! Training runs that are interrupted, resumed, or run at the same time.

use common::interrupt_at;

use super::*;

/// Starts a run and reads stderr until it has logged step 20.
fn start(mut command: Command) -> (Child, BufReader<impl Read + use<>>) {
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut text = String::new();
    while !text.contains("step 20/") {
        assert_ne!(stderr.read_line(&mut text).unwrap(), 0, "{text}");
    }
    (child, stderr)
}

#[test]
fn a_second_signal_at_once_is_the_same_request() {
    let folder = folder();
    let folder = folder.path();
    // As `timeout` does: the process, then its group.
    let (mut child, mut stderr) =
        start(ngen3(folder, "train --config tiny.toml --data data.bin --max_iters 1000000 --out m.pt"));
    let kill = format!("kill -TERM {0}; kill -TERM {0}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let mut text = String::new();
    stderr.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{text}");
    assert!(text.contains("m.pt: saved after step "), "{text}");
    assert!(load(folder, "m.pt").meta.iter_num >= 20);
}

#[test]
fn two_runs_do_not_write_the_same_files() {
    let folder = folder();
    let folder = folder.path();
    let line = "train --config tiny.toml --data data.bin --max_iters 1000000 --out m.pt";
    let (mut child, _stderr) = start(ngen3(folder, line));
    for flag in ["--overwrite", "--resume"] {
        let complaint = fail(folder, &format!("{line} {flag}"), 1);
        assert!(complaint.contains("another run is training m.pt") && complaint.contains("--out"), "{complaint}");
    }
    // A killed run holds no lock.
    child.kill().unwrap();
    child.wait().unwrap();
    succeed(folder, "train --config tiny.toml --data data.bin --max_iters 1 --out m.pt --overwrite");
    assert_eq!(load(folder, "m.pt").meta.iter_num, 1);
}

#[test]
fn an_interrupted_run_saves_says_how_to_go_on_and_goes_on_bit_for_bit() {
    let line = "train --config tiny.toml --data data.bin --max_iters 3000 --eval_interval 1000 --dropout 0.1 \
                --gradient_accumulation 2";
    let whole = folder();
    succeed(whole.path(), line);
    for signal in ["INT", "TERM"] {
        let parts = folder();
        let (mut child, mut stderr) = start(ngen3(parts.path(), line));
        let kill = format!("kill -{signal} {}", child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{text}");
        let stopped = load(parts.path(), "tiny_model.pt").meta.iter_num;
        assert!((20..3_000).contains(&stopped), "{stopped}");
        let said = text.lines().find(|line| line.contains(": saved after step")).unwrap();
        let (_, command) = said.split_once("; resume with: ").unwrap();
        assert!(command.ends_with("train --data data.bin --out tiny_model.pt --resume"), "{command}");

        let resumed = Command::new("sh").args(["-c", command]).current_dir(parts.path()).output().unwrap();
        texts(&resumed, 0);
        assert_eq!(metrics(parts.path(), "tiny_model.run"), metrics(whole.path(), "tiny_model.run"), "{signal}");
        let bytes = |folder: &TempDir| fs::read(folder.path().join("tiny_model.pt")).unwrap();
        assert!(bytes(&parts) == bytes(&whole), "the models differ after {signal}");
    }
}

/// A closed terminal or a dropped connection.
#[cfg(target_os = "linux")]
#[test]
fn a_hangup_saves_the_run_but_for_one_that_is_to_outlive_it() {
    // Tests that run under `nohup` pass it on.
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    if u64::from_str_radix(ignored, 16).unwrap() & 1 == 1 {
        return;
    }
    let folder = folder();
    let folder = folder.path();
    let hang_up = |child: &Child| {
        assert!(Command::new("kill").args(["-HUP", &child.id().to_string()]).status().unwrap().success());
    };
    let line = "train --config tiny.toml --data data.bin --max_iters 1000000 --out m.pt";
    let (mut child, mut stderr) = start(ngen3(folder, line));
    hang_up(&child);
    let mut text = String::new();
    stderr.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{text}");
    assert!(text.contains("m.pt: saved after step "), "{text}");

    // Started as `nohup` does.
    let program = env!("CARGO_BIN_EXE_ngen3");
    let script = format!("trap '' HUP; exec '{program}' {}", line.replace("1000000", "2000").replace("m.pt", "n.pt"));
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(folder);
    let (mut child, mut stderr) = start(command);
    hang_up(&child);
    stderr.read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
    assert_eq!(load(folder, "n.pt").meta.iter_num, 2_000);
}

#[test]
fn a_signal_within_an_evaluation_is_answered_before_its_end() {
    let folder = folder();
    let folder = folder.path();
    // An evaluation that takes years.
    let endless = "--eval_iters 1000000000000";
    let line = |out: &str| format!("train --config tiny.toml --data data.bin --out {out}.pt");
    let text = interrupt_at(ngen3(folder, &format!("{} {endless}", line("a"))), "\nrun: ");
    assert!(text.contains("a.pt: saved after step 0; resume with: "), "{text}");
    for out in ["a", "b"] {
        let resume = if out == "a" { " --resume" } else { "" };
        succeed(folder, &format!("{} --max_iters 3 --eval_iters 2{resume}", line(out)));
    }

    let more = "--resume --max_iters 30 --eval_interval 20";
    let text = interrupt_at(ngen3(folder, &format!("{} {more} {endless}", line("a"))), "step 20/30");
    assert!(text.contains("a.pt: saved after step 20; resume with: "), "{text}");
    for out in ["a", "b"] {
        let (_, err) = succeed(folder, &format!("{} {more} --eval_iters 2", line(out)));
        assert!(err.contains("\nstep 20: validation loss "), "{err}");
    }
    assert_eq!(metrics(folder, "a.run"), metrics(folder, "b.run"));
    assert!(fs::read(folder.join("a.pt")).unwrap() == fs::read(folder.join("b.pt")).unwrap(), "the models differ");
}
