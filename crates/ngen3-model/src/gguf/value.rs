//! Values of the metadata.

use std::fmt;

/// Value of a metadata key.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Unsigned integer of 8 to 64 bits.
    Unsigned(u64),
    /// Signed integer of 8 to 64 bits.
    Signed(i64),
    /// float32 or float64; the former is exact.
    Float(f64),
    /// Truth value.
    Bool(bool),
    /// Text.
    String(String),
    /// Values of one type.
    Array(Array),
}

impl Value {
    /// Returns an integer that fits.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Self::Unsigned(value) => i64::try_from(value).ok(),
            Self::Signed(value) => Some(value),
            _ => None,
        }
    }

    /// Returns a number; integers beyond 2⁵³ are rounded.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::Unsigned(value) => Some(value as f64),
            Self::Signed(value) => Some(value as f64),
            Self::Float(value) => Some(value),
            _ => None,
        }
    }
}

/// Describes a value in an error: its kind, and the value itself if it is short.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Unsigned(value) => write!(f, "{value}"),
            Self::Signed(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::String(text) => write!(f, "{text:?}"),
            Self::Array(array) => write!(f, "an array of {} {}", array.len(), array.items()),
        }
    }
}

/// Array of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// Numbers or truth values.
    Numbers(Numbers),
    /// Texts.
    Strings(Strings),
    /// Arrays, which may differ in type and length.
    Arrays(Vec<Array>),
}

impl Array {
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Numbers(numbers) => numbers.bytes.len() / numbers.kind.size(),
            Self::Strings(strings) => strings.len(),
            Self::Arrays(arrays) => arrays.len(),
        }
    }

    /// Returns true if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn items(&self) -> &'static str {
        match self {
            Self::Numbers(_) => "numbers",
            Self::Strings(_) => "strings",
            Self::Arrays(_) => "arrays",
        }
    }
}

/// Numbers or truth values of one type, as the file stores them.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers {
    kind: NumberType,
    bytes: Vec<u8>,
}

impl Numbers {
    /// Makes an array of its elements' bytes.
    pub(super) fn new(kind: NumberType, bytes: Vec<u8>) -> Self {
        debug_assert!(bytes.len().is_multiple_of(kind.size()));
        Self { kind, bytes }
    }

    /// Returns the elements.
    pub fn iter(&self) -> impl Iterator<Item = Value> {
        self.bytes.chunks_exact(self.kind.size()).map(|bytes| self.kind.value(bytes))
    }
}

/// Type of a number or truth value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NumberType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    U64,
    I64,
    F64,
}

impl NumberType {
    /// Returns the type with this number in a file; `None` for strings, arrays and unknown types.
    pub fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Size in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Reads a value from its `size` bytes.
    pub fn value(self, bytes: &[u8]) -> Value {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let bits = u64::from_le_bytes(wide);
        match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => Value::Unsigned(bits),
            Self::I8 => Value::Signed((bits as i8).into()),
            Self::I16 => Value::Signed((bits as i16).into()),
            Self::I32 => Value::Signed((bits as i32).into()),
            Self::I64 => Value::Signed(bits as i64),
            Self::F32 => Value::Float(f32::from_bits(bits as u32).into()),
            Self::F64 => Value::Float(f64::from_bits(bits)),
            Self::Bool => Value::Bool(bits != 0),
        }
    }
}

/// Texts in one allocation: a vocabulary has hundreds of thousands of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Strings {
    text: String,
    /// End of each text in `text`, in bytes.
    ends: Vec<usize>,
}

impl Strings {
    pub(super) fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    /// Returns the number of texts.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns true if there are no texts.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Returns the length of all texts, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.text.len()
    }

    /// Returns a text.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        Some(&self.text[start..end])
    }

    /// Returns the texts.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.ends.len()).filter_map(|index| self.get(index))
    }
}
