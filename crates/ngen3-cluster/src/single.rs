//! [`Single`]: one process by itself.

use crate::World;

/// World of one rank: this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Single;

impl World for Single {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn exchange(&self, send: Option<(usize, &[u8])>, receive: Option<(usize, &mut [u8])>) {
        if let (Some((_, send)), Some((_, receive))) = (send, receive) {
            receive.copy_from_slice(send);
        }
    }

    fn gather(&self, own: &[u8]) -> Vec<Vec<u8>> {
        vec![own.to_vec()]
    }

    fn abort(&self, code: i32) -> ! {
        std::process::exit(code)
    }
}
