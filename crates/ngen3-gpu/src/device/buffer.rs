//! [`Buffer`]: memory of the device with a name, and [`View`]: a part of it that a kernel is given. Lengths count elements of 4
//! bytes, f32 or u32.

use std::ops::Range;

/// Memory of the device.
#[derive(Debug)]
pub struct Buffer {
    pub(super) inner: wgpu::Buffer,
    len: usize,
    what: &'static str,
}

/// Part of a buffer.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The whole.
    pub buffer: &'a Buffer,
    /// First element.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

impl Buffer {
    pub(super) fn new(inner: wgpu::Buffer, len: usize, what: &'static str) -> Self {
        Self { inner, len, what }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Its purpose, for messages.
    pub fn what(&self) -> &'static str {
        self.what
    }

    /// Returns all of it.
    pub fn all(&self) -> View<'_> {
        self.view(0..self.len)
    }

    /// Returns the first elements.
    pub fn first(&self, len: usize) -> View<'_> {
        self.view(0..len)
    }

    /// Returns a part. A kernel takes only parts that begin at a multiple of 64 elements.
    ///
    /// # Panics
    /// If the range is out of bounds.
    pub fn view(&self, range: Range<usize>) -> View<'_> {
        assert!(range.start <= range.end && range.end <= self.len, "{}: {range:?} of {}", self.what, self.len);
        View { buffer: self, offset: range.start, len: range.len() }
    }
}

impl View<'_> {
    /// Checks the number of elements.
    ///
    /// # Panics
    /// If it is another.
    pub fn expect(&self, len: usize) {
        assert_eq!(self.len, len, "elements of {}", self.buffer.what);
    }
}
