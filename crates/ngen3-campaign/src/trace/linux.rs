//! The tracer: `ptrace` on Linux, x86_64.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::call::{Call, Kind};
use super::watch::{Action, End, PATIENCE, Watch};

/// Longest path that is read.
const PATH_BYTES: usize = 4096;

/// A call between its entry and its exit.
struct Entered {
    call: Call,
    action: Action,
}

/// Kills a program that hangs.
struct Watchdog {
    /// Dropping it ends the wait.
    _ended: Sender<()>,
}

impl Watchdog {
    fn start(pid: Pid) -> Self {
        let (ended, wait) = mpsc::channel::<()>();
        thread::spawn(move || {
            if wait.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                // It may have ended just now.
                let _ = kill(pid, Signal::SIGKILL);
            }
        });
        Self { _ended: ended }
    }
}

/// As [`super::run`].
pub fn run(command: Command, folder: &Path, watch: &mut dyn Watch) -> Result<End> {
    let root = start(command)?;
    let _watchdog = Watchdog::start(root);
    let mut entered: HashMap<Pid, Entered> = HashMap::new();
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL)).context("cannot wait for the program")? {
            WaitStatus::Exited(pid, code) if pid == root => return Ok(End::Code(code)),
            WaitStatus::Signaled(pid, signal, _) if pid == root => return Ok(End::Signal(signal as i32)),
            WaitStatus::PtraceSyscall(pid) => {
                // Fails for a thread that was killed meanwhile.
                let Ok(info) = ptrace::syscall_info(pid) else { continue };
                if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
                    if let Some(call) = decode(pid, folder) {
                        let action = watch.before(&call);
                        let action = before(pid, root, action, &call)?;
                        entered.insert(pid, Entered { call, action });
                    }
                } else if let Some(Entered { call, action }) = entered.remove(&pid) {
                    after(pid, root, &call, action, watch)?;
                }
                proceed(pid, None)?;
            }
            WaitStatus::Stopped(pid, signal) => proceed(pid, Some(signal))?,
            WaitStatus::PtraceEvent(pid, ..) => proceed(pid, None)?,
            _ => {}
        }
    }
}

/// Starts the program and stops it before its first instruction.
fn start(command: Command) -> Result<Pid> {
    // A shell stops itself before it becomes the program, so that nothing is missed.
    let mut words = vec![command.get_program().to_owned()];
    words.extend(command.get_args().map(ToOwned::to_owned));
    let mut shell = Command::new("sh");
    shell.args([
        "-c",
        "exec <\"$CAMPAIGN_IN\" >\"$CAMPAIGN_OUT\" 2>\"$CAMPAIGN_ERR\"; kill -STOP $$; exec \"$0\" \"$@\"",
    ]);
    shell.args(words).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        shell.current_dir(folder);
    }
    let child = shell.spawn().context("cannot start sh")?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).context("cannot wait for sh")?;
    ensure!(matches!(stopped, WaitStatus::Stopped(_, Signal::SIGSTOP)), "sh did not stop: {stopped:?}");
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options).context("cannot trace the program (ptrace)")?;
    kill(pid, Signal::SIGCONT).context("cannot continue the program")?;
    Ok(pid)
}

/// Lets a thread go on to its next call.
fn proceed(pid: Pid, signal: Option<Signal>) -> Result<()> {
    match ptrace::syscall(pid, signal) {
        // It was killed meanwhile.
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).context("cannot continue the program"),
    }
}

/// Prepares a call for its fate; returns what is left to do after it.
fn before(pid: Pid, root: Pid, action: Action, call: &Call) -> Result<Action> {
    let change = |change: &dyn Fn(&mut libc::user_regs_struct)| -> Result<()> {
        let mut registers = ptrace::getregs(pid).context("cannot read registers")?;
        change(&mut registers);
        ptrace::setregs(pid, registers).context("cannot set registers")
    };
    match (action, &call.kind) {
        // No call has this number: the system skips it.
        (Action::Fail(_), _) => change(&|registers| registers.orig_rax = u64::MAX)?,
        (Action::Shorten(most), _) => change(&|registers| registers.rdx = registers.rdx.min(most))?,
        (Action::KillWithin, Kind::Write { data, .. }) if data.len() > 1 => {
            change(&|registers| registers.rdx /= 2)?;
        }
        // Killed at its entry, a program does not make the call.
        (Action::KillBefore, _) => kill(root, Signal::SIGKILL).context("cannot kill the program")?,
        _ => {}
    }
    Ok(action)
}

