//! [`Slow`]: ranks as if a slow network were between them.

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::World;

/// A link between ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Bytes per second that a rank sends and, at the same time, receives.
    pub bytes_per_s: f64,
    /// Time from the start of an exchange of nothing to its end.
    pub latency: Duration,
}

impl FromStr for Link {
    type Err = String;

    /// Reads the speed in Gbit/s and the latency in microseconds, such as `0.1 200`.
    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Option<Vec<f64>> = text.split_whitespace().map(|word| word.parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[gbit, us]) if gbit > 0.0 && (0.0..1e9).contains(&us) => {
                Ok(Self { bytes_per_s: gbit * 1e9 / 8.0, latency: Duration::from_secs_f64(us / 1e6) })
            }
            _ => Err(format!("expected Gbit/s above 0 and microseconds, such as \"0.1 200\", got {text:?}")),
        }
    }
}

/// Ranks whose exchanges take as long as a link says, if they do not take longer. Messages to all, [`World::gather`], take its latency.
pub struct Slow {
    world: Arc<dyn World>,
    link: Link,
}

impl Slow {
    /// Slows a world down.
    pub fn new(world: Arc<dyn World>, link: Link) -> Self {
        Self { world, link }
    }

    fn wait(&self, started: Instant, bytes: usize) {
        let seconds = (bytes as f64 / self.link.bytes_per_s).min(1e6);
        let wanted = self.link.latency + Duration::from_secs_f64(seconds);
        std::thread::sleep(wanted.saturating_sub(started.elapsed()));
    }
}

impl World for Slow {
    fn rank(&self) -> usize {
        self.world.rank()
    }

    fn size(&self) -> usize {
        self.world.size()
    }

    fn exchange(&self, send: Option<(usize, &[u8])>, receive: Option<(usize, &mut [u8])>) {
        let started = Instant::now();
        let bytes = send.map_or(0, |(_, bytes)| bytes.len()).max(receive.as_ref().map_or(0, |(_, bytes)| bytes.len()));
        self.world.exchange(send, receive);
        self.wait(started, bytes);
    }

    fn gather(&self, own: &[u8]) -> Vec<Vec<u8>> {
        let started = Instant::now();
        let all = self.world.gather(own);
        self.wait(started, 0);
        all
    }

    fn abort(&self, code: i32) -> ! {
        self.world.abort(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Threads;

    #[test]
    fn an_exchange_takes_as_long_as_the_link() {
        let link: Link = "0.008 2000".parse().unwrap();
        let seconds = Threads::run(2, |world| {
            let world = Slow::new(world, link);
            let (sent, mut received) = (vec![1; 20_000], vec![0; 20_000]);
            let started = Instant::now();
            let peer = 1 - world.rank();
            world.exchange(Some((peer, &sent)), Some((peer, &mut received)));
            assert_eq!(received, sent);
            started.elapsed().as_secs_f64()
        });
        // 20 kB at 1 MB/s, and 2 ms.
        assert!(seconds.iter().all(|&seconds| seconds >= 0.022), "{seconds:?}");
    }

    #[test]
    fn a_link_is_two_numbers_in_range() {
        assert_eq!("1 50".parse(), Ok(Link { bytes_per_s: 125e6, latency: Duration::from_micros(50) }));
        for text in ["", "1", "0 1", "-1 1", "1 -1", "1 1e10", "nan 1", "1 nan", "1 2 3", "fast 1"] {
            let error = text.parse::<Link>().unwrap_err();
            assert!(error.starts_with("expected Gbit/s above 0"), "{text}: {error}");
        }
    }
}
