//! Ranks that `mpirun` or `srun` started, on the machine's MPI library.

use std::sync::{Mutex, PoisonError};

use mpi::Threading;
use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::point_to_point::{Destination, Source, send_receive_into};
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::CommunicatorCollectives;

use crate::World;

/// Variables that launchers set in each rank: Open MPI, MPICH and Intel MPI (PMI), Slurm with PMIx.
const LAUNCHED: [&str; 4] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "PMIX_RANK"];

/// A rank of MPI's world.
pub struct Mpi {
    /// Open until [`Mpi::finish`].
    universe: Mutex<Option<Universe>>,
}

/// Joins the ranks that a launcher started; `None` in a process that no launcher started.
pub fn start() -> Option<Mpi> {
    if !LAUNCHED.iter().any(|name| std::env::var_os(name).is_some()) {
        return None;
    }
    // Commands call MPI from the main thread, and compute on others.
    let (universe, _) = mpi::initialize_with_threading(Threading::Funneled)?;
    Some(Mpi { universe: Mutex::new(Some(universe)) })
}

impl Mpi {
    /// Leaves the world, once all ranks do.
    pub fn finish(&self) {
        self.universe.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

fn world() -> SimpleCommunicator {
    SimpleCommunicator::world()
}

impl World for Mpi {
    fn rank(&self) -> usize {
        world().rank() as usize
    }

    fn size(&self) -> usize {
        world().size() as usize
    }

    fn exchange(&self, send: Option<(usize, &[u8])>, receive: Option<(usize, &mut [u8])>) {
        let world = world();
        let at = |rank: usize| world.process_at_rank(rank as i32);
        match (send, receive) {
            (Some((to, sent)), Some((from, received))) => {
                send_receive_into(sent, &at(to), received, &at(from));
            }
            (Some((to, sent)), None) => at(to).send(sent),
            (None, Some((from, received))) => {
                at(from).receive_into(received);
            }
            (None, None) => {}
        }
    }

    fn gather(&self, own: &[u8]) -> Vec<Vec<u8>> {
        let world = world();
        let mut lengths = vec![0i32; self.size()];
        world.all_gather_into(&(own.len() as i32), &mut lengths[..]);
        let starts: Vec<i32> = lengths
            .iter()
            .scan(0, |end, length| {
                *end += length;
                Some(*end - length)
            })
            .collect();
        let mut all = vec![0u8; lengths.iter().map(|&length| length as usize).sum()];
        world.all_gather_varcount_into(own, &mut PartitionMut::new(&mut all[..], &lengths[..], &starts[..]));
        let part = |(&start, &length): (&i32, &i32)| all[start as usize..][..length as usize].to_vec();
        starts.iter().zip(&lengths).map(part).collect()
    }

    fn abort(&self, code: i32) -> ! {
        world().abort(code)
    }
}
