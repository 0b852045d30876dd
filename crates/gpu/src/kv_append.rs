//! New rows of a cache on the device: the struct that the kernel is given, and its launch.

use std::sync::{Arc, OnceLock};

use omniflash_core::{AppendAt, KvAppend, KvCacheMut, NewKv, Result, Stream, TensorRef};
use omniflash_device::parameters::{
    AppendForm, DeviceAddress, Indices, KeyForm, KvAppendParameters, QueryForm, Rows, Table,
};

use crate::driver::Driver;
use crate::module::Module;
use crate::parameters::{indices, is_multiple_of, table};
use crate::planner::Planner;
use crate::stream_state::StreamUse;
use crate::vendor::Vendor;

/// The kernels, by the bytes that a thread copies; each is loaded when first needed.
#[derive(Debug)]
pub(crate) struct AppendKernels<V: Vendor> {
    modules: [OnceLock<Module<V::Driver>>; 3],
}

impl<V: Vendor> Default for AppendKernels<V> {
    fn default() -> Self {
        AppendKernels { modules: [const { OnceLock::new() }; 3] }
    }
}

impl<V: Vendor> AppendKernels<V> {
    /// Loads the kernel for such tensors.
    pub(crate) fn prepare(
        &self,
        planner: &Planner<V>,
        driver: &Arc<V::Driver>,
        append: &KvAppend<'_>,
        stream: &Stream,
    ) -> Result<()> {
        let entered = driver.enter()?;
        self.module(planner, driver, unit_of(append, &V::KV_APPEND_UNITS), stream, &entered).map(drop)
    }

    /// Enqueues the kernel.
    ///
    /// # Safety
    /// Those of [`Backend::kv_append`](omniflash_core::Backend::kv_append).
    pub(crate) unsafe fn launch(
        &self,
        planner: &Planner<V>,
        driver: &Arc<V::Driver>,
        append: &KvAppend<'_>,
        stream: &Stream,
    ) -> Result<()> {
        if append.is_empty() {
            return Ok(());
        }
        let unit = unit_of(append, &V::KV_APPEND_UNITS);
        let parameters = parameters(append, V::KV_APPEND_UNITS[unit]);
        let launch = V::kv_append_launch(&parameters)?;
        let entered = driver.enter()?;
        let module = self.module(planner, driver, unit, stream, &entered)?;
        // SAFETY: the kernel's only parameter is this struct; what it addresses is the caller's duty.
        unsafe { module.launch(&launch, &[bytemuck::bytes_of(&parameters)], stream, &entered) }
    }

    fn module(
        &self,
        planner: &Planner<V>,
        driver: &Arc<V::Driver>,
        unit: usize,
        stream: &Stream,
        entered: &<V::Driver as Driver>::Entered<'_>,
    ) -> Result<&Module<V::Driver>> {
        if let Some(module) = self.modules[unit].get() {
            return Ok(module);
        }
        StreamUse::new(driver, stream, entered)?.check_may_allocate("the first kv_append of its kind")?;
        let (kernel, entry) = planner.append_kernel(V::KV_APPEND_UNITS[unit])?;
        let module = Module::load(driver, &kernel.image, entry, 0)?;
        Ok(self.modules[unit].get_or_init(|| module))
    }
}

/// The index of the first unit that divides every address, stride and vector; of the last, which divides elements.
fn unit_of(append: &KvAppend<'_>, units: &[usize]) -> usize {
    let (new, cache) = (append.new_kv(), append.cache());
    let (cache_k, cache_v) = (cache.k().as_view(), cache.v().as_view());
    let fits = |unit: usize| {
        [new.k(), new.v(), cache_k, cache_v].into_iter().all(|tensor| is_multiple_of(tensor, unit))
    };
    units.iter().position(|&unit| fits(unit)).unwrap_or(units.len() - 1)
}

fn parameters(append: &KvAppend<'_>, unit: usize) -> KvAppendParameters {
    let (shape, new, cache) = (append.shape(), append.new_kv(), append.cache());
    let (new_form, new_lengths, total_rows) = match new {
        NewKv::Padded { lengths: Some(lengths), .. } => {
            (QueryForm::PaddedLengths, indices(lengths), shape.new_rows)
        }
        NewKv::Ragged { k, cu_seqlens, .. } => (QueryForm::Ragged, indices(cu_seqlens), k.shape()[0]),
        _ => (QueryForm::Padded, Indices::default(), shape.new_rows),
    };
    let (key_form, block_table) = match cache {
        KvCacheMut::Continuous { lookup_table, .. } => (KeyForm::Continuous, table(lookup_table)),
        KvCacheMut::Paged { page_table, .. } => (KeyForm::Paged, table(page_table)),
        _ => (KeyForm::Dense, Table::default()),
    };
    let append_form = match append.at() {
        AppendAt::End(_) => AppendForm::End,
        _ => AppendForm::Start,
    };
    let units = |dim: usize| (dim * shape.dtype.size() / unit) as u32;
    let (cache_k, cache_v) = (cache.k().as_view(), cache.v().as_view());
    KvAppendParameters {
        new_k: rows(new.k(), unit),
        new_v: rows(new.v(), unit),
        k: rows(cache_k, unit),
        v: rows(cache_v, unit),
        new_lengths,
        positions: indices(append.at().positions()),
        block_table,
        new_form: new_form.into(),
        key_form: key_form.into(),
        append_form: append_form.into(),
        batch: shape.batch as u32,
        num_kv_heads: shape.num_kv_heads as u32,
        key_units: units(shape.head_dim),
        value_units: units(shape.value_dim),
        new_rows: shape.new_rows as u32,
        capacity: shape.capacity.min(i32::MAX as usize) as u32,
        page_size: cache_k.shape()[1] as u32,
        num_blocks: cache_k.shape()[0].min(i32::MAX as usize) as u32,
        total_rows: total_rows as u32,
    }
}

/// `[batch, rows, heads, dim]`, or `[rows, heads, dim]` of ragged tensors, in units; the stride of an axis of extent 1
/// is never walked, and may be no multiple.
fn rows(tensor: &TensorRef<'_>, unit: usize) -> Rows {
    let in_units = |stride: i64| stride * tensor.dtype().size() as i64 / unit as i64;
    let data = DeviceAddress(tensor.address());
    match *tensor.strides() {
        [batch, row, head, _] => Rows {
            data,
            batch_stride: in_units(batch),
            row_stride: in_units(row),
            head_stride: in_units(head),
        },
        [row, head, _] => {
            Rows { data, batch_stride: 0, row_stride: in_units(row), head_stride: in_units(head) }
        }
        _ => unreachable!("rows of an append have rank 3 or 4"),
    }
}
