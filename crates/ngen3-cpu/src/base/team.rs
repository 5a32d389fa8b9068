//! Threads that wait for work without sleeping, for the many short products of a decoding step.
//!
//! A step of one token is a hundred products of some ten microseconds, which is also about the time to wake a sleeping thread. A
//! [`Team`] keeps its threads awake as long as a step lasts, and [`for_each`] shares tasks with them in a fraction of a
//! microsecond. They are not the threads of the pool: one of these may wait for another, and would wait for ever if the other
//! waited for the end of the step.

use std::cell::Cell;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rayon::prelude::*;

use ngen3_engine::Error;

/// Number of polls after which a waiting thread lets others of the system run: about 100 microseconds.
const POLLS: usize = 1 << 12;

thread_local! {
    /// Team that this thread leads; null outside [`Team::lead`].
    static LED: Cell<*const Shared> = const { Cell::new(std::ptr::null()) };
}

/// Threads that help another, their leader.
#[derive(Debug)]
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Counts the starts and the ends of work: odd while there is work to join.
    epoch: AtomicUsize,
    /// Threads that are working, or about to see that they are late.
    working: AtomicUsize,
    /// True during a step: threads do not sleep.
    awake: AtomicBool,
    /// True once the team is dropped.
    ended: AtomicBool,
    /// Set if a task panicked on a thread of the team.
    panicked: AtomicBool,
    /// Work of an odd epoch.
    work: Mutex<Option<Work>>,
}

/// The leader's closure, which takes tasks until none is left. It lives as long as a thread is working on it.
#[derive(Clone, Copy, Debug)]
struct Work(*const (dyn Fn() + Sync));

// SAFETY: the closure is Sync, and `Shared::share` returns only when no thread works on it.
unsafe impl Send for Work {}

impl Team {
    /// Starts the threads that help a leader, so that `threads` work together.
    ///
    /// # Errors
    /// [`Error::Threads`] if they cannot be started.
    pub fn new(threads: usize) -> Result<Self, Error> {
        let mut team = Self { shared: Arc::default(), threads: Vec::new() };
        for i in 1..threads {
            let shared = Arc::clone(&team.shared);
            let thread = thread::Builder::new().name(format!("decode {i}")).spawn(move || shared.follow());
            team.threads.push(thread.map_err(|error| Error::Threads(error.to_string()))?);
        }
        Ok(team)
    }

    /// Runs a step, which shares its calls of [`for_each`] with the team.
    pub fn lead<R>(&self, step: impl FnOnce() -> R) -> R {
        if self.threads.is_empty() {
            return step();
        }
        self.shared.awake.store(true, Ordering::Release);
        self.threads.iter().for_each(|thread| thread.thread().unpark());
        let _rest = Rest(&self.shared, LED.replace(&*self.shared));
        step()
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // Panics are those of tasks, which the leader has reported.
            let _ = thread.join();
        }
    }
}

/// Ends a step: the threads may sleep.
struct Rest<'a>(&'a Shared, *const Shared);

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        LED.set(self.1);
        self.0.awake.store(false, Ordering::Release);
    }
}

impl Shared {
    /// Runs `work` on this thread and on those that join before it is done.
    fn share(&self, work: &(dyn Fn() + Sync)) {
        // SAFETY: only the lifetime changes. `Close` waits until no thread works on it, also if it panics on this thread.
        let work_for_all =
            unsafe { std::mem::transmute::<*const (dyn Fn() + Sync + '_), *const (dyn Fn() + Sync)>(work) };
        *self.work.lock().unwrap_or_else(PoisonError::into_inner) = Some(Work(work_for_all));
        self.epoch.fetch_add(1, Ordering::SeqCst);
        let close = Close(self);
        work();
        drop(close);
        assert!(!self.panicked.load(Ordering::Acquire), "a task of the decoder panicked");
    }

    /// Joins work until the team ends.
    fn follow(&self) {
        let (mut done, mut polls) = (0, 0);
        while !self.ended.load(Ordering::Acquire) {
            let epoch = self.epoch.load(Ordering::Acquire);
            if epoch.is_multiple_of(2) || epoch == done {
                if self.awake.load(Ordering::Acquire) {
                    wait(&mut polls);
                } else {
                    // Returns at once if the next step began after the check.
                    thread::park();
                }
                continue;
            }
            (done, polls) = (epoch, 0);
            self.working.fetch_add(1, Ordering::SeqCst);
            let _leave = Leave(self);
            // Either this thread sees that the epoch is over, or the leader sees that this thread is working.
            if self.epoch.load(Ordering::SeqCst) == epoch {
                let work = *self.work.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(Work(work)) = work {
                    // SAFETY: the leader waits for this thread before the closure ends.
                    unsafe { (*work)() };
                }
            }
        }
    }
}

/// Ends an epoch: waits for the threads that work in it.
struct Close<'a>(&'a Shared);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.epoch.fetch_add(1, Ordering::SeqCst);
        let mut polls = 0;
        while self.0.working.load(Ordering::SeqCst) > 0 {
            wait(&mut polls);
        }
    }
}

/// Counts a thread as not working any more, also if its work panicked.
struct Leave<'a>(&'a Shared);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.panicked.store(true, Ordering::Release);
        }
        self.0.working.fetch_sub(1, Ordering::SeqCst);
    }
}

fn wait(polls: &mut usize) {
    *polls += 1;
    if polls.is_multiple_of(POLLS) {
        thread::yield_now();
    } else {
        spin_loop();
    }
}

/// Calls `work` for each of `tasks` tasks: on the team that this thread leads, or on the pool if there is none. Tasks start in
/// order.
pub fn for_each(tasks: usize, work: impl Fn(usize) + Sync) {
    if tasks <= 1 {
        return (0..tasks).for_each(work);
    }
    let team = LED.get();
    if team.is_null() {
        return (0..tasks).into_par_iter().with_max_len(1).for_each(&work);
    }
    let next = AtomicUsize::new(0);
    let take = || {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            work(task);
        }
    };
    // SAFETY: `Team::lead`, further up this thread's stack, borrows the team and resets the pointer before it returns.
    unsafe { &*team }.share(&take);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whether_led_or_not() {
        for threads in [1, 2, 5] {
            let counts: Vec<_> = (0..100).map(|_| AtomicUsize::new(0)).collect();
            let count = || {
                for tasks in [0, 1, 2, 7, 100] {
                    for_each(tasks, |task| _ = counts[task].fetch_add(1, Ordering::Relaxed));
                }
            };
            count();
            let team = Team::new(threads).expect("threads");
            team.lead(|| (0..200).for_each(|_| count()));
            // Teams within teams.
            team.lead(|| Team::new(2).expect("threads").lead(count));
            team.lead(count);
            let counts: Vec<_> = counts.into_iter().map(AtomicUsize::into_inner).collect();
            assert_eq!((counts[0], counts[1], counts[6], counts[99]), (812, 609, 406, 203));
        }
    }

    #[test]
    fn a_panic_in_a_task_is_a_panic_of_the_step() {
        for _ in 0..20 {
            let caught = std::panic::catch_unwind(|| {
                let team = Team::new(2).expect("threads");
                team.lead(|| for_each(50, |task| assert!(task != 20, "the task fails")));
            });
            assert!(caught.is_err());
        }
    }
}
