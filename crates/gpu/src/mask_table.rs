//! Tables of closures: masks that only the host can evaluate, evaluated once and kept on the device.

use std::hash::{Hash, Hasher};
use std::ptr;
use std::sync::{Arc, Weak};

use omniflash_core::lower::{MaskTable, TableExtent};
use omniflash_core::{Mask, MaskFunction, Result};

use crate::driver::Driver;
use crate::memory::DeviceMemory;
use crate::stream_state::{StreamUse, visit_functions};

/// A table in the memory of the device.
#[derive(Debug)]
pub(crate) struct DeviceTable<D: Driver> {
    pub(crate) table: MaskTable,
    pub(crate) memory: DeviceMemory<D>,
}

impl<D: Driver> DeviceTable<D> {
    /// Evaluates a closure and copies the answers to the device.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](omniflash_core::Error::OutOfMemory), [`Error::Driver`](omniflash_core::Error::Driver).
    pub(crate) fn build(
        function: &dyn MaskFunction,
        extent: &TableExtent,
        launch: &StreamUse<'_, D>,
    ) -> Result<Self> {
        let table = MaskTable::build(function, extent);
        let data = table.data();
        let bytes: &[u8] = bytemuck::must_cast_slice(&data);
        let memory = DeviceMemory::kept(launch.driver, bytes.len(), launch.stream)?;
        memory.write(bytes, launch.stream)?;
        Ok(DeviceTable { table, memory })
    }
}

/// A closure and the positions it was evaluated for.
///
/// Closures have no equality, so a table belongs to one allocation of a closure. The key holds on to the allocation
/// (not to the closure), so that no other closure can come to lie at the same address while the key lives.
#[derive(Clone)]
pub(crate) struct TableKey {
    closure: Weak<dyn MaskFunction>,
    extent: TableExtent,
}

impl TableKey {
    /// The key of a function that is part of `mask`.
    ///
    /// # Panics
    /// When it is not.
    pub(crate) fn new(mask: &Mask<'_>, function: &dyn MaskFunction, extent: TableExtent) -> Self {
        let mut closure = None;
        visit_functions(mask, &mut |other| {
            if ptr::addr_eq(Arc::as_ptr(other), function) {
                closure = Some(Arc::downgrade(other));
            }
        });
        let closure = closure.expect("a functor's closures are those of its mask");
        // SAFETY: only the lifetime of what the closure borrows is changed. The reference is never upgraded: it is
        // only compared, asked for its count and dropped, and none of these looks at the closure or its borrows.
        let closure =
            unsafe { std::mem::transmute::<Weak<dyn MaskFunction + '_>, Weak<dyn MaskFunction>>(closure) };
        TableKey { closure, extent }
    }

    /// Whether the closure is gone, so that nobody can ask for its table again.
    pub(crate) fn is_dead(&self) -> bool {
        self.closure.strong_count() == 0
    }
}

impl PartialEq for TableKey {
    fn eq(&self, other: &Self) -> bool {
        ptr::addr_eq(self.closure.as_ptr(), other.closure.as_ptr()) && self.extent == other.extent
    }
}

impl Eq for TableKey {}

impl Hash for TableKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.closure.as_ptr().cast::<()>().hash(state);
        self.extent.hash(state);
    }
}

impl std::fmt::Debug for TableKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TableKey({:?}, {:?})", self.closure.as_ptr().cast::<()>(), self.extent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENT: TableExtent = TableExtent { batch: 1, heads: 1, q_begin: 0, q_end: 4, k_end: 4 };

    fn key(mask: &Mask<'_>) -> TableKey {
        let mut keys = Vec::new();
        visit_functions(mask, &mut |function| keys.push(TableKey::new(mask, &**function, EXTENT)));
        assert_eq!(keys.len(), 1);
        keys.remove(0)
    }

    #[test]
    fn clones_of_a_mask_share_a_table_and_other_closures_do_not() {
        let mask = Mask::from_fn(|_, _, q, k| k <= q);
        assert_eq!(key(&mask), key(&mask.clone().and(Mask::Causal)));
        assert_ne!(key(&mask), key(&Mask::from_fn(|_, _, q, k| k <= q)));
        let wider = TableKey { extent: TableExtent { k_end: 5, ..EXTENT }, ..key(&mask) };
        assert_ne!(key(&mask), wider);
    }

    #[test]
    fn no_closure_takes_the_place_of_a_dead_one_while_its_key_lives() {
        let borrowed = [1i64, 2, 3];
        let dead: Vec<TableKey> =
            (0..64).map(|_| key(&Mask::from_fn(|_, _, _, k| borrowed.contains(&k)))).collect();
        let alive = Mask::from_fn(|_, _, _, k| borrowed.contains(&k));
        assert!(dead.iter().all(|dead| dead.is_dead() && *dead != key(&alive)));
        assert!(!key(&alive).is_dead());
    }
}
