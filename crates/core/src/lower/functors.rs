//! From trees to types and bytes.

use std::borrow::Cow;
use std::fmt;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::mask::{Mask, MaskFunction};
use crate::score_mod::ScoreMod;
use crate::source::DeviceSource;
use crate::tensor::TensorRef;

use super::packing::MaskPacking;
use super::table::MaskTable;

/// Every leaf of the parameters begins at a multiple of this many bytes.
pub const LEAF_ALIGNMENT: usize = 16;

/// Room for the parameters of most trees: every launch lowers its own.
const USUAL_BYTES: usize = 4 * LEAF_ALIGNMENT;

/// Sides of windows are cut to this, so that 32-bit positions cannot overflow; no sequence is so long.
const MAX_SIDE: usize = 1 << 30;

/// What a kernel needs to know of a mask and a score modification. See [the module](super) for the layout.
#[derive(Clone)]
pub struct FunctorSpec<'m> {
    /// The C++ type of the mask.
    pub mask_type: Cow<'static, str>,
    /// The C++ type of the score modification.
    pub score_mod_type: Cow<'static, str>,
    /// Sources of users' functors; the i-th is compiled inside `namespace source{i}`.
    pub sources: Vec<String>,
    /// The bytes of the members: the mask's leaves, then the score modification's.
    pub parameters: Vec<u8>,
    /// Closures that have to be evaluated on the host before a launch.
    pub tables: Vec<TableSlot<'m>>,
    /// Tensors that have to be packed on the device by each launch.
    pub packed: Vec<PackedSlot<'m>>,
}

/// A closure without device source: its [`MaskTable`] has to be built, copied to the device and named in the
/// parameters.
#[derive(Clone, Copy)]
pub struct TableSlot<'m> {
    /// Where in the parameters the table's members belong.
    pub offset: usize,
    /// The closure.
    pub function: &'m dyn MaskFunction,
}

/// A mask tensor, or ids of documents, that each launch packs before its kernel reads it: its packed form has to be named in the
/// parameters.
#[derive(Clone, Copy)]
pub struct PackedSlot<'m> {
    /// Where in the parameters the members belong.
    pub offset: usize,
    /// The tensor.
    pub tensor: &'m TensorRef<'m>,
    /// Its sizes.
    pub packing: MaskPacking,
}

impl fmt::Debug for PackedSlot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedSlot({}, {:?})", self.offset, self.packing)
    }
}

impl fmt::Debug for TableSlot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TableSlot({})", self.offset)
    }
}

impl fmt::Debug for FunctorSpec<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} B", self.mask_type, self.score_mod_type, self.parameters.len())
    }
}

impl<'m> FunctorSpec<'m> {
    /// Lowers a mask and a score modification for `num_heads` query heads; kernels read mask tensors as they are.
    ///
    /// # Errors
    /// [`Error::Unsupported`], in the name of `backend`, for a score modification without device source.
    pub fn new(
        mask: &'m Mask<'m>,
        score_mod: &ScoreMod<'_>,
        num_heads: usize,
        backend: &str,
    ) -> Result<Self> {
        Self::with_packing(mask, score_mod, num_heads, backend, &|_| None)
    }

