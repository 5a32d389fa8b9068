//! Reads a pickle as data, not as a program.
//!
//! A pickle is a program for a small stack machine, and Python's runs any function that it names. This machine knows only the
//! opcodes below and the globals that rebuild a tensor or an ordered dictionary; anything else is an error. Values are in one
//! array and refer to each other by index, so that no nesting or cycle can overflow the stack, and each byte of the pickle
//! makes at most one value.

use std::collections::HashMap;
use std::rc::Rc;

use serde_json::{Map, Number, Value};

use crate::tensors::tensor::{Dtype, Order, Tensor};

/// Size limit of a value as JSON, in bytes: values that share parts could otherwise grow without bound.
const JSON_BUDGET: usize = 64 << 20;
/// Cost of one JSON value besides its text, in bytes.
const JSON_VALUE: usize = 64;
const JSON_DEPTH: usize = 64;
/// Maximum number of values: checkpoints have thousands, and each takes about 100 bytes of memory.
const MAX_VALUES: usize = 1 << 21;
/// Maximum number of arguments of a call and of dimensions of a tensor: these are copied, and a pickle can pass the same tuple
/// many times.
const MAX_TUPLE: usize = 16;

/// Index of a value in a [`Pickle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(usize);

/// Value of a pickle.
#[derive(Debug)]
pub enum Node {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Rc<str>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    /// In insertion order; a key that is set again occurs again.
    Dict(Vec<(Id, Id)>),
    /// Storage: name in the file, type, number of elements.
    Storage(Rc<str>, Dtype, usize),
    Tensor(Tensor),
    Global(Global),
}

/// Functions and types that a pickle may name.
#[derive(Clone, Copy, Debug)]
pub enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    StorageOf(Dtype),
}

impl Global {
    fn named(module: &str, name: &str) -> Option<Self> {
        let storage = |name, size| Some(Self::StorageOf(Dtype::Other(name, size)));
        match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            ("torch", "FloatStorage") => Some(Self::StorageOf(Dtype::F32)),
            ("torch", "HalfStorage") => Some(Self::StorageOf(Dtype::F16)),
            ("torch", "BFloat16Storage") => Some(Self::StorageOf(Dtype::Bf16)),
            ("torch", "DoubleStorage") => storage("float64", 8),
            ("torch", "LongStorage") => storage("int64", 8),
            ("torch", "IntStorage") => storage("int32", 4),
            ("torch", "ShortStorage") => storage("int16", 2),
            ("torch", "CharStorage") => storage("int8", 1),
            ("torch", "ByteStorage") => storage("uint8", 1),
            ("torch", "BoolStorage") => storage("bool", 1),
            _ => None,
        }
    }
}

/// Values of a pickle.
#[derive(Debug)]
pub struct Pickle {
    nodes: Vec<Node>,
    root: Id,
}

impl Pickle {
    /// Parses a whole pickle.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut machine =
            Machine { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        let root = machine.run().map_err(|reason| format!("{reason} (byte {} of the pickle)", machine.at))?;
        Ok(Self { nodes: machine.nodes, root })
    }