fn after(pid: Pid, root: Pid, call: &Call, action: Action, watch: &mut dyn Watch) -> Result<()> {
    if let Action::Fail(error) = action {
        let mut registers = ptrace::getregs(pid).context("cannot read registers")?;
        registers.rax = (-i64::from(error)).cast_unsigned();
        return ptrace::setregs(pid, registers).context("cannot set registers");
    }
    let Ok(registers) = ptrace::getregs(pid) else { return Ok(()) };
    watch.after(call, registers.rax.cast_signed());
    if matches!(action, Action::KillAfter | Action::KillWithin) {
        kill(root, Signal::SIGKILL).context("cannot kill the program")?;
    }
    Ok(())
}

/// Reads a call at its entry. `None` for calls on other files.
fn decode(pid: Pid, folder: &Path) -> Option<Call> {
    let registers = ptrace::getregs(pid).ok()?;
    let args = [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8];
    let number = registers.orig_rax.cast_signed();
    if let Some(len) = memory(number, args) {
        return Some(Call { kind: Kind::Memory { len }, path: PathBuf::new() });
    }
    let (path, kind) = file_call(pid, number, args)?;
    path.starts_with(folder).then_some(Call { kind, path })
}

/// Returns the bytes of a call that takes memory.
fn memory(number: i64, args: [u64; 5]) -> Option<u64> {
    let anonymous = args[3] & libc::MAP_ANONYMOUS as u64 != 0 && args[2] & libc::PROT_WRITE as u64 != 0;
    (number == libc::SYS_mmap && anonymous).then_some(args[1])
}

/// Reads a call on a file: the file and the kind.
fn file_call(pid: Pid, number: i64, args: [u64; 5]) -> Option<(PathBuf, Kind)> {
    const HERE: u64 = libc::AT_FDCWD as i64 as u64;
    let [a, b, c, d, e] = args;
    Some(match number {
        libc::SYS_open => opened(path_at(pid, HERE, a)?, b),
        libc::SYS_creat => opened(path_at(pid, HERE, a)?, (libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC) as u64),
        libc::SYS_openat => opened(path_at(pid, a, b)?, c),
        libc::SYS_read | libc::SYS_pread64 => (path_of(pid, a)?, Kind::Read { len: c }),
        libc::SYS_write => {
            let (path, at) = (path_of(pid, a)?, position(pid, a)?);
            (path, Kind::Write { at, data: bytes(pid, b, c)? })
        }
        libc::SYS_pwrite64 => (path_of(pid, a)?, Kind::Write { at: d, data: bytes(pid, b, c)? }),
        libc::SYS_ftruncate => (path_of(pid, a)?, Kind::Truncate { len: b }),
        libc::SYS_truncate => (path_at(pid, HERE, a)?, Kind::Truncate { len: b }),
        libc::SYS_fsync | libc::SYS_fdatasync => (path_of(pid, a)?, Kind::Sync),
        libc::SYS_rename => renamed(path_at(pid, HERE, a)?, path_at(pid, HERE, b)?, 0),
        libc::SYS_renameat => renamed(path_at(pid, a, b)?, path_at(pid, c, d)?, 0),
        libc::SYS_renameat2 => renamed(path_at(pid, a, b)?, path_at(pid, c, d)?, e),
        libc::SYS_unlink => (path_at(pid, HERE, a)?, Kind::Unlink),
        libc::SYS_rmdir => (path_at(pid, HERE, a)?, Kind::RemoveFolder),
        libc::SYS_unlinkat => {
            let folder = c & libc::AT_REMOVEDIR as u64 != 0;
            (path_at(pid, a, b)?, if folder { Kind::RemoveFolder } else { Kind::Unlink })
        }
        libc::SYS_mkdir => (path_at(pid, HERE, a)?, Kind::MakeFolder),
        libc::SYS_mkdirat => (path_at(pid, a, b)?, Kind::MakeFolder),
        libc::SYS_writev => (path_of(pid, a)?, Kind::Unknown { name: "writev" }),
        libc::SYS_pwritev => (path_of(pid, a)?, Kind::Unknown { name: "pwritev" }),
        libc::SYS_fallocate => (path_of(pid, a)?, Kind::Unknown { name: "fallocate" }),
        libc::SYS_copy_file_range => (path_of(pid, c)?, Kind::Unknown { name: "copy_file_range" }),
        libc::SYS_sendfile => (path_of(pid, a)?, Kind::Unknown { name: "sendfile" }),
        libc::SYS_splice => (path_of(pid, c)?, Kind::Unknown { name: "splice" }),
        libc::SYS_link => (path_at(pid, HERE, b)?, Kind::Unknown { name: "link" }),
        libc::SYS_linkat => (path_at(pid, c, d)?, Kind::Unknown { name: "linkat" }),
        libc::SYS_symlink => (path_at(pid, HERE, b)?, Kind::Unknown { name: "symlink" }),
        libc::SYS_symlinkat => (path_at(pid, b, c)?, Kind::Unknown { name: "symlinkat" }),
        libc::SYS_io_uring_setup => (process(pid, "cwd")?, Kind::Unknown { name: "io_uring_setup" }),
        _ => return None,
    })
}

