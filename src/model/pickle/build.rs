//! Names, instances, tensors: what other readers of pickles would call, described instead.

use std::rc::Rc;

use super::super::error::Fault;
use super::data::{Node, TensorRef, Value};
use super::globals::{Meaning, meaning};
use super::machine::{MAX_STEPS, Machine};

/// Names of classes and functions in one pickle.
const MAX_GLOBALS: usize = 10_000;

impl Machine<'_> {
    pub(super) fn global(&mut self, module: &str, name: &str) -> Result<(), Fault> {
        let python = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if !(module.chars().all(python) && name.chars().all(python)) {
            return Err(self.fault("a name is no Python name"));
        }
        let meaning = meaning(module, name)?;
        self.globals += 1;
        if self.globals > MAX_GLOBALS {
            return Err(self.fault("it has too many names"));
        }
        self.make(Node::Global { path: format!("{module}.{name}").into(), meaning });
        Ok(())
    }

    fn seq(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::Ref(index) => match &self.nodes[index] {
                Node::Seq(items) => Some(items),
                _ => None,
            },
            _ => None,
        }
    }

    pub(super) fn reduce(&mut self, callee: Value, args: Value) -> Result<(), Fault> {
        let Value::Ref(index) = callee else {
            return Err(self.fault("something that is no class is called"));
        };
        let (path, meaning) = match &self.nodes[index] {
            Node::Global { path, meaning } => (Rc::clone(path), *meaning),
            _ => return Err(self.fault("something that is no class is called")),
        };
        let Some(args) = self.seq(args) else {
            return Err(self.fault("arguments are no tuple"));
        };
        match meaning {
            Meaning::RebuildTensor => {
                let tensor = self.tensor(args)?;
                self.make(Node::Tensor(Box::new(tensor)));
            }
            Meaning::RebuildParameter | Meaning::Size => match args.first() {
                Some(&first) => self.push(first),
                None => self.make(Node::Seq(Vec::new())),
            },
            Meaning::Dict => {
                let list = args.first().and_then(|&list| self.seq(list)).unwrap_or(&[]);
                if self.copied + list.len() > MAX_STEPS {
                    return Err(self.fault("it copies too much"));
                }
                let pair = |&pair: &Value| match self.seq(pair) {
                    Some(&[key, value]) => Some((key, value)),
                    _ => None,
                };
                let entries = list.iter().filter_map(pair).collect();
                self.copied += list.len();
                self.make(Node::Dict(entries));
            }
            Meaning::Storage(_) => return Err(self.fault("a storage has no data")),
            Meaning::Opaque => self.make(Node::Object { class: path, state: None }),
        }
        Ok(())
    }

    pub(super) fn build(&mut self, target: Value, given: Value) {
        // State of anything else (an attribute of an OrderedDict, say) means nothing to us.
        if let Value::Ref(index) = target
            && let Node::Object { state, .. } = &mut self.nodes[index]
        {
            *state = Some(given);
        }
    }

    /// ("storage", class, key, device, elements).
    pub(super) fn storage(&mut self, id: Value) -> Result<(), Fault> {
        let parts = self.seq(id).unwrap_or(&[]);
        let &[kind, class, key, _, Value::Int(elements)] = parts else {
            return Err(self.fault("a storage is not described as torch does"));
        };
        let node = |value| match value {
            Value::Ref(index) => Some(&self.nodes[index]),
            _ => None,
        };
        let (Some(Node::Str(kind)), Some(Node::Str(key))) = (node(kind), node(key)) else {
            return Err(self.fault("a storage is not described as torch does"));
        };
        let Some(Node::Global { meaning: Meaning::Storage(dtype), .. }) = node(class) else {
            return Err(self.fault("a storage has no element type"));
        };
        let plain = key.len() <= 20 && key.bytes().all(|b| b.is_ascii_alphanumeric());
        let Ok(elements) = u64::try_from(elements) else {
            return Err(self.fault("a storage has a negative size"));
        };
        if kind != "storage" || key.is_empty() || !plain {
            return Err(self.fault("a storage is not named as torch does"));
        }
        let storage = Node::Storage { dtype: *dtype, key: key.clone(), elements };
        self.make(storage);
        Ok(())
    }

    /// (storage, offset, size, stride, …), checked to lie within the storage.
    fn tensor(&self, args: &[Value]) -> Result<TensorRef, Fault> {
        let &[Value::Ref(storage), offset, size, stride, ..] = args else {
            return Err(self.fault("a tensor is not described as torch does"));
        };
        let Node::Storage { dtype, key, elements } = &self.nodes[storage] else {
            return Err(self.fault("a tensor has no storage"));
        };
        let whole = |value: Value| match value {
            Value::Int(n) => u64::try_from(n).ok(),
            _ => None,
        };
        let list = |value: Value| -> Option<Vec<u64>> {
            let items = self.seq(value)?;
            if items.len() > 8 {
                return None;
            }
            items.iter().map(|&n| whole(n)).collect()
        };
        let (Some(offset), Some(shape), Some(strides)) = (whole(offset), list(size), list(stride))
        else {
            return Err(self.fault("a tensor's shape is not a few natural numbers"));
        };
        if shape.len() != strides.len() {
            return Err(self.fault("a tensor's shape and strides do not fit"));
        }
        // A broadcast tensor (stride 0) could claim any size from one element: none is needed.
        let count = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        let last = shape.iter().zip(&strides).try_fold(offset, |at, (&d, &s)| {
            d.saturating_sub(1).checked_mul(s).and_then(|step| at.checked_add(step))
        });
        let (Some(count), Some(last)) = (count, last) else {
            return Err(self.fault("a tensor's shape overflows"));
        };
        if count > *elements || (count > 0 && last >= *elements) {
            return Err(self.fault("a tensor reaches beyond its storage"));
        }
        let shape = shape.into_iter().map(usize::try_from).collect::<Result<_, _>>();
        let Ok(shape) = shape else { return Err(self.fault("a tensor's shape overflows")) };
        Ok(TensorRef {
            dtype: *dtype,
            key: key.clone(),
            elements: *elements,
            offset,
            shape,
            strides,
        })
    }
}
