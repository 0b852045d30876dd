//! The `NT_AMDGPU_METADATA` note: a MessagePack map that describes each kernel's arguments.

use rmpv::ValueRef;

use crate::fault::LoadError;

pub(super) const NOTE_TYPE: u32 = 32;

/// What the metadata says of one kernel.
#[derive(Clone, Debug, Default)]
pub(crate) struct KernelMetadata {
    pub(crate) arguments: Vec<Argument>,
    pub(crate) max_workgroup_size: u32,
    pub(crate) vgprs: u32,
}

/// One kernel argument, explicit or hidden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Argument {
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
    /// For example `by_value`, `global_buffer`, `hidden_block_count_x`.
    pub(crate) kind: String,
}

impl Argument {
    /// Whether the runtime, and not the caller, fills this argument in.
    pub(crate) fn is_hidden(&self) -> bool {
        self.kind.starts_with("hidden_")
    }
}

/// The kernels of a metadata note by the symbol of their descriptor.
pub(super) fn kernels(mut note: &[u8]) -> Result<Vec<(String, KernelMetadata)>, LoadError> {
    let root = rmpv::decode::read_value_ref(&mut note)
        .map_err(|e| LoadError::Malformed(format!("kernel metadata: {e}")))?;
    let empty = Vec::new();
    let kernels = field(&root, "amdhsa.kernels").and_then(array).unwrap_or(&empty);
    Ok(kernels.iter().filter_map(kernel).collect())
}

fn kernel(value: &ValueRef<'_>) -> Option<(String, KernelMetadata)> {
    let number = |name: &str| field(value, name).and_then(ValueRef::as_u64).unwrap_or(0) as u32;
    let arguments =
        field(value, ".args").and_then(array).map(|list| list.iter().filter_map(argument).collect());
    let symbol = text(field(value, ".symbol")?)?;
    let metadata = KernelMetadata {
        arguments: arguments.unwrap_or_default(),
        max_workgroup_size: number(".max_flat_workgroup_size"),
        vgprs: number(".vgpr_count"),
    };
    Some((symbol, metadata))
}

fn argument(value: &ValueRef<'_>) -> Option<Argument> {
    Some(Argument {
        offset: field(value, ".offset")?.as_u64()? as usize,
        bytes: field(value, ".size")?.as_u64()? as usize,
        kind: text(field(value, ".value_kind")?)?,
    })
}

fn field<'v, 'b>(value: &'v ValueRef<'b>, name: &str) -> Option<&'v ValueRef<'b>> {
    let ValueRef::Map(entries) = value else { return None };
    entries.iter().find(|(key, _)| text(key).as_deref() == Some(name)).map(|(_, value)| value)
}

fn array<'v, 'b>(value: &'v ValueRef<'b>) -> Option<&'v Vec<ValueRef<'b>>> {
    match value {
        ValueRef::Array(list) => Some(list),
        _ => None,
    }
}

fn text(value: &ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::String(s) => s.as_str().map(str::to_string),
        _ => None,
    }
}