fn opened(path: PathBuf, flags: u64) -> (PathBuf, Kind) {
    let has = |flag: i32| flags & flag as u64 != 0;
    let make = has(libc::O_CREAT) && !path.exists();
    let truncate = has(libc::O_TRUNC) && !make;
    (path, Kind::Open { make, folder: has(libc::O_DIRECTORY), truncate })
}

fn renamed(from: PathBuf, to: PathBuf, flags: u64) -> (PathBuf, Kind) {
    let exchange = flags & u64::from(libc::RENAME_EXCHANGE) != 0;
    (from, Kind::Rename { to, exchange })
}

/// Reads a path argument, relative to a folder's descriptor or to the working directory.
fn path_at(pid: Pid, descriptor: u64, address: u64) -> Option<PathBuf> {
    let mut found = vec![0; PATH_BYTES];
    let len = memory_of(pid)?.read_at(&mut found, address).ok()?;
    found.truncate(len);
    found.truncate(found.iter().position(|&byte| byte == 0)?);
    let path = Path::new(std::ffi::OsStr::from_bytes(&found));
    // A descriptor is an int in the low half of its register.
    let folder = match descriptor as i32 {
        libc::AT_FDCWD => process(pid, "cwd")?,
        _ if path.is_absolute() => PathBuf::new(),
        descriptor => process(pid, &format!("fd/{descriptor}"))?,
    };
    Some(folder.join(path).components().collect())
}

/// Returns the path of a descriptor.
fn path_of(pid: Pid, descriptor: u64) -> Option<PathBuf> {
    process(pid, &format!("fd/{}", descriptor as i32))
}

/// Returns the position at which a descriptor would write.
fn position(pid: Pid, descriptor: u64) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", descriptor as i32)).ok()?;
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let flags = u64::from_str_radix(field("flags:")?, 8).ok()?;
    if flags & libc::O_APPEND as u64 != 0 {
        return Some(fs::metadata(format!("/proc/{pid}/fd/{}", descriptor as i32)).ok()?.len());
    }
    field("pos:")?.parse().ok()
}

/// Reads a link of the process's folder.
fn process(pid: Pid, name: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/{name}")).ok()
}

fn memory_of(pid: Pid) -> Option<File> {
    File::open(format!("/proc/{pid}/mem")).ok()
}

fn bytes(pid: Pid, address: u64, len: u64) -> Option<Vec<u8>> {
    let mut found = vec![0; usize::try_from(len).ok()?];
    memory_of(pid)?.read_exact_at(&mut found, address).ok()?;
    Some(found)
}