    pub fn root(&self) -> Id {
        self.root
    }

    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[id.0]
    }

    /// Returns a dictionary's entries by name, the last of each; keys that are not strings are skipped.
    pub fn entries(&self, dict: Id) -> Option<HashMap<&str, Id>> {
        let Node::Dict(pairs) = self.node(dict) else { return None };
        let named = pairs.iter().filter_map(|&(key, value)| match self.node(key) {
            Node::Str(name) => Some((&**name, value)),
            _ => None,
        });
        Some(named.collect())
    }

    /// Converts a value to JSON. Anything without a JSON form (a tensor, a non-finite number, a key that is not a string) is
    /// left out of its list or dictionary.
    pub fn to_json(&self, id: Id) -> Result<Option<Value>, String> {
        self.json(id, JSON_DEPTH, &mut { JSON_BUDGET })
    }

    fn json(&self, id: Id, depth: usize, budget: &mut usize) -> Result<Option<Value>, String> {
        let text = if let Node::Str(text) = self.node(id) { text.len() } else { 0 };
        *budget = budget.checked_sub(JSON_VALUE + text).ok_or("the pickle expands to too many values")?;
        let depth = depth.checked_sub(1).ok_or("the pickle nests values too deeply")?;
        Ok(match self.node(id) {
            Node::None => Some(Value::Null),
            Node::Bool(value) => Some(Value::Bool(*value)),
            Node::Int(value) => Number::from_i128(*value).map(Value::Number),
            Node::Float(value) => Number::from_f64(*value).map(Value::Number),
            Node::Str(text) => Some(Value::String(text.to_string())),
            Node::Tuple(items) | Node::List(items) => {
                let mut list = Vec::new();
                for &item in items {
                    list.extend(self.json(item, depth, budget)?);
                }
                Some(Value::Array(list))
            }
            Node::Dict(pairs) => {
                let mut map = Map::new();
                for &(key, value) in pairs {
                    let Node::Str(key) = self.node(key) else { continue };
                    *budget = budget.checked_sub(key.len()).ok_or("the pickle expands to too many values")?;
                    if let Some(value) = self.json(value, depth, budget)? {
                        map.insert(key.to_string(), value);
                    }
                }
                Some(Value::Object(map))
            }
            Node::Storage(..) | Node::Tensor(_) | Node::Global(_) => None,
        })
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Stack heights.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Id, String> {
        loop {
            if self.nodes.len() > MAX_VALUES {
                return Err(format!("expected at most {MAX_VALUES} values in the pickle"));
            }
            let opcode = self.take(1)?[0];
            match opcode {
                // PROTO
                0x80 => {
                    let protocol = self.take(1)?[0];
                    if !(2..=5).contains(&protocol) {
                        return Err(format!("unsupported pickle protocol {protocol}: expected 2 to 5"));
                    }
                }
                // STOP
                b'.' => return self.pop(),
                // MARK
                b'(' => self.marks.push(self.stack.len()),
                // NONE, NEWTRUE, NEWFALSE
                b'N' => self.push(Node::None),
                0x88 => self.push(Node::Bool(true)),
                0x89 => self.push(Node::Bool(false)),
                // BININT1, BININT2, BININT, LONG1
                b'K' | b'M' => {
                    let int = self.uint(if opcode == b'K' { 1 } else { 2 })?;
                    self.push(Node::Int(int.into()));
                }
                b'J' => {
                    let int = i32::from_le_bytes(self.array()?);
                    self.push(Node::Int(int.into()));
                }
                0x8a => self.long()?,
                // BINFLOAT
                b'G' => {
                    let float = f64::from_be_bytes(self.array()?);
                    self.push(Node::Float(float));
                }
                // FRAME, whose length the opcodes give too
                0x95 => {
                    self.take(8)?;
                }
                // BINUNICODE, SHORT_BINUNICODE
                b'X' | 0x8c => {
                    let len = self.uint(if opcode == b'X' { 4 } else { 1 })? as usize;
                    let text = self.take(len)?;
                    let text = str::from_utf8(text).map_err(|_| "a string is not UTF-8")?;
                    self.push(Node::Str(text.into()));
                }
                // EMPTY_TUPLE, EMPTY_LIST, EMPTY_DICT
                b')' => self.push(Node::Tuple(Vec::new())),
                b']' => self.push(Node::List(Vec::new())),
                b'}' => self.push(Node::Dict(Vec::new())),
                // TUPLE, TUPLE1, TUPLE2, TUPLE3
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push(Node::Tuple(items));
                }
                0x85..=0x87 => {
                    let start = self.height(usize::from(opcode - 0x84))?;
                    let items = self.stack.split_off(start);
                    self.push(Node::Tuple(items));
                }
                // APPEND, APPENDS
                b'a' | b'e' => {
                    let items = if opcode == b'a' { vec![self.pop()?] } else { self.pop_to_mark()? };
                    match self.top()? {
                        Node::List(list) => list.extend(items),
                        _ => return Err("cannot append to a value that is not a list".into()),
                    }
                }
                // SETITEM, SETITEMS
                b's' | b'u' => {
                    let items = if opcode == b's' {
                        let start = self.height(2)?;
                        self.stack.split_off(start)
                    } else {
                        self.pop_to_mark()?
                    };
                    let (pairs, []) = items.as_chunks() else { return Err("a key has no value".into()) };
                    match self.top()? {
                        Node::Dict(dict) => dict.extend(pairs.iter().map(|[key, value]| (*key, *value))),
                        _ => return Err("cannot set an item of a value that is not a dictionary".into()),
                    }
                }
                // BINPUT, LONG_BINPUT
                b'q' | b'r' => {
                    let slot = self.uint(if opcode == b'q' { 1 } else { 4 })?;
                    let start = self.height(1)?;
                    self.memo.insert(slot, self.stack[start]);
                }
                // MEMOIZE
                0x94 => {
                    let start = self.height(1)?;
                    let slot = self.memo.len() as u32;
                    self.memo.insert(slot, self.stack[start]);
                }
                // BINGET, LONG_BINGET
                b'h' | b'j' => {
                    let slot = self.uint(if opcode == b'h' { 1 } else { 4 })?;
                    let id = self.memo.get(&slot).ok_or_else(|| format!("memo {slot} is undefined"))?;
                    self.stack.push(*id);
                }
                // GLOBAL
                b'c' => self.global()?,
                // BINPERSID
                b'Q' => self.storage()?,
                // REDUCE
                b'R' => self.reduce()?,
                // BUILD: an OrderedDict's attributes, such as a state dict's _metadata.
                b'b' => {
                    self.pop()?;
                    if !matches!(self.top()?, Node::Dict(_)) {
                        return Err("cannot set the state of a value that is not a dictionary".into());
                    }
                }
                _ => return Err(format!("unsupported pickle opcode 0x{opcode:02x}")),
            }
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let bytes: &'a [u8] = self.bytes;
        let rest = &bytes[self.at..];
        let taken = rest.get(..len).ok_or("the pickle ends early")?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("as many bytes as were taken"))
    }

    /// Reads a little-endian integer of one, two or four bytes.
    fn uint(&mut self, len: usize) -> Result<u32, String> {
        let mut bytes = [0; 4];
        bytes[..len].copy_from_slice(self.take(len)?);
        Ok(u32::from_le_bytes(bytes))
    }

    /// Reads a two's complement integer of at most 16 bytes; checkpoints need no longer ones.
    fn long(&mut self) -> Result<(), String> {
        let len = self.uint(1)? as usize;
        let bytes = self.take(len)?;
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 16];
        wide.get_mut(..len)
            .ok_or_else(|| format!("integer of {len} bytes: expected at most 16"))?
            .copy_from_slice(bytes);
        self.push(Node::Int(i128::from_le_bytes(wide)));
        Ok(())
    }

    fn push(&mut self, node: Node) {
        self.stack.push(Id(self.nodes.len()));
        self.nodes.push(node);
    }

    /// Returns the stack's height minus `count`. Values below the last mark are out of reach.
    fn height(&self, count: usize) -> Result<usize, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let start = self.stack.len().checked_sub(count).filter(|&start| start >= floor);
        start.ok_or_else(|| "the pickle's stack is empty".into())
    }

    fn pop(&mut self) -> Result<Id, String> {
        let start = self.height(1)?;
        Ok(self.stack.remove(start))
    }

    fn top(&mut self) -> Result<&mut Node, String> {
        let start = self.height(1)?;
        Ok(&mut self.nodes[self.stack[start].0])
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("the pickle's stack has no mark")?;
        Ok(self.stack.split_off(mark))
    }

    fn global(&mut self) -> Result<(), String> {
        let mut names = [""; 2];
        for name in &mut names {
            let rest = &self.bytes[self.at..];
            let len = rest.iter().position(|&byte| byte == b'\n').ok_or("the pickle ends early")?;
            *name = str::from_utf8(&rest[..len]).map_err(|_| "the name of a global is not UTF-8")?;
            self.at += len + 1;
        }
        let [module, name] = names;
        let global = Global::named(module, name).ok_or_else(|| {
            let full: String = format!("{module}.{name}").chars().take(200).collect();
            format!("unsupported pickle global {full:?}: expected only tensors and plain values")
        })?;
        self.push(Node::Global(global));
        Ok(())
    }

    fn tuple(&self, id: Id) -> Result<&[Id], String> {
        match self.node(id) {
            Node::Tuple(items) if items.len() <= MAX_TUPLE => Ok(items),
            _ => Err(format!("expected a tuple of at most {MAX_TUPLE} values")),
        }
    }

    fn node(&self, id: Id) -> &Node {
        &self.nodes[id.0]
    }

    /// Reads a storage: `("storage", type, name in the file, device, number of elements)`.
    fn storage(&mut self) -> Result<(), String> {
        let description = self.pop()?;
        let [kind, dtype, key, _, len] = *self.tuple(description)? else {
            return Err("storage: expected a description of five values".into());
        };
        let storage = match (self.node(kind), self.node(dtype), self.node(key), self.node(len)) {
            (Node::Str(kind), Node::Global(Global::StorageOf(dtype)), Node::Str(key), Node::Int(len))
                if &**kind == "storage" =>
            {
                let len = usize::try_from(*len).map_err(|_| format!("storage {key} claims {len} elements"))?;
                Node::Storage(key.clone(), *dtype, len)
            }
            _ => return Err("storage: the description is not PyTorch's".into()),
        };
        self.push(storage);
        Ok(())
    }

    /// Calls a global on a tuple of arguments.
    fn reduce(&mut self) -> Result<(), String> {
        let args = self.pop()?;
        let args = self.tuple(args)?.to_vec();
        let callee = self.pop()?;
        match *self.node(callee) {
            Node::Global(Global::OrderedDict) if args.is_empty() => self.push(Node::Dict(Vec::new())),
            Node::Global(Global::RebuildTensor) => {
                let tensor = self.rebuild_tensor(&args)?;
                self.push(Node::Tensor(tensor));
            }
            // (tensor, requires_grad, hooks)
            Node::Global(Global::RebuildParameter) if !args.is_empty() => self.stack.push(args[0]),
            _ => return Err("call of a value that is not a function, or with the wrong arguments".into()),
        }
        Ok(())
    }

    /// Rebuilds a tensor from `(storage, offset, shape, strides, requires_grad, hooks[, metadata])`.
    fn rebuild_tensor(&self, args: &[Id]) -> Result<Tensor, String> {
        let [storage, offset, shape, strides, ..] = *args else {
            return Err("tensor: expected storage, offset, shape and strides".into());
        };
        let (Node::Storage(storage, dtype, storage_len), Node::Int(offset)) = (self.node(storage), self.node(offset))
        else {
            return Err("tensor: expected a storage and an offset".into());
        };
        let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
        let offset = usize::try_from(*offset).map_err(|_| format!("tensor: invalid offset {offset}"))?;
        let mut expected = 1usize;
        let mut contiguous = shape.len() == strides.len();
        for (&dim, &stride) in shape.iter().zip(&strides).rev() {
            contiguous &= dim == 1 || stride == expected;
            expected = expected.saturating_mul(dim);
        }
        let order = if contiguous { Order::Rows } else { Order::Strided };
        Ok(Tensor { storage: storage.clone(), dtype: *dtype, storage_len: *storage_len, offset, shape, order })
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>, String> {
        let size = |&item| match self.node(item) {
            Node::Int(size) => usize::try_from(*size).ok(),
            _ => None,
        };
        self.tuple(id)?
            .iter()
            .map(size)
            .collect::<Option<_>>()
            .ok_or_else(|| "tensor: expected sizes in its shape and strides".into())
    }
}
