//! Runs a program and sees each of its system calls on the files of one folder, by `ptrace`.
//!
//! [`run`] stops the program before and after each such call ([`Call`]) and asks a [`Watch`] what shall happen: let it pass, fail
//! it with an error number, make it transfer fewer bytes, or kill the program there. Calls are counted over all threads, so
//! that "the 17th call" is the same one in every run of a program with one writing thread.
//!
//! `strace --inject` cannot do this: its `when=` counts each thread for itself, and its `retval=` returns a short count without
//! transferring those bytes. A preloaded library misses calls that do not go through the C library. This tracer needs Linux on
//! x86_64; elsewhere the campaigns that need it are skipped aloud.

mod call;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod linux;
mod watch;

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::Result;

pub use call::{Call, Kind};
pub use watch::{Action, End, PATIENCE, Watch};

/// Returns true where programs can be traced: on Linux on x86_64, unless a container forbids it.
pub fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        struct Nothing;
        impl Watch for Nothing {
            fn before(&mut self, _: &Call) -> Action {
                Action::Pass
            }
        }
        let mut command = Command::new("true");
        for name in ["CAMPAIGN_IN", "CAMPAIGN_OUT", "CAMPAIGN_ERR"] {
            command.env(name, "/dev/null");
        }
        match run(command, Path::new("/dev/null"), &mut Nothing) {
            Ok(end) => end == End::Code(0),
            Err(error) => {
                println!("note: {error:#}");
                false
            }
        }
    })
}

/// Runs a command, whose standard streams are the files that its environment names (CAMPAIGN_IN, CAMPAIGN_OUT, CAMPAIGN_ERR), and reports the calls on files below `folder`.
///
/// # Errors
/// If the program cannot be started or traced.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub fn run(command: Command, folder: &Path, watch: &mut dyn Watch) -> Result<End> {
    linux::run(command, folder, watch)
}

/// As above, where it cannot be done.
///
/// # Errors
/// Always.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub fn run(_: Command, _: &Path, _: &mut dyn Watch) -> Result<End> {
    anyhow::bail!("programs can be traced on Linux on x86_64 only")
}

#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
mod tests {
    use std::fs;

    use super::*;

    /// Does something at the n-th call that changes files.
    struct At(usize, Action, Vec<&'static str>);

    impl Watch for At {
        fn before(&mut self, call: &Call) -> Action {
            if !call.changes() {
                return Action::Pass;
            }
            self.2.push(call.name());
            if self.2.len() == self.0 { self.1 } else { Action::Pass }
        }
    }

    /// One test, since waiting for a traced program waits for any child.
    #[test]
    fn a_call_is_counted_failed_shortened_or_the_last_one() {
        if !is_available() {
            println!("SKIPPED: programs cannot be traced here");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let file = folder.join("a");
        let run = |at: usize, action: Action| {
            let _ = fs::remove_file(&file);
            let mut command = Command::new("sh");
            command.args(["-c", "printf hello > a && mv a b && mv b a"]).current_dir(&folder);
            for name in ["CAMPAIGN_IN", "CAMPAIGN_OUT", "CAMPAIGN_ERR"] {
                command.env(name, "/dev/null");
            }
            let mut watch = At(at, action, Vec::new());
            let end = super::run(command, &folder, &mut watch).unwrap();
            (end, watch.2, fs::read_to_string(&file).ok())
        };
        let hello = |text: &str| Some(text.to_owned());
        let (end, calls, text) = run(0, Action::Pass);
        assert_eq!((end, text), (End::Code(0), hello("hello")));
        assert_eq!(calls, ["create", "write", "rename", "rename"]);
        let (end, calls, text) = run(2, Action::Fail(28));
        assert!(end != End::Code(0) && calls.len() == 2, "a full disk: {end:?}, {calls:?}");
        assert_eq!(text, hello(""));
        let (end, calls, text) = run(2, Action::Shorten(1));
        assert_eq!((end, text), (End::Code(0), hello("hello")), "the rest is written by another call");
        assert_eq!(calls.iter().filter(|&&name| name == "write").count(), 2);
        assert_eq!(run(1, Action::KillBefore), (End::Signal(9), vec!["create"], None));
        assert_eq!(run(1, Action::KillAfter), (End::Signal(9), vec!["create"], hello("")));
        assert_eq!(run(2, Action::KillWithin), (End::Signal(9), vec!["create", "write"], hello("he")));
    }
}
