//! Writes GGUF files from the format's specification, also ones that no program would write.

/// Value of a metadata key.
pub enum Item {
    /// Number of the type and the bytes of a number or truth value.
    Raw(u32, Vec<u8>),
    String(String),
    /// Array of these, which are of one type.
    Array(Vec<Item>),
    /// Array of these strings: a long vocabulary.
    Strings(Vec<String>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
}

impl Item {
    fn number(&self) -> u32 {
        match self {
            Self::Raw(number, _) => *number,
            Self::String(_) => 8,
            Self::Array(_) | Self::Strings(_) | Self::F32s(_) | Self::I32s(_) => 9,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let mut array = |number: u32, len: usize| {
            out.extend(number.to_le_bytes());
            out.extend((len as u64).to_le_bytes());
        };
        match self {
            Self::Raw(_, bytes) => out.extend(bytes),
            Self::String(text) => string(out, text),
            Self::Array(items) => {
                array(items.first().map_or(0, Self::number), items.len());
                items.iter().for_each(|item| item.write(out));
            }
            Self::Strings(texts) => {
                array(8, texts.len());
                texts.iter().for_each(|text| string(out, text));
            }
            Self::F32s(values) => {
                array(6, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
            Self::I32s(values) => {
                array(5, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
        }
    }
}

impl From<&str> for Item {
    fn from(text: &str) -> Self {
        Self::String(text.into())
    }
}

impl From<u32> for Item {
    fn from(value: u32) -> Self {
        Self::Raw(4, value.to_le_bytes().into())
    }
}

impl From<bool> for Item {
    fn from(value: bool) -> Self {
        Self::Raw(7, vec![value.into()])
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// File to be written.
pub struct Builder {
    pub version: u32,
    pub values: Vec<(String, Item)>,
    /// Name, dimensions, type, offset; `None` for the next free one.
    pub tensors: Vec<(String, Vec<u64>, u32, Option<u64>)>,
    /// Data of the tensors, each padded to `alignment`.
    pub data: Vec<Vec<u8>>,
    pub alignment: usize,
}

impl Builder {
    pub fn new() -> Self {
        Self { version: 3, values: Vec::new(), tensors: Vec::new(), data: Vec::new(), alignment: 32 }
    }

    pub fn value(mut self, key: &str, item: impl Into<Item>) -> Self {
        self.values.push((key.into(), item.into()));
        self
    }

    pub fn tensor(mut self, name: &str, dims: &[u64], number: u32, data: Vec<u8>) -> Self {
        self.tensors.push((name.into(), dims.into(), number, None));
        self.data.push(data);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.values.len() as u64).to_le_bytes());
        for (key, item) in &self.values {
            string(&mut out, key);
            out.extend(item.number().to_le_bytes());
            item.write(&mut out);
        }
        let mut next = 0;
        for ((name, dims, number, offset), data) in self.tensors.iter().zip(&self.data) {
            string(&mut out, name);
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(number.to_le_bytes());
            out.extend(offset.unwrap_or(next).to_le_bytes());
            next += data.len().next_multiple_of(self.alignment) as u64;
        }
        for data in &self.data {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(data);
        }
        out
    }
}
