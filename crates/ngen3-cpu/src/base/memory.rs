//! Large arrays, aligned to cache lines and backed by huge pages where the system has them; and cutting them into aligned pieces.
//!
//! A vector load that crosses a cache line costs two loads, and streaming 100 MB through 4 KB pages misses the TLB every few
//! lines. Anonymous mappings with a huge-page hint avoid both.

use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

use ngen3_engine::Error;

/// f32 elements per cache line.
const LINE: usize = 16;

/// Heap array of f32, zero-initialised.
#[derive(Debug, Default)]
pub struct Buffer {
    /// `None` when empty: a mapping cannot have length 0.
    map: Option<MmapMut>,
}

impl Buffer {
    /// Allocates `[n]` zeros. `what` names the buffer in the error.
    ///
    /// # Errors
    /// [`Error::Memory`] if the allocation fails.
    pub fn zeros(n: usize, what: &'static str) -> Result<Self, Error> {
        if n == 0 {
            return Ok(Self::default());
        }
        let bytes = n.saturating_mul(size_of::<f32>());
        let map = MmapMut::map_anon(bytes).map_err(|_| Error::Memory { what, bytes })?;
        // Only a hint: a system without huge pages declines it, with no other effect.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map: Some(map) })
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.map.as_ref().map_or(&[], |map| bytemuck::cast_slice(map))
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.map.as_mut().map_or(&mut [], |map| bytemuck::cast_slice_mut(map))
    }
}

/// Length of a piece of `n` elements, rounded up to whole cache lines.
pub const fn padded(n: usize) -> usize {
    n.next_multiple_of(LINE)
}

/// Cuts pieces off the front of a slice. A piece of `n` takes [`padded`]`(n)` elements, so every piece starts on a cache line
/// if the slice does.
pub struct Carver<'a>(pub &'a mut [f32]);

impl<'a> Carver<'a> {
    /// Returns the next `n` elements.
    pub fn cut(&mut self, n: usize) -> &'a mut [f32] {
        let (piece, rest) = std::mem::take(&mut self.0).split_at_mut(padded(n));
        self.0 = rest;
        &mut piece[..n]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_begin_on_cache_lines_and_do_not_overlap() {
        let mut buffer = Buffer::zeros(padded(3) + padded(17) + padded(0) + 5, "a test").expect("little memory");
        let mut carver = Carver(&mut buffer);
        let pieces = [3, 17, 0].map(|n| carver.cut(n));
        assert_eq!(carver.0.len(), 5);
        for (piece, n) in pieces.into_iter().zip([3, 17, 0]) {
            assert_eq!((piece.len(), piece.as_ptr() as usize % 64), (n, 0));
            assert!(piece.iter().all(|&x| x == 0.0));
            piece.fill(1.0);
        }
        assert_eq!(buffer.iter().sum::<f32>(), 20.0);
        assert!(Buffer::zeros(0, "nothing").expect("no memory").is_empty());
        assert!(Buffer::zeros(usize::MAX / 4, "everything").is_err());
    }
}
