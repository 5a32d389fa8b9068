//! Prefetching of memory that will be read or written soon.

/// Requests the cache line at `place`, for the L2 cache. Any address is allowed. A hint, given on x86-64 only.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "a hint for x86-64"))]
pub fn prefetch(place: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch accesses no memory.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(place.cast());
    }
}
