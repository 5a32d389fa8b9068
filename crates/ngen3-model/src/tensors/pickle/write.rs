//! Writes a pickle: plain values from JSON, and tensors as `torch.save` describes them.

use serde_json::{Number, Value};

/// Writer of a pickle. Values are pushed in the order in which Python's unpickler takes them from its stack.
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Starts a pickle of protocol 2.
    pub fn new() -> Self {
        Self { bytes: vec![0x80, 2] }
    }

    /// Pushes a dictionary; `fill` pushes its keys and values in turn.
    pub fn dict(&mut self, fill: impl FnOnce(&mut Self)) {
        self.bytes.extend(b"}(");
        fill(self);
        self.bytes.push(b'u');
    }

    /// Pushes a `collections.OrderedDict`; `fill` pushes its keys and values in turn.
    pub fn ordered_dict(&mut self, fill: impl FnOnce(&mut Self)) {
        self.empty_ordered_dict();
        self.bytes.push(b'(');
        fill(self);
        self.bytes.push(b'u');
    }

    fn empty_ordered_dict(&mut self) {
        self.global("collections", "OrderedDict");
        self.bytes.extend(b")R");
    }

    /// Pushes a plain value. JSON's `null` is `None`.
    pub fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.bytes.push(b'N'),
            Value::Bool(true) => self.bytes.push(0x88),
            Value::Bool(false) => self.bytes.push(0x89),
            Value::Number(number) => self.number(number),
            Value::String(text) => self.string(text),
            Value::Array(items) => {
                self.bytes.extend(b"](");
                items.iter().for_each(|item| self.value(item));
                self.bytes.push(b'e');
            }
            Value::Object(map) => self.dict(|writer| {
                for (key, value) in map {
                    writer.string(key);
                    writer.value(value);
                }
            }),
        }
    }

    fn number(&mut self, number: &Number) {
        if let Some(number) = number.as_i128() {
            self.int(number);
        } else {
            self.bytes.push(b'G');
            let number = number.as_f64().expect("a JSON number is an integer or a float");
            self.bytes.extend(number.to_be_bytes());
        }
    }

    /// Pushes an integer as BININT1, BININT or LONG1, whichever is the shortest.
    fn int(&mut self, number: i128) {
        if let Ok(byte) = u8::try_from(number) {
            self.bytes.extend([b'K', byte]);
        } else if let Ok(word) = i32::try_from(number) {
            self.bytes.push(b'J');
            self.bytes.extend(word.to_le_bytes());
        } else {
            self.bytes.extend([0x8a, 16]);
            self.bytes.extend(number.to_le_bytes());
        }
    }

    /// Pushes a string.
    pub fn string(&mut self, text: &str) {
        let len = u32::try_from(text.len()).expect("a string in a checkpoint is shorter than 4 GiB");
        self.bytes.push(b'X');
        self.bytes.extend(len.to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    fn global(&mut self, module: &str, name: &str) {
        self.bytes.push(b'c');
        self.bytes.extend(format!("{module}\n{name}\n").as_bytes());
    }

    /// Pushes a contiguous float32 tensor that fills the storage `key`.
    pub fn tensor(&mut self, key: &str, shape: &[usize]) {
        let size = |n: usize| n as i128;
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.bytes.extend(b"((");
        self.string("storage");
        self.global("torch", "FloatStorage");
        self.string(key);
        self.string("cpu");
        self.int(size(shape.iter().product()));
        self.bytes.extend(b"tQ");
        self.int(0);
        self.bytes.push(b'(');
        shape.iter().for_each(|&dim| self.int(size(dim)));
        self.bytes.extend(b"t(");
        (1..=shape.len()).for_each(|i| self.int(size(shape[i..].iter().product())));
        // requires_grad, backward hooks.
        self.bytes.extend(b"t\x89");
        self.empty_ordered_dict();
        self.bytes.extend(b"tR");
    }

    /// Ends the pickle and returns its bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.push(b'.');
        self.bytes
    }
}