    /// As [`new`](FunctorSpec::new), with those mask tensors and ids of documents packed that `packing` gives sizes for.
    ///
    /// # Errors
    /// As [`new`](FunctorSpec::new).
    pub fn with_packing(
        mask: &'m Mask<'m>,
        score_mod: &ScoreMod<'_>,
        num_heads: usize,
        backend: &str,
        packing: &dyn Fn(&TensorRef<'_>) -> Option<MaskPacking>,
    ) -> Result<Self> {
        let mut lowering = Lowering {
            backend,
            num_heads,
            packing,
            sources: Vec::new(),
            parameters: Vec::with_capacity(USUAL_BYTES),
            tables: Vec::new(),
            packed: Vec::new(),
        };
        let mask_type = lowering.mask(&Canonical::of(mask, false));
        let score_mod_type = lowering.score_mod(score_mod)?;
        Ok(FunctorSpec {
            mask_type,
            score_mod_type,
            sources: lowering.sources.into_iter().map(|source| source.source).collect(),
            parameters: lowering.parameters,
            tables: lowering.tables,
            packed: lowering.packed,
        })
    }

    /// Names a table that lies at `address` on the device in the parameters.
    pub fn set_table(&mut self, slot: usize, table: &MaskTable, address: u64) {
        let at = self.tables[slot].offset;
        let members = table.parameters(address);
        self.parameters[at..at + members.len()].copy_from_slice(&members);
    }

    /// Names a packed mask that will lie at `address` on the device in the parameters.
    pub fn set_packed(&mut self, slot: usize, address: u64) {
        let PackedSlot { offset, packing, .. } = self.packed[slot];
        let members = bytes_of(&packing.members(address));
        self.parameters[offset..offset + members.len()].copy_from_slice(&members);
    }
}

/// A mask with `None`, double negation and the sugar resolved.
enum Canonical<'m> {
    All,
    Leaf(&'m Mask<'m>),
    Causal,
    Window(usize, usize),
    Chunked(usize),
    And(Box<Canonical<'m>>, Box<Canonical<'m>>),
    Or(Box<Canonical<'m>>, Box<Canonical<'m>>),
    Not(Box<Canonical<'m>>),
}

impl<'m> Canonical<'m> {
    fn of(mask: &'m Mask<'m>, negated: bool) -> Self {
        let positive = match mask {
            Mask::Not(inner) => return Canonical::of(inner, !negated),
            Mask::None => Canonical::All,
            Mask::Causal => Canonical::Causal,
            Mask::SlidingWindow { left, right } => match (*left >= MAX_SIDE, *right) {
                (true, 0) => Canonical::Causal,
                (true, MAX_SIDE..) => Canonical::All,
                _ => Canonical::Window((*left).min(MAX_SIDE), (*right).min(MAX_SIDE)),
            },
            Mask::Chunked { size } => Canonical::Chunked((*size).min(MAX_SIDE)),
            Mask::ChunkedCausal { size } => Canonical::And(
                Box::new(Canonical::Chunked((*size).min(MAX_SIDE))),
                Box::new(Canonical::Causal),
            ),
            Mask::And(a, b) => match (Canonical::of(a, false), Canonical::of(b, false)) {
                (Canonical::All, other) | (other, Canonical::All) => other,
                (a, b) => Canonical::And(Box::new(a), Box::new(b)),
            },
            Mask::Or(a, b) => match (Canonical::of(a, false), Canonical::of(b, false)) {
                (Canonical::All, _) | (_, Canonical::All) => Canonical::All,
                (a, b) => Canonical::Or(Box::new(a), Box::new(b)),
            },
            Mask::PrefixLm { .. } | Mask::Document { .. } | Mask::Dense(_) | Mask::Custom(_) => {
                Canonical::Leaf(mask)
            }
        };
        match (positive, negated) {
            (Canonical::Not(inner), true) => *inner,
            (positive, true) => Canonical::Not(Box::new(positive)),
            (positive, false) => positive,
        }
    }
}

struct Lowering<'m, 'b> {
    backend: &'b str,
    num_heads: usize,
    packing: &'b dyn Fn(&TensorRef<'_>) -> Option<MaskPacking>,
    sources: Vec<DeviceSource>,
    parameters: Vec<u8>,
    tables: Vec<TableSlot<'m>>,
    packed: Vec<PackedSlot<'m>>,
}

