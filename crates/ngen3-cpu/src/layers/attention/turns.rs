//! Order in which parallel tasks add to the same sums, so that the bits do not depend on the number of threads.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Number of counters. Groups this far apart share one, and the later waits for the earlier.
const COUNTERS: usize = 512;

/// Turn of a task that panicked: no other may follow.
const NEVER: usize = usize::MAX;

/// Turns of the members of any number of groups: in each group, the first before the second, and so on.
///
/// Tasks must start in the order of groups and members. Then the earliest unfinished one never waits, so none waits for ever.
pub struct Turns {
    /// Members of a group.
    members: usize,
    next: [AtomicUsize; COUNTERS],
}

impl Turns {
    /// Creates the turns of groups of this many members.
    pub fn new(members: usize) -> Self {
        Self { members, next: [const { AtomicUsize::new(0) }; COUNTERS] }
    }

    /// Calls `work` after it was called for all members of the group before this one.
    ///
    /// # Panics
    /// If an earlier member's task panicked.
    pub fn wait(&self, group: usize, member: usize, work: impl FnOnce()) {
        let next = &self.next[group % COUNTERS];
        let own = group / COUNTERS * self.members + member;
        loop {
            let turn = next.load(Ordering::Acquire);
            if turn == own {
                break;
            }
            assert_ne!(turn, NEVER, "an earlier task panicked");
            // Members of a group start and end at nearly the same time, so this is short.
            std::thread::yield_now();
        }
        work();
        next.store(own + 1, Ordering::Release);
    }

    /// Calls `task`, whose panic ends the waiting of all others.
    pub fn run(&self, task: impl FnOnce()) {
        let guard = Guard(self);
        task();
        std::mem::forget(guard);
    }
}

/// Stops the turns if it is dropped.
struct Guard<'a>(&'a Turns);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.next.iter().for_each(|next| next.store(NEVER, Ordering::Release));
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn members_take_turns_whatever_thread_is_first() {
        const GROUPS: usize = 2 * COUNTERS + 5;
        let (turns, next) = (Turns::new(3), AtomicUsize::new(0));
        let order: Vec<Mutex<Vec<usize>>> = (0..GROUPS).map(|_| Mutex::default()).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    loop {
                        let task = next.fetch_add(1, Ordering::Relaxed);
                        let (group, member) = (task / 3, task % 3);
                        let Some(order) = order.get(group) else { return };
                        if (task * 7) % 5 == 0 {
                            std::thread::yield_now();
                        }
                        turns.wait(group, member, || order.lock().unwrap().push(member));
                    }
                });
            }
        });
        assert!(order.iter().all(|order| *order.lock().unwrap() == [0, 1, 2]));
    }

    #[test]
    fn nobody_waits_for_a_task_that_panicked() {
        let turns = Turns::new(2);
        let panicked = |task: &dyn Fn()| catch_unwind(AssertUnwindSafe(|| turns.run(task))).is_err();
        assert!(!panicked(&|| turns.wait(7, 0, || ())));
        assert!(panicked(&|| panic!("a task of the test")));
        assert!(panicked(&|| turns.wait(7, 1, || ())));
    }
}
