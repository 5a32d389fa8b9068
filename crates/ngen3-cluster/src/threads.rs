//! [`Threads`]: ranks as threads of one process, which need no MPI.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::World;

/// A rank that is a thread. Messages are copied through channels.
pub struct Threads {
    rank: usize,
    /// To each rank.
    to: Vec<Sender<Vec<u8>>>,
    /// From each rank.
    from: Vec<Mutex<Receiver<Vec<u8>>>>,
}

impl Threads {
    /// Creates the ranks of a world of `size`.
    fn world(size: usize) -> Vec<Self> {
        let mut ranks: Vec<_> = (0..size).map(|rank| Self { rank, to: Vec::new(), from: Vec::new() }).collect();
        for from in 0..size {
            for to in 0..size {
                let (sender, receiver) = channel();
                ranks[from].to.push(sender);
                ranks[to].from.push(Mutex::new(receiver));
            }
        }
        ranks
    }

    /// Runs a function on every rank of a world of `size`, each on its thread; returns the results in the order of the ranks.
    ///
    /// # Panics
    /// If one of them does.
    pub fn run<T: Send>(size: usize, function: impl Fn(Arc<Self>) -> T + Sync) -> Vec<T> {
        let (ranks, function) = (Self::world(size), &function);
        std::thread::scope(|scope| {
            // Each thread owns its rank: if it panics, those that wait for it end too.
            let threads: Vec<_> = ranks.into_iter().map(|rank| scope.spawn(move || function(Arc::new(rank)))).collect();
            threads.into_iter().map(|thread| thread.join().expect("the rank ends without a panic")).collect()
        })
    }

    fn send(&self, to: usize, bytes: Vec<u8>) {
        self.to[to].send(bytes).expect("the other rank still runs");
    }

    fn receive(&self, from: usize) -> Vec<u8> {
        let receiver = self.from[from].lock().unwrap_or_else(PoisonError::into_inner);
        receiver.recv().expect("the other rank still runs")
    }
}

impl World for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn exchange(&self, send: Option<(usize, &[u8])>, receive: Option<(usize, &mut [u8])>) {
        if let Some((to, bytes)) = send {
            self.send(to, bytes.to_vec());
        }
        if let Some((from, bytes)) = receive {
            bytes.copy_from_slice(&self.receive(from));
        }
    }

    fn gather(&self, own: &[u8]) -> Vec<Vec<u8>> {
        (0..self.size()).for_each(|to| self.send(to, own.to_vec()));
        (0..self.size()).map(|from| self.receive(from)).collect()
    }

    fn abort(&self, code: i32) -> ! {
        std::process::exit(code)
    }
}
