//! Products of int8 on 64-bit Arm: four to each 32-bit lane, with `sdot` where the processor has it.
//!
//! `sdot` came with Armv8.2 and is found at run time. Older processors (Cortex-A53, A72) multiply to 16 bits and add up in two
//! steps: four instructions in place of one, with the same bits.

use std::arch::aarch64::*;
use std::arch::asm;

/// Returns true if the processor has `sdot`.
pub fn has_sdot() -> bool {
    std::arch::is_aarch64_feature_detected!("dotprod")
}

/// Returns `sum` with, in each lane, the products of the lane's four bytes of `a` and the four bytes of `b` in lane `LANE`.
/// `a` and `b` must not both hold −128.
///
/// # Safety
/// With `SDOT`, call it only from a function compiled for `dotprod`.
#[inline(always)]
pub unsafe fn dot<const SDOT: bool, const LANE: i32>(sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the target has NEON, and the caller is compiled for `sdot`, whose intrinsic Rust does not have yet. It reads and
    // writes these registers only.
    unsafe {
        if SDOT {
            let mut sum = sum;
            asm!(
                "sdot {sum:v}.4s, {a:v}.16b, {b:v}.4b[{lane}]",
                sum = inout(vreg) sum,
                a = in(vreg) a,
                b = in(vreg) b,
                lane = const LANE,
                options(pure, nomem, nostack, preserves_flags)
            );
            return sum;
        }
        let b = vreinterpretq_s8_s32(vdupq_laneq_s32::<LANE>(vreinterpretq_s32_s8(b)));
        // A sum of two products fits in 16 bits: at most 2·128·127.
        let pairs = vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b));
        vpadalq_s16(sum, pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::{random, skip};

    fn bytes(seed: u64) -> [i8; 16] {
        std::array::from_fn(|i| (random(16, seed)[i] * 127.9) as i8)
    }

    #[target_feature(enable = "dotprod")]
    fn by_sdot<const LANE: i32>(sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        // SAFETY: this function is compiled for `dotprod`.
        unsafe { dot::<true, LANE>(sum, a, b) }
    }

    fn check<const LANE: i32>(a: [i8; 16], b: [i8; 16]) {
        let products = |lane: usize| -> i32 {
            let pairs = a[4 * lane..][..4].iter().zip(&b[4 * LANE as usize..]);
            pairs.map(|(&a, &b)| i32::from(a) * i32::from(b)).sum()
        };
        let starts = [7, -1, 0, 1 << 20];
        let expected: [i32; 4] = std::array::from_fn(|lane| starts[lane] + products(lane));
        // SAFETY: the arrays are as long as vectors, and `sdot` is used only where it exists.
        let found = unsafe {
            let (starts, a, b) = (vld1q_s32(starts.as_ptr()), vld1q_s8(a.as_ptr()), vld1q_s8(b.as_ptr()));
            let mut found = [[0; 4]; 2];
            vst1q_s32(found[0].as_mut_ptr(), dot::<false, LANE>(starts, a, b));
            if has_sdot() {
                vst1q_s32(found[1].as_mut_ptr(), by_sdot::<LANE>(starts, a, b));
            } else {
                skip("sdot against its definition");
                found[1] = expected;
            }
            found
        };
        assert_eq!(found, [expected; 2], "lane {LANE} of {a:?}, {b:?}");
    }

    #[test]
    fn both_kinds_give_the_sums_of_their_definition() {
        for (a, b) in [(bytes(1), bytes(2)), ([-128; 16], [127; 16]), ([127; 16], [-128; 16]), ([-128; 16], [-127; 16])]
        {
            check::<0>(a, b);
            check::<1>(a, b);
            check::<2>(a, b);
            check::<3>(a, b);
        }
    }
}
