//! Numbers of the format: its version, and the types of tensors.

use std::fmt;

/// First bytes of a file.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
/// Newest version. Version 2 has the same layout.
pub(crate) const VERSION: u32 = 3;
/// Alignment of tensors in bytes, unless `general.alignment` says otherwise.
pub(crate) const ALIGNMENT: u32 = 32;

/// Type of a tensor's elements. Quantized types store blocks: a few scales, then the elements in a few bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorType {
    /// float32.
    F32,
    /// float16.
    F16,
    /// bfloat16.
    Bf16,
    /// 4 bits and a scale.
    Q4_0,
    /// 4 bits, a scale and a minimum.
    Q4_1,
    /// 5 bits and a scale.
    Q5_0,
    /// 5 bits, a scale and a minimum.
    Q5_1,
    /// 8 bits and a scale.
    Q8_0,
    /// 4 bits, in blocks of 256 with 8 scales and minimums of 6 bits.
    Q4K,
    /// 5 bits, in blocks of 256 with 8 scales and minimums of 6 bits.
    Q5K,
    /// 6 bits, in blocks of 256 with 16 scales of 8 bits.
    Q6K,
    /// Type that is not supported, by its number in the file.
    Other(u32),
}

/// The supported types: number in the file, name, elements and bytes of a block.
const SUPPORTED: [(TensorType, u32, &str, usize, usize); 11] = [
    (TensorType::F32, 0, "F32", 1, 4),
    (TensorType::F16, 1, "F16", 1, 2),
    (TensorType::Bf16, 30, "BF16", 1, 2),
    (TensorType::Q4_0, 2, "Q4_0", 32, 18),
    (TensorType::Q4_1, 3, "Q4_1", 32, 20),
    (TensorType::Q5_0, 6, "Q5_0", 32, 22),
    (TensorType::Q5_1, 7, "Q5_1", 32, 24),
    (TensorType::Q8_0, 8, "Q8_0", 32, 34),
    (TensorType::Q4K, 12, "Q4_K", 256, 144),
    (TensorType::Q5K, 13, "Q5_K", 256, 176),
    (TensorType::Q6K, 14, "Q6_K", 256, 210),
];

/// Names of the other types, past and present.
const OTHERS: [(u32, &str); 31] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

impl TensorType {
    /// Returns the type with this number in a file.
    pub(crate) fn of(number: u32) -> Self {
        let found = SUPPORTED.iter().find(|&&(_, known, ..)| known == number);
        found.map_or(Self::Other(number), |&(tensor_type, ..)| tensor_type)
    }

    /// Returns the number in a file.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Other(number) => number,
            _ => self.row().1,
        }
    }

    /// Returns the number of elements in a block, and its size in bytes; `None` if the type is not supported.
    pub fn block(self) -> Option<(usize, usize)> {
        (!matches!(self, Self::Other(_))).then(|| (self.row().3, self.row().4))
    }

    /// Returns the names of the supported types: `F32, F16, …`.
    pub(crate) fn supported() -> String {
        SUPPORTED.map(|(_, _, name, ..)| name).join(", ")
    }

    /// Returns the row of [`SUPPORTED`]: every variant but [`TensorType::Other`] has one.
    fn row(self) -> &'static (Self, u32, &'static str, usize, usize) {
        SUPPORTED.iter().find(|&&(tensor_type, ..)| tensor_type == self).expect("a supported type")
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Other(number) => match OTHERS.iter().find(|(known, _)| known == number) {
                Some((_, name)) => f.write_str(name),
                None => write!(f, "type {number}"),
            },
            _ => f.write_str(self.row().2),
        }
    }
}
