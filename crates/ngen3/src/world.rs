//! The ranks that this process trains with: itself alone, unless `mpirun` or `srun` started several.
//!
//! Rank 0 speaks for all: the others print only an error of their own, under their name.

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::bail;
#[cfg(feature = "mpi")]
use ngen3_cluster::Slow;
use ngen3_cluster::{Single, World, sums};

use crate::interrupt::Interrupted;

static WORLD: OnceLock<Arc<dyn World>> = OnceLock::new();

/// Returns the ranks of this program.
pub fn world() -> Arc<dyn World> {
    Arc::clone(WORLD.get_or_init(|| Arc::new(Single)))
}

/// Returns `true` if another rank prints.
pub fn is_quiet() -> bool {
    WORLD.get().is_some_and(|world| !world.is_root())
}

/// Variable with the speed of a slower network to imitate between ranks: Gbit/s and microseconds of latency.
#[cfg(feature = "mpi")]
const NETWORK: &str = "NGEN3_NETWORK";

/// Time that a rank with an error of its own leaves to rank 0, which may have the same.
const AFTER_ROOT: Duration = Duration::from_secs(3);

/// Membership in the world, to be left at the end of the program.
pub struct Joined {
    #[cfg(feature = "mpi")]
    mpi: Option<Arc<ngen3_cluster::mpi::Mpi>>,
}

/// Joins the ranks that a launcher started, if one did.
///
/// # Errors
/// If several were started of a program without MPI.
pub fn join() -> anyhow::Result<Joined> {
    #[cfg(feature = "mpi")]
    {
        let mpi = ngen3_cluster::mpi::start().map(Arc::new);
        if let Some(mpi) = &mpi {
            let mut world = Arc::clone(mpi) as Arc<dyn World>;
            if let Ok(link) = std::env::var(NETWORK) {
                let link = link.parse().map_err(|error| anyhow::anyhow!("{NETWORK}: {error}"))?;
                world = Arc::new(Slow::new(world, link));
            }
            let _ = WORLD.set(world);
            #[cfg(target_os = "linux")]
            cores::divide(&**mpi);
        }
        Ok(Joined { mpi })
    }
    #[cfg(not(feature = "mpi"))]
    {
        let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<usize>().ok());
        let launched = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"].into_iter().find_map(number).unwrap_or(1);
        if launched > 1 {
            if ["OMPI_COMM_WORLD_RANK", "PMI_RANK"].into_iter().find_map(number).unwrap_or(0) > 0 {
                std::process::exit(1);
            }
            bail!(
                "this ngen3 was built without MPI; for {launched} ranks build it with: cargo build --release --features mpi"
            );
        }
        Ok(Joined {})
    }
}

impl Joined {
    /// Ends the program with this code, together with all ranks.
    pub fn leave(self, code: ExitCode) -> ExitCode {
        #[cfg(feature = "mpi")]
        if let Some(mpi) = self.mpi {
            mpi.finish();
        }
        code
    }
}

/// Ends all ranks because of an error that this one has; does nothing if it is alone.
pub fn fail(line: &str) {
    let world = world();
    if world.size() == 1 {
        return;
    }
    if !world.is_root() {
        std::thread::sleep(AFTER_ROOT);
        eprintln!("rank {}{}: {line}", world.rank(), host().map(|host| format!(" on {host}")).unwrap_or_default());
    }
    // The launcher may be ending the job already, because of the error of another rank.
    let _ = crate::threads::spawn(|| {
        std::thread::sleep(AFTER_ROOT);
        std::process::exit(1);
    });
    world.abort(1)
}

/// Runs a function on rank 0, for which the other ranks wait; returns its result there, `None` on the others.
///
/// # Errors
/// Those of the function; [`Interrupted`] on all ranks if it was interrupted.
pub fn on_root<T>(function: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<Option<T>> {
    let world = world();
    let result = world.is_root().then(function).transpose();
    match &result {
        // Ends all ranks.
        Err(error) if !error.is::<Interrupted>() => return result,
        _ => {}
    }
    if sums::any(&*world, result.is_err()) && result.is_ok() {
        return Err(Interrupted.into());
    }
    result
}

/// Fails if several ranks were started for a command, or with a flag, that is for one process.
///
/// # Errors
/// Says so.
pub fn only_alone(what: &str) -> anyhow::Result<()> {
    if world().size() > 1 {
        bail!("{what} is for one process: start it without mpirun");
    }
    Ok(())
}

/// Name of this machine.
fn host() -> Option<String> {
    #[cfg(target_os = "linux")]
    return Some(rustix::system::uname().nodename().to_string_lossy().into_owned());
    #[cfg(not(target_os = "linux"))]
    None
}

#[cfg(all(feature = "mpi", target_os = "linux"))]
mod cores {
    //! Division of a machine's cores among the ranks on it.

    use ngen3_cluster::World;
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    /// Divides cores that the launcher gave to several ranks: each takes its part, so that they do not wait for each other. Does nothing
    /// where each rank has cores of its own, as with `mpirun --bind-to core`.
    pub fn divide(world: &dyn World) {
        let Ok(all) = sched_getaffinity(None) else { return };
        let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| all.is_set(core)).collect();
        let own = format!("{} {cores:?}", super::host().unwrap_or_default());
        let ranks = world.gather(own.as_bytes());
        let same = |ranks: &[Vec<u8>]| ranks.iter().filter(|theirs| **theirs == own.as_bytes()).count();
        let (before, sharing) = (same(&ranks[..world.rank()]), same(&ranks));
        if sharing == 1 {
            return;
        }
        let mut some = CpuSet::new();
        part(cores.len(), before, sharing).for_each(|i| some.set(cores[i]));
        // Without the right to, all ranks use all cores: slower, but right.
        let _ = sched_setaffinity(None, &some);
    }

    /// Returns the cores, of `count`, of rank `index` of `ranks`: nearly as many for each, at least one.
    fn part(count: usize, index: usize, ranks: usize) -> std::ops::Range<usize> {
        if ranks > count {
            return index % count..index % count + 1;
        }
        index * count / ranks..(index + 1) * count / ranks
    }

    #[cfg(test)]
    mod tests {
        use super::part;

        #[test]
        fn each_rank_has_cores_and_none_is_left() {
            let of = |count, ranks| (0..ranks).map(|index| part(count, index, ranks)).collect::<Vec<_>>();
            assert_eq!(of(5, 2), [0..2, 2..5]);
            assert_eq!(of(8, 4), [0..2, 2..4, 4..6, 6..8]);
            assert_eq!(of(2, 3), [0..1, 1..2, 0..1]);
        }
    }
}