impl<'m> Lowering<'m, '_> {
    fn mask(&mut self, mask: &Canonical<'m>) -> Cow<'static, str> {
        match mask {
            Canonical::All => self.leaf("NoMask", &[]),
            Canonical::Causal => self.leaf("Causal", &[]),
            Canonical::Window(left, right) => {
                self.leaf("SlidingWindow", &[Member::I32(*left as i32), Member::I32(*right as i32)])
            }
            Canonical::Chunked(size) => self.leaf("Chunked", &[Member::I32(*size as i32)]),
            Canonical::And(a, b) => {
                let (a, b) = (self.mask(a), self.mask(b));
                format!("And<{a}, {b}>").into()
            }
            Canonical::Or(a, b) => {
                let (a, b) = (self.mask(a), self.mask(b));
                format!("Or<{a}, {b}>").into()
            }
            Canonical::Not(inner) => format!("Not<{}>", self.mask(inner)).into(),
            Canonical::Leaf(leaf) => self.mask_leaf(leaf),
        }
    }

    fn mask_leaf(&mut self, mask: &'m Mask<'m>) -> Cow<'static, str> {
        match mask {
            Mask::PrefixLm { prefix_len } => self.leaf("PrefixLm", &vector(prefix_len)),
            Mask::Document { ids } => {
                // One row of ids serves all sequences.
                let batch_stride = if ids.shape()[0] == 1 { 0 } else { ids.strides()[0] };
                let members = [
                    Member::Address(ids.address()),
                    Member::I64(batch_stride),
                    Member::I64(ids.strides()[1]),
                    Member::I32(i32::try_from(ids.shape()[1]).unwrap_or(i32::MAX)),
                ];
                match self.packed(ids) {
                    Some(blocks) => self.leaf("PackedDocument", &[&blocks[..], &members].concat()),
                    None => self.leaf("Document", &members),
                }
            }
            Mask::Dense(tensor) => self.tensor(tensor),
            Mask::Custom(function) => match function.device_source() {
                Some(source) => self.user(source).into(),
                None => {
                    self.tables.push(TableSlot { offset: self.parameters.len(), function: &**function });
                    self.leaf("TableMask", &MaskTable::MEMBERS)
                }
            },
            _ => unreachable!("resolved by Canonical::of"),
        }
    }

    /// A mask tensor as it is, or what the launch packs it into: of values that are added the tensor itself comes after that.
    fn tensor(&mut self, tensor: &'m TensorRef<'m>) -> Cow<'static, str> {
        let is_bool = tensor.dtype() == DType::Bool;
        match self.packed(tensor) {
            None if is_bool => self.leaf("DenseMask", &dense(tensor)),
            None => self.leaf(format!("AdditiveMask<{}>", values_of(tensor)), &dense(tensor)),
            Some(members) if is_bool => self.leaf("PackedMask", &members),
            Some(mut members) => {
                members.extend(dense(tensor));
                self.leaf(format!("PackedAdditive<{}>", values_of(tensor)), &members)
            }
        }
    }

    /// The members of a tensor's packed form at an address that is not known yet, where the launch packs it.
    fn packed(&mut self, tensor: &'m TensorRef<'m>) -> Option<Vec<Member>> {
        let packing = (self.packing)(tensor)?;
        self.packed.push(PackedSlot { offset: self.parameters.len(), tensor, packing });
        Some(packing.members(0))
    }

    fn score_mod(&mut self, score_mod: &ScoreMod<'_>) -> Result<Cow<'static, str>> {
        Ok(match score_mod {
            ScoreMod::Identity => self.leaf("Identity", &[]),
            ScoreMod::Softcap { cap } => self.leaf("Softcap", &[Member::F32(*cap)]),
            ScoreMod::Alibi { slopes: None } => self.leaf("Alibi", &[Member::I32(self.num_heads as i32)]),
            ScoreMod::Alibi { slopes: Some(slopes) } => {
                self.leaf(format!("AlibiSlopes<{}>", cpp_type(slopes.dtype())), &vector(slopes))
            }
            ScoreMod::Bias(bias) => self.leaf(format!("Bias<{}>", values_of(bias)), &dense(bias)),
            ScoreMod::Then(a, b) => match (&**a, &**b) {
                (ScoreMod::Identity, other) | (other, ScoreMod::Identity) => self.score_mod(other)?,
                (a, b) => {
                    let (a, b) = (self.score_mod(a)?, self.score_mod(b)?);
                    format!("Then<{a}, {b}>").into()
                }
            },
            ScoreMod::Custom(function) => match function.device_source() {
                Some(source) => self.user(source).into(),
                None => {
                    return Err(Error::unsupported(
                        self.backend,
                        "a score modification that is only a Rust closure",
                        "a GPU cannot call it, and its scores would have to be materialised",
                        "give it device source (ScoreFunction::device_source), or use the CPU backend",
                    ));
                }
            },
        })
    }

    /// A user's functor: equal sources are compiled once.
    fn user(&mut self, source: DeviceSource) -> String {
        let known = self.sources.iter().position(|other| other.source == source.source);
        let index = known.unwrap_or(self.sources.len());
        let type_name = format!("source{index}::{}", source.type_name);
        self.append(&source.parameters);
        if known.is_none() {
            self.sources.push(source);
        }
        type_name
    }

    fn leaf(&mut self, type_name: impl Into<Cow<'static, str>>, members: &[Member]) -> Cow<'static, str> {
        self.append(&bytes_of(members));
        type_name.into()
    }

    fn append(&mut self, bytes: &[u8]) {
        self.parameters.extend_from_slice(bytes);
        let padded = self.parameters.len().next_multiple_of(LEAF_ALIGNMENT);
        // A struct without members still has a size.
        let extra = if bytes.is_empty() { LEAF_ALIGNMENT } else { 0 };
        self.parameters.resize(padded + extra, 0);
    }
}

/// A member of a leaf; wider ones first, so that no compiler pads.
#[derive(Clone, Copy)]
pub(super) enum Member {
    Address(u64),
    I64(i64),
    I32(i32),
    F32(f32),
}

impl Member {
    fn append_to(self, bytes: &mut Vec<u8>) {
        match self {
            Member::Address(value) => bytes.extend_from_slice(&value.to_ne_bytes()),
            Member::I64(value) => bytes.extend_from_slice(&value.to_ne_bytes()),
            Member::I32(value) => bytes.extend_from_slice(&value.to_ne_bytes()),
            Member::F32(value) => bytes.extend_from_slice(&value.to_ne_bytes()),
        }
    }
}

pub(super) fn bytes_of(members: &[Member]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for member in members {
        member.append_to(&mut bytes);
    }
    bytes
}

fn vector(tensor: &TensorRef<'_>) -> [Member; 2] {
    [Member::Address(tensor.address()), Member::I64(tensor.strides()[0])]
}

/// A `[batch, (heads,) rows, keys]` tensor: its address and strides.
fn dense(tensor: &TensorRef<'_>) -> [Member; 5] {
    let [batch, head, row, key] = dense_strides(tensor).map(Member::I64);
    [Member::Address(tensor.address()), batch, head, row, key]
}

/// The strides of batch, head, row and key; that of an axis of extent 1, or that is missing, is 0.
pub fn dense_strides(tensor: &TensorRef<'_>) -> [i64; 4] {
    let (shape, strides) = (tensor.shape(), tensor.strides());
    let broadcast = |axis: usize| if shape[axis] == 1 { 0 } else { strides[axis] };
    let heads = if shape.len() == 4 { broadcast(1) } else { 0 };
    let (rows, keys) = (shape.len() - 2, shape.len() - 1);
    [broadcast(0), heads, broadcast(rows), strides[keys]]
}

/// The type of a `[batch, (heads,) rows, keys]` tensor's values, and how many keys' are loaded at once: 2 where every
/// pair from an even key on lies side by side, at a multiple of its size, within the tensor.
fn values_of(tensor: &TensorRef<'_>) -> String {
    let [outer @ .., key_stride] = dense_strides(tensor);
    let keys = tensor.shape()[tensor.shape().len() - 1];
    let has_pairs = key_stride == 1
        && keys.is_multiple_of(2)
        && tensor.address().is_multiple_of(2 * tensor.dtype().size() as u64)
        && outer.iter().all(|stride| stride % 2 == 0);
    let value = cpp_type(tensor.dtype());
    if has_pairs { format!("{value}, 2") } else { value.into() }
}

fn cpp_type(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float",
    }
}
