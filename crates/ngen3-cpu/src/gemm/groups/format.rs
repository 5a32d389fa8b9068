//! Formats of groups, and the layout of a panel.

use ngen3_model::gguf::TensorType;

/// Inputs per group.
pub const GROUP: usize = 32;

/// Outputs per panel: 32-bit lanes of a vector.
pub const LANES: usize = 16;

/// Most rows of inputs that a panel is unpacked for at a time.
pub const ROWS: usize = 8;

/// Sums of some rows of inputs and the 16 outputs of a panel.
pub type Sums<const R: usize> = [[f32; LANES]; R];

/// Format of the groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 4 bits and a scale.
    Q4_0,
    /// 4 bits, a scale and a minimum.
    Q4_1,
    /// 8 bits and a scale.
    Q8_0,
}

impl Format {
    /// Returns the format of a file's tensor; `None` if there are no products for it.
    pub fn of(tensor_type: TensorType) -> Option<Self> {
        match tensor_type {
            TensorType::Q4_0 => Some(Self::Q4_0),
            TensorType::Q4_1 => Some(Self::Q4_1),
            TensorType::Q8_0 => Some(Self::Q8_0),
            _ => None,
        }
    }

    /// Bytes of a group in a file: the float16 numbers, then the elements.
    pub const fn block(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
        }
    }

    /// Bytes of the elements of a group.
    pub const fn bytes(self) -> usize {
        if matches!(self, Self::Q8_0) { GROUP } else { GROUP / 2 }
    }

    /// Number u that stands for the weight m.
    pub const fn zero(self) -> i32 {
        match self {
            Self::Q4_0 => 8,
            Self::Q4_1 => 0,
            Self::Q8_0 => 128,
        }
    }

    pub const fn has_minimum(self) -> bool {
        matches!(self, Self::Q4_1)
    }
}

/// 16 outputs, or fewer and padding. Element e of a group and its lane:
///
/// - 8 bits: in cell e / 4, byte e % 4 of the lane, as u.
/// - 4 bits: as 8 bits, with cell c + 4 in the high halves of cell c. These are a block's bytes as a file has them.
#[derive(Clone, Copy)]
pub struct Panel<'a> {
    /// `[groups, 8 or 4 cells, 16 lanes, 4]`
    pub elements: &'a [u8],
    /// `[groups, 16]`: d in float16.
    pub scales: &'a [u16],
    /// `[groups, 16]`: m in float16; empty if the format has none.
    pub minimums: &'a [u16],
}
